"""Adaptive loss scaling for fp16."""

from __future__ import annotations

from typing import Sequence

import torch


class LossScaler:
    """Holds the factor that keeps fp16 gradients above 6e-8, where fp16 underflows; 1 for all other dtypes.

    Follows torch.amp.GradScaler: starts at 2^16, halves after a step that overflows, doubles after 2000 that do not. That
    class is not used because it needs float64 on the device and one more synchronization per step.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.scale, self._steps_since_change = (2.0**16 if dtype == torch.float16 else 1.0), 0
        self._is_fixed = dtype != torch.float16

    def update(self, overflowed: bool) -> None:
        """Adapt the factor after a step."""
        if self._is_fixed:
            return
        self._steps_since_change = 0 if overflowed else self._steps_since_change + 1
        if overflowed:
            self.scale /= 2
        elif self._steps_since_change == 2000:
            self.scale, self._steps_since_change = self.scale * 2, 0

    def state(self) -> list[float]:
        """Return what `load` needs to resume."""
        return [self.scale, self._steps_since_change]

    def load(self, state: Sequence[float]) -> None:
        """Resume from a state, if both this and that are for fp16."""
        if not self._is_fixed and state[0] != 1:
            self.scale, self._steps_since_change = float(state[0]), int(state[1])
