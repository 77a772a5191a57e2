"""What a training tells of its steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Sequence

import numpy as np


@dataclass
class History:
    """The loss and the learning rate of each step that is done.

    learning_rates: as many as losses, or none where they are not known
    """

    losses: list[float] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.losses)

    def add(self, loss: float, learning_rate: float) -> None:
        """Take in one more step."""
        self.losses.append(loss)
        self.learning_rates.append(learning_rate)


def smooth(losses: Sequence[float], window: int) -> np.ndarray:
    """Return at each step the mean of the last `window` losses, or of as many as there are."""
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(losses, dtype=np.float64))])
    ends = np.arange(1, len(losses) + 1)
    starts = np.maximum(0, ends - window)
    return (sums[ends] - sums[starts]) / (ends - starts)


class LossCurve:
    """The losses of a training as a few points, however many steps it has: each the mean of equally many steps."""

    def __init__(self, most: int = 200) -> None:
        self._most, self._steps_per_point = most, 1
        self._sums: list[float] = []
        self._steps = 0

    def add(self, loss: float) -> None:
        """Take in the loss of one more step."""
        if self._steps == self._most * self._steps_per_point:
            self._sums = [sum(self._sums[i : i + 2]) for i in range(0, self._most, 2)]
            self._steps_per_point *= 2
        if self._steps % self._steps_per_point == 0:
            self._sums.append(0.0)
        self._sums[-1] += loss
        self._steps += 1

    def points(self) -> list[tuple[int, float]]:
        """Return the last step of each point, and the mean loss of its steps."""
        per_point = self._steps_per_point
        ends = [min((i + 1) * per_point, self._steps) for i in range(len(self._sums))]
        return [(end, total / (end - i * per_point)) for i, (end, total) in enumerate(zip(ends, self._sums))]
