"""Trains for many steps on a tiny model and says whether anything grows: python -m tools.endurance [steps]

Run it with the Python of the tests, in the repository. Everything is as in a graph but the model, which is so small that
what the training itself does in each step is all that counts.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
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
    """What the steps took, in seconds of the processor, and the process's memory early and late."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.early = 0
        self._last = time.thread_time()

    def step(self) -> None:
        now = time.thread_time()
        self.seconds.append(now - self._last)
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


def main() -> int:
    """Train, print the figures, and give 1 where something grew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("steps", nargs="?", type=int, default=10_000)
    steps = parser.parse_args().steps
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        watch = train(steps, Path(folder))
        late, files = memory(), sorted(file for file in Path(folder).rglob("*") if file.is_file())
        window = min(WINDOW, steps // 3)
        first, last = median(watch.seconds[WARM_UP:][:window]), median(watch.seconds[-window:])
        print(
            f"{steps} steps: {first * 1000:.3f} ms a step at first, {last * 1000:.3f} ms at last ({last / first - 1:+.1%})"
        )
        print(
            f"memory: {watch.early / 1e6:.1f} MB after {WARM_UP} steps, {late / 1e6:.1f} MB after the last "
            f"({late / watch.early - 1:+.1%})"
        )
        tenths = [watch.seconds[i * steps // 10 : (i + 1) * steps // 10] for i in range(10)]
        print(f"ms a step in each tenth: {', '.join(f'{median(tenth) * 1000:.2f}' for tenth in tenths)}")
        for file in files:
            print(f"{file.stat().st_size:>10,} bytes  {file.relative_to(folder)}")
    return int(last > (1 + MOST_SLOWER) * first or late > (1 + MOST_GROWTH) * watch.early)


if __name__ == "__main__":
    sys.exit(main())
