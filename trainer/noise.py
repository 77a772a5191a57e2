"""Draws noise and timesteps.

All are drawn on the CPU: a seed then gives the same values on every device, and the timesteps of flow models need float64,
which Apple's GPUs and most of Intel's do not have.
"""

from __future__ import annotations

import math
from typing import Sequence

import torch

from .config import LOGIT_NORMAL, RESOLUTION_SHIFT, UNIFORM, USUAL, TrainingConfig
from .denoiser import TIMESTEPS, Denoiser

REFERENCE_PIXELS = 1024 * 1024  # images of this size are not shifted by their resolution


def draw_noise(shape: Sequence[int], device: torch.device, rng: torch.Generator, offset: float = 0.0) -> torch.Tensor:
    """Draw Gaussian noise of unit variance, float32 of the given shape (B, C, H, W), and move it to the device.

    offset: each channel of each example gets a number of this standard deviation added (noise offset), so that the model
        learns brightness and contrast of whole images, which plain noise hardly hides
    """
    noise = torch.randn(shape, generator=rng, dtype=torch.float32)
    if offset:
        noise += offset * torch.randn((*shape[:2], *[1] * len(shape[2:])), generator=rng)
    return to_device(noise, device)


def draw_sigma(
    model: Denoiser,
    batch: int,
    config: TrainingConfig,
    rng: torch.Generator,
    shape: Sequence[int] | None = None,
) -> torch.Tensor:
    """Draw the noise levels (B,) of a batch from the config's distribution within its timesteps.

    shape: of the latents, (..., h, w), for the resolution shift; None is no shift
    """
    draws, kind, is_flow = 1 if config.fixed_timestep_in_batch else batch, config.timesteps, _is_flow(model)
    low, high = config.min_timestep, config.max_timestep
    if kind == USUAL:
        kind = LOGIT_NORMAL if is_flow else UNIFORM
    if kind == UNIFORM:
        t = (
            _draw_uniform(draws, low, high, rng)
            if is_flow
            else torch.randint(low, high, (draws,), generator=rng).float()
        )
    else:
        shift = _resolution_shift(model, shape) if kind == RESOLUTION_SHIFT and shape else 0.0
        t = _draw_logit_normal(draws, low, high, rng, shift)
    return model.sigma_at(t.expand(batch))


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Move a tensor to a device; from the CPU without waiting for the copy, unless it has gradients."""
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu" and not tensor.requires_grad:
        # Pinned, or the copy would wait for all queued work.
        return tensor.contiguous().pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _is_flow(model: Denoiser) -> bool:
    return model.parameterization.logit_normal_timesteps


def _resolution_shift(model: Denoiser, shape: Sequence[int]) -> float:
    """Return by how much the resolution shifts the logit of t, in which SD3's shift of t is a sum (arXiv 2403.03206, eq. 23).

    An image of n times as many pixels needs sqrt(n) times the noise to hide as much.
    """
    pixels = shape[-2] * shape[-1] * model.pixels_per_latent**2
    return 0.5 * math.log(pixels / REFERENCE_PIXELS)


def _draw_uniform(draws: int, low: int, high: int, rng: torch.Generator) -> torch.Tensor:
    """Draw t of a flow model, which need not be an integer, uniformly from [low, high)."""
    u = torch.rand(draws, generator=rng, dtype=torch.float64)
    return _inside(low + u * (high - low), low, high)


def _draw_logit_normal(draws: int, low: int, high: int, rng: torch.Generator, shift: float) -> torch.Tensor:
    """Draw t = 1000 * sigmoid(shift + standard normal), truncated to [low, high), by the inverse of its distribution."""
    limits = torch.special.ndtr(torch.logit(torch.tensor([low, high], dtype=torch.float64) / TIMESTEPS) - shift)
    u = torch.rand(draws, generator=rng, dtype=torch.float64)
    normal = torch.special.ndtri(limits[0].item() + u * (limits[1] - limits[0]).item())
    return _inside(TIMESTEPS * torch.sigmoid(normal + shift), low, high)


def _inside(t: torch.Tensor, low: int, high: int) -> torch.Tensor:
    """Return timesteps as float32, apart from 0 and 1000, at which something would be divided by zero."""
    return t.clamp(max(low, 1e-3), high - 1e-3).float()
