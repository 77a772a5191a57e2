"""The training methods: each decides which latents, prompts and strength make the prediction and its target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from ..denoiser import Denoiser
from ..network import LoRANetwork


@dataclass(frozen=True)
class StepOutput:
    """What one forward pass of a method gives.

    prediction: (B, C, H, W), with gradients
    target: shaped like it, without
    sigma: noise levels (B,)
    mask: (B, H, W), 1 where the loss counts, or None where all of it does
    """

    prediction: torch.Tensor
    target: torch.Tensor
    sigma: torch.Tensor
    mask: torch.Tensor | None = None


class Method(Protocol):
    """What the loop asks of a method."""

    def strength(self, step: int) -> float:
        """Return the LoRA's strength in this step, forward and backward."""

    def run_step(self, model: Denoiser, network: LoRANetwork, step: int, rng: torch.Generator) -> StepOutput:
        """Run the forward passes of one batch; `rng` lives on the model's device."""

    def skip(self, batches: int) -> None:
        """Go past the first batches, which a training that goes on has had."""
