"""Clocks: seconds per step of a training, and several contenders measured in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook


@dataclass(frozen=True)
class Timed:
    """Seconds of repeated measurements."""

    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Return how far the slowest is from the fastest, as a share of the median."""
        return (max(self.seconds) - min(self.seconds)) / self.median


class StepClock:
    """Notes when each step of an optimizer has ended, whatever loop it is in."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def tick(self, *_: object) -> None:
        if not self.times:
            synchronize()
        self.times.append(time.perf_counter())

    def seconds_per_step(self, steps: int) -> float:
        """Return the mean over all steps but the first, which is a warm-up."""
        synchronize()
        return (time.perf_counter() - self.times[0]) / (steps - 1)  # some optimizers report a step twice


@contextmanager
def step_clock() -> Iterator[StepClock]:
    """Watch every optimizer of torch's kind until the block ends."""
    clock = StepClock()
    handle = register_optimizer_step_post_hook(clock.tick)
    try:
        yield clock
    finally:
        handle.remove()


def take_turns(contenders: dict[str, Callable[[], float]], repeats: int) -> dict[str, Timed]:
    """Measure contenders in turn, so that what else the machine does meets all of them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, measure in contenders.items():
            seconds[name].append(measure())
    return {name: Timed(values) for name, values in seconds.items()}


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
