"""What a step gives, while the device may still be working on it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch


class Figures(NamedTuple):
    """What is known of a step once it is done. stopped, failed: how many processes have left the training in it"""

    loss: float
    stopped: float
    failed: float
    norm: float

    @property
    def whole(self) -> bool:
        """Tell whether loss and gradient are finite, and of all processes."""
        return math.isfinite(self.loss) and math.isfinite(self.norm) and not self.stopped and not self.failed


class PendingStep:
    """A step that the device may still be working on."""

    def __init__(self, step: int, figures: torch.Tensor, norm: torch.Tensor, learning_rate: float) -> None:
        self.step, self.learning_rate = step, learning_rate
        self._figures = torch.cat([figures, norm[None]])
        self._copied = None
        if figures.is_cuda:  # into pinned memory, or the copy would wait for all that is queued
            self._figures = torch.empty(len(self._figures), pin_memory=True).copy_(self._figures, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def read(self) -> Figures:
        """Wait for the device."""
        if self._copied is not None:
            self._copied.synchronize()
        return Figures(*(figure.item() for figure in self._figures))
