"""Training examples: clean latents with their conditioning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .denoiser import Conditioning
from .noise import to_device


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """Holds an image and its caption, encoded by other nodes.

    latent: (C, H, W) as the VAE makes it, not yet in the model's scale
    repeats: how often it is used per epoch
    mask: (H, W) bool at any resolution, True where the loss is taken, or None for everywhere
    """

    latent: torch.Tensor
    conditioning: Conditioning
    repeats: int = 1
    mask: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class TrainingExample:
    """Holds an encoded image and its caption, ready for training.

    latent: (C, H, W) clean latent in the model's scale, on its device
    conditioning: the prompt as the host encodes it
    mask: (H, W) float, 1 where the loss is taken, or None for everywhere
    weight: factor on its loss
    """

    latent: torch.Tensor
    conditioning: Conditioning
    mask: torch.Tensor | None = None
    weight: float = 1.0


def stack_masks(batch: Sequence[TrainingExample]) -> torch.Tensor | None:
    """Return the masks of a batch, (B, H, W) float, or None if no example has a mask."""
    if all(example.mask is None for example in batch):
        return None
    full = torch.ones(batch[0].latent.shape[-2:], device=batch[0].latent.device)
    return torch.stack([full if example.mask is None else example.mask for example in batch])


def stack_weights(batch: Sequence[TrainingExample]) -> torch.Tensor | None:
    """Return the weights of a batch, (B,), or None if all are 1."""
    if all(example.weight == 1 for example in batch):
        return None
    return to_device(torch.tensor([example.weight for example in batch]), batch[0].latent.device)
