"""The training methods: each defines the latents, prompts and strength behind the prediction and its target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from ..denoiser import Denoiser
from ..network import LoRANetwork


@dataclass(frozen=True)
class StepOutput:
    """Holds the result of one batch of a method.

    prediction: (B, C, H, W), with gradients
    target: (B, C, H, W), without gradients
    sigma: noise levels (B,)
    mask: (B, H, W), 1 where the loss is taken, or None for everywhere
    weight: (B,), factors on the examples' losses, or None for 1
    """

    prediction: torch.Tensor
    target: torch.Tensor
    sigma: torch.Tensor
    mask: torch.Tensor | None = None
    weight: torch.Tensor | None = None


class Method(Protocol):
    """Stands for a training method in the loop."""

    def strength(self, step: int) -> float:
        """Return the LoRA's strength in a step (from 0), for the forward and the backward pass."""

    def run_step(self, model: Denoiser, network: LoRANetwork, step: int, rng: torch.Generator) -> StepOutput:
        """Run the forward passes of one batch. step: from 0; rng: on the CPU"""

    def skip(self, batches: int) -> None:
        """Skip the first batches, which a resumed training has already used."""
