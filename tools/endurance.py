"""Trains for many steps on a tiny model and says whether anything grows: python -m tools.endurance [steps]

Run it with the Python of the tests, in the repository. Everything is as in a graph but the model, which is so small that
what the training itself does in each step is all that counts.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
WINDOW = 1000  # steps at the start and the end that are compared
WARM_UP = 200  # steps until nothing is built up any more
MOST_SLOWER, MOST_GROWTH = 0.05, 0.01


class Watch:
    """What the steps took, in seconds of the processor, and the process's memory early."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.same_work: list[
            float
        ] = []  # seconds that one and the same work took beside each step: the machine's own pace
        self.early = 0
        self._last = time.thread_time()

    def step(self) -> None:
        now = time.thread_time()
        self.seconds.append(now - self._last)
        start = time.thread_time()
        sum(range(50_000))
        self.same_work.append(time.thread_time() - start)
        if len(self.seconds) == WARM_UP:
            self.early = memory()
        self._last = time.thread_time()


def memory() -> int:
    """Return the bytes that the process has in memory, after what is free was given back."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    import psutil

    return psutil.Process().memory_info().rss


def train(steps: int, folder: Path) -> Watch:
    """Train a LoRA of a tiny SD3 through its node, into a folder."""
    sys.path.insert(0, str(ROOT / "tests"))
    import conftest  # noqa: F401  makes the host and the pack importable
    import folder_paths
    import torch
    from pack.nodes.progress import TrainingProgress
    from pack.trainer.config import TrainingConfig
    from tiny_host import TinyHost

    torch.set_num_threads(1)
    folder_paths.output_directory = str(folder)
    watch, tell = Watch(), TrainingProgress.__call__

    def tell_and_watch(self, *figures) -> None:
        tell(self, *figures)
        watch.step()

    TrainingProgress.__call__ = tell_and_watch
    settings = TrainingConfig(save_every=max(1, steps // 10), snr_gamma=0)
    TinyHost(folder).train("LoRA", steps=steps, learning_rate=1e-4, settings=settings)
    return watch


def report(watch: Watch, folder: Path) -> bool:
    """Print the figures; return whether anything grew."""
    late, window = memory(), min(WINDOW, len(watch.seconds) // 3)
    first, last = slice(WARM_UP, WARM_UP + window), slice(-window, None)
    step, same_work = ([median(each[part]) for part in (first, last)] for each in (watch.seconds, watch.same_work))
    slower = step[1] / step[0] / (same_work[1] / same_work[0]) - 1
    larger = late / watch.early - 1
    print(f"{len(watch.seconds)} steps: {step[0] * 1000:.2f} ms a step at first, {step[1] * 1000:.2f} ms at last")
    print(f"Beside work that is always the same: {slower:+.1%}")
    print(f"Memory: {watch.early / 1e6:.1f} MB after {WARM_UP} steps, {late / 1e6:.1f} MB at last: {larger:+.1%}")
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        print(f"{file.stat().st_size:>10,} bytes  {file.relative_to(folder)}")
    return slower > MOST_SLOWER or larger > MOST_GROWTH


def main() -> int:
    """Train, print the figures, and give 1 where something grew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("steps", nargs="?", type=int, default=10_000, help="at least 1000")
    with tempfile.TemporaryDirectory() as folder:
        return int(report(train(parser.parse_args().steps, Path(folder)), Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
