"""Trains for many steps on a tiny model and says whether anything grows: python -m tools.endurance [steps]

Run it with the Python of the tests, in the repository. Everything is as in a graph but the model, which is so small that
what the training itself does in each step is all that counts.

Two equal trainings differ by some percent, by where their tensors lie, and the machine's pace changes. So the training
takes turns, step by step, with young ones beside it: some at its start and some at its end, each on a model of its own.
What it takes in relation to them is compared.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
YOUNG = 5  # trainings beside it at its start, and again at its end
WINDOW = 200  # steps in turns with each of them
WARM_UP = 200  # steps until nothing is built up any more
MOST_SLOWER, MOST_GROWTH = 0.05, 0.01


@dataclass
class Watch:
    """What the steps of a training took, in seconds of the processor."""

    seconds: list[float] = field(default_factory=list)
    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _last: float = 0.0

    def step(self) -> int:
        """Note a step; return how many there were."""
        self.seconds.append(time.thread_time() - self._last)
        return len(self.seconds)

    def begin_step(self) -> None:
        """Begin to measure the next step."""
        self._last = time.thread_time()

    def wait_for(self, other: Watch) -> None:
        """Let the other training take a step."""
        other.turn.release()
        self.turn.acquire()


class Endurance:
    """A training, and young ones that take turns with it."""

    def __init__(self, steps: int, folder: Path) -> None:
        self.steps, self.folder = steps, folder
        self.early = self.late = 0  # bytes of the process while the training is alone
        self.ratios: list[float] = []  # what its step takes in relation to that of each young one
        self._old, self._young = Watch(), Watch()
        self._thread, self._left = threading.Thread(), 0

    def run(self) -> None:
        from pack.nodes.progress import TrainingProgress

        report_step = TrainingProgress.report

        def report_and_watch(progress: TrainingProgress, step: Any) -> None:
            report_step(progress, step)
            (self._step_young if threading.current_thread() is self._thread else self._step_old)()

        TrainingProgress.report = report_and_watch
        self._train(self.steps, seed=0)

    def slower(self) -> float:
        """Return by how much a step takes longer at the end than at the start."""
        return median(self.ratios[YOUNG:]) / median(self.ratios[:YOUNG]) - 1

    def _step_old(self) -> None:
        step = self._old.step()
        if step == WARM_UP:
            self.early, self._left = memory(), YOUNG
        if step == self.steps - YOUNG * (WINDOW + 5):
            self.late, self._left = memory(), YOUNG
        if self._left and not self._thread.is_alive():
            self._left -= 1
            self._young = Watch()
            self._thread = threading.Thread(target=self._train_young, args=(step,), daemon=True)
            self._thread.start()
        if self._thread.is_alive():
            self._old.wait_for(self._young)
        self._old.begin_step()

    def _step_young(self) -> None:
        if self._young.step() >= WARM_UP:
            self._young.wait_for(self._old)
        self._young.begin_step()

    def _train_young(self, step: int) -> None:
        try:
            self._train(WARM_UP + WINDOW, seed=step)
            self.ratios.append(median(self._old.seconds[step:]) / median(self._young.seconds[WARM_UP:]))
        finally:
            self._old.turn.release()

    def _train(self, steps: int, seed: int) -> None:
        """Train a LoRA of a tiny SD3 through its node."""
        from pack.trainer.config import TrainingConfig
        from tiny_host import TinyHost

        settings = TrainingConfig(save_every=self.steps // 10, snr_gamma=0)
        with tempfile.TemporaryDirectory() as folder:
            model = TinyHost(Path(folder))
        model.train("LoRA", steps=steps, learning_rate=1e-4, settings=settings, seed=seed)


def memory() -> int:
    """Return the bytes that the process has in memory, after what is free was given back."""
    import psutil
    from pack.trainer.offload import give_back_freed_memory

    gc.collect()
    give_back_freed_memory()
    return psutil.Process().memory_info().rss


def report(run: Endurance) -> bool:
    """Print the figures; return whether anything grew."""
    slower, larger = run.slower(), run.late / run.early - 1
    early, late = (", ".join(f"{ratio:.2f}" for ratio in part) for part in (run.ratios[:YOUNG], run.ratios[YOUNG:]))
    print(f"{run.steps} steps; each in relation to a young training's, at first {early}, at last {late}: {slower:+.1%}")
    print(f"Memory: {run.early / 1e6:.1f} MB after {WARM_UP} steps, {run.late / 1e6:.1f} MB at last: {larger:+.1%}")
    for file in sorted(file for file in (run.folder / "loras").rglob("*") if file.is_file()):
        print(f"{file.stat().st_size:>10,} bytes  {file.relative_to(run.folder)}")
    return slower > MOST_SLOWER or larger > MOST_GROWTH


def main() -> int:
    """Train, print the figures, and give 1 where something grew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("steps", nargs="?", type=int, default=10_000, help="at least 3000")
    steps = parser.parse_args().steps
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: of both threads
    sys.path.insert(0, str(ROOT / "tests"))
    import conftest  # noqa: F401  makes the host and the pack importable
    import folder_paths

    with tempfile.TemporaryDirectory() as folder:
        folder_paths.output_directory = folder
        run = Endurance(steps, Path(folder))
        run.run()
        return int(report(run))


if __name__ == "__main__":
    sys.exit(main())
