"""The loss and the learning rate of a training, step by step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Sequence

import numpy as np


@dataclass
class History:
    """Holds the loss and the learning rate of each step so far.

    losses: may be NaN or Inf for skipped steps
    learning_rates: as many as losses, or empty if unknown
    skipped: numbers, from 1, of the steps that were skipped because loss or gradient was NaN or Inf
    validation: the loss on held-out images, by the number of the step after which it was measured
    """

    losses: list[float] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    validation: dict[int, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.losses)

    def add(self, loss: float, learning_rate: float, skipped: bool = False) -> None:
        """Append a step."""
        self.losses.append(loss)
        self.learning_rates.append(learning_rate)
        if skipped:
            self.skipped.append(len(self.losses))

    def finite_losses(self) -> list[float]:
        """Return the losses for programs that cannot handle NaN or Inf: those are replaced by the loss before, or by 0."""
        finite: list[float] = []
        for loss in self.losses:
            finite.append(loss if math.isfinite(loss) else finite[-1] if finite else 0.0)
        return finite

    def best_step(self) -> int | None:
        """Return the step with the lowest validation loss, the earliest of several, or None if there is no validation."""
        finite = {step: loss for step, loss in sorted(self.validation.items()) if math.isfinite(loss)}
        return min(finite, key=finite.__getitem__, default=None)


def smooth(losses: Sequence[float], window: int) -> np.ndarray:
    """Return for each step the mean of the finite losses among the last `window`; NaN if there are none."""
    values = np.asarray(losses, dtype=np.float64)
    finite = np.isfinite(values)
    sums, counts = (np.concatenate([[0.0], np.cumsum(part)]) for part in (np.where(finite, values, 0.0), finite))
    ends = np.arange(1, len(losses) + 1)
    starts = np.maximum(0, ends - window)
    with np.errstate(invalid="ignore"):
        return (sums[ends] - sums[starts]) / (counts[ends] - counts[starts])


class LossCurve:
    """Reduces the losses of any number of steps to at most `max_points`, each the mean of equally many steps."""

    def __init__(self, max_points: int = 200) -> None:
        self._max_points, self._steps_per_point = max_points, 1
        self._sums: list[float] = []
        self._steps = 0

    def add(self, loss: float) -> None:
        """Append the loss of a step."""
        if self._steps == self._max_points * self._steps_per_point:
            self._sums = [sum(self._sums[i : i + 2]) for i in range(0, self._max_points, 2)]
            self._steps_per_point *= 2
        if self._steps % self._steps_per_point == 0:
            self._sums.append(0.0)
        self._sums[-1] += loss
        self._steps += 1

    def points(self) -> list[tuple[int, float]]:
        """Return for each point its last step and the mean loss of its steps."""
        per_point = self._steps_per_point
        ends = [min((i + 1) * per_point, self._steps) for i in range(len(self._sums))]
        return [(end, total / (end - i * per_point)) for i, (end, total) in enumerate(zip(ends, self._sums))]
