"""Draws the latents of methods that train from prompts alone."""

from __future__ import annotations

import random
from typing import Sequence

import torch

from ..config import TrainingConfig
from ..denoiser import TIMESTEPS, Conditioning, Denoiser, match_dims
from ..noise import draw_noise, draw_sigma


class PromptLatents:
    """Draws noisy latents without any image: pure noise, or noise that the model has partly denoised.

    shape: of one latent, (C, h, w)
    denoise_steps: Euler steps from pure noise to a clean image, of which each batch runs a random part, as in LECO (Gandikota
        et al. 2023, arXiv 2303.07345); 0 uses pure noise, which costs no forward pass
    """

    def __init__(self, shape: Sequence[int], denoise_steps: int, config: TrainingConfig) -> None:
        self.shape, self.denoise_steps, self.config = tuple(shape), denoise_steps, config
        self._end_timesteps = random.Random(config.seed)

    def draw_end(self) -> float:
        """Return the timestep at which the next batch's denoising ends; call it once per batch."""
        return self._end_timesteps.uniform(self.config.min_timestep, self.config.max_timestep)

    def draw(
        self, model: Denoiser, prompts: Sequence[Conditioning], end: float, rng: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return x_t (B, C, h, w) and its noise levels (B,), one for each prompt. end: from `draw_end`"""
        noise = draw_noise((len(prompts), *self.shape), model.device, rng)
        if self.denoise_steps:
            return self._denoise(model, prompts, noise, end)
        sigma = draw_sigma(model, len(prompts), self.config, rng, self.shape)
        return model.parameterization.scale_noise(noise, sigma), sigma

    @torch.no_grad()
    def _denoise(
        self, model: Denoiser, prompts: Sequence[Conditioning], noise: torch.Tensor, end: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        steps = max(1, round(self.denoise_steps * (1 - end / TIMESTEPS)))
        levels = model.sigma_at(torch.linspace(TIMESTEPS, end, steps + 1))
        sigmas = levels[:, None].expand(-1, len(prompts))
        x_t = model.parameterization.scale_noise(noise, sigmas[0])
        for sigma, following in zip(sigmas, sigmas[1:]):
            derivative = model.parameterization.derivative(x_t, model.predict(x_t, sigma, prompts), sigma)
            x_t = x_t + derivative * match_dims(following - sigma, x_t)
        return x_t, sigmas[-1]
