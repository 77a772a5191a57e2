"""Draws of noise and of timesteps."""

from __future__ import annotations

from typing import Sequence

import torch

from .config import TrainingConfig
from .denoiser import TIMESTEPS, Denoiser


def draw_noise(shape: Sequence[int], rng: torch.Generator) -> torch.Tensor:
    """Draw Gaussian noise of unit variance on the generator's device."""
    return torch.randn(shape, generator=rng, device=rng.device, dtype=torch.float32)


def draw_sigma(model: Denoiser, batch: int, config: TrainingConfig, rng: torch.Generator) -> torch.Tensor:
    """Draw the noise levels (B,) of a batch, as the model's family is trained and within the config's timesteps."""
    draws = 1 if config.fixed_timestep_in_batch else batch
    if model.parameterization.logit_normal_timesteps:
        t = _draw_logit_normal(draws, config.min_timestep, config.max_timestep, rng)
    else:
        t = torch.randint(config.min_timestep, config.max_timestep, (draws,), generator=rng, device=rng.device).float()
    return model.sigma_at(t.expand(batch))


def _draw_logit_normal(draws: int, low: int, high: int, rng: torch.Generator) -> torch.Tensor:
    """Draw t = 1000 * sigmoid(standard normal), cut to [low, high), by the inverse of its distribution."""
    limits = torch.special.ndtr(torch.logit(torch.tensor([low, high], dtype=torch.float64) / TIMESTEPS))
    u = torch.rand(draws, generator=rng, device=rng.device, dtype=torch.float64)
    normal = torch.special.ndtri(limits[0].item() + u * (limits[1] - limits[0]).item())
    # The ends have no finite noise level to divide by.
    return (TIMESTEPS * torch.sigmoid(normal)).clamp(max(low, 1e-3), high - 1e-3).float()
