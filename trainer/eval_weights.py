"""The weights for use, which saved LoRAs, samples and the validation get: not always those that are trained."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Iterator

import torch
from torch.optim import Optimizer


class EvalWeights:
    """Holds what the weights for use are made of: a schedule-free optimizer's own, or an average over the steps (EMA).

    ema_decay: each step's average is decay * the average before + (1 - decay) * the weights; 0 turns the average off
    average: the average so far, one tensor per parameter; empty before the first update
    """

    def __init__(self, parameters: list[torch.nn.Parameter], optimizer: Optimizer, ema_decay: float) -> None:
        self._parameters, self._optimizer, self._decay = parameters, optimizer, ema_decay
        self.average: list[torch.Tensor] = []

    def update(self, updates: int) -> None:
        """Add the weights after an update to the average. updates: their number, from 1

        The decay rises as updates / (9 + updates), as in diffusers: else a short training would be mostly its beginning.
        """
        if not self._decay:
            return
        if not self.average:
            self.average = _copies(self._parameters)
            return
        decay = min(self._decay, updates / (9 + updates))
        torch._foreach_lerp_(self.average, [parameter.detach() for parameter in self._parameters], 1 - decay)

    def load(self, average: list[torch.Tensor]) -> None:
        """Resume from an average; an empty one begins with the weights of the next update."""
        self.average = _copies(self._parameters) if self._decay and average else []
        if self.average:
            copy_all(average, self.average)

    @contextmanager
    def used(self, is_consistent: bool) -> Iterator[None]:
        """Run the block with the weights for use. is_consistent: whether weights and optimizer are of the same step"""
        weights = _copies(self._parameters)
        if is_consistent:
            self.set_mode("eval")
        if self.average:
            copy_all(self.average, self._parameters)
        try:
            yield
        finally:
            if is_consistent:
                self.set_mode("train")
            copy_all(weights, self._parameters)

    def set_mode(self, mode: str) -> None:
        """Switch a schedule-free optimizer between the weights for training and those for use."""
        if hasattr(self._optimizer, mode):
            getattr(self._optimizer, mode)()


@torch.no_grad()
def copy_all(source: list[torch.Tensor], destination: list[torch.Tensor]) -> None:
    """Copy tensors into others, one by one."""
    torch._foreach_copy_(destination, source)


def _copies(parameters: list[torch.nn.Parameter]) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in parameters]
