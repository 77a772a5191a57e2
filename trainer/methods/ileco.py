"""iLECO, instant concept editing: one prompt learns to act like another."""

from __future__ import annotations

import random
from itertools import cycle
from typing import Sequence

import torch

from ..config import TrainingConfig
from ..denoiser import TIMESTEPS, Conditioning, Denoiser, match_dims
from ..network import LoRANetwork
from ..noise import draw_noise, draw_sigma
from . import StepOutput


class ILECO:
    """Learns to predict for each original prompt what the bare model predicts for its target.

    The latents are noise alone, so a step is two forward passes; that makes it instant. With denoise_steps they come
    from a partial denoising of the prompts with the LoRA on, as LECO has them (Gandikota et al. 2023, arXiv
    2303.07345): slower, and nearer to what sampling meets.

    pairs: (original, target) prompts, taken in turn
    preserved: prompts whose prediction must stay what it is; they double the batch
    shape: of one latent, (C, h, w)
    guidance: how far the prediction goes beyond the target, away from the original, in lengths of the way between them
        (a third forward pass); 0 stops at the target
    denoise_steps: Euler steps of a whole denoising, of which each step of the training does a random part; 0 for noise
    """

    def __init__(
        self,
        pairs: Sequence[tuple[Conditioning, Conditioning]],
        preserved: Sequence[Conditioning],
        shape: Sequence[int],
        denoise_steps: int,
        guidance: float,
        config: TrainingConfig,
    ) -> None:
        self.shape, self.denoise_steps, self.guidance, self.config = tuple(shape), denoise_steps, guidance, config
        self._pairs = cycle(pairs)
        self._preserved = cycle((prompt, prompt) for prompt in preserved) if preserved else None
        self._ends = random.Random(config.seed)

    def strength(self, step: int) -> float:
        return 1.0

    def run_step(self, model: Denoiser, network: LoRANetwork, step: int, rng: torch.Generator) -> StepOutput:
        pairs, end = self._draw_turn()
        originals, targets = zip(*pairs)
        x_t, sigma = self._draw_latents(model, originals, end, rng)
        with torch.no_grad(), network.scaled(0.0):
            target = model.predict(x_t, sigma, targets)
            if self.guidance:
                target += self.guidance * (target - model.predict(x_t, sigma, originals))
        return StepOutput(model.predict(x_t, sigma, originals), target, sigma)

    def skip(self, batches: int) -> None:
        for _ in range(batches):
            self._draw_turn()

    def _draw_turn(self) -> tuple[list[tuple[Conditioning, Conditioning]], float]:
        """Return the next batch's pairs, and the timestep at which a denoising of them ends."""
        turns = [source for source in (self._pairs, self._preserved) if source is not None]
        pairs = [next(source) for source in turns for _ in range(self.config.batch_size)]
        return pairs, self._ends.uniform(self.config.min_timestep, self.config.max_timestep)

    def _draw_latents(
        self, model: Denoiser, prompts: Sequence[Conditioning], end: float, rng: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return x_t and its noise levels."""
        noise = draw_noise((len(prompts), *self.shape), rng)
        if self.denoise_steps:
            return self._denoise(model, prompts, noise, end)
        sigma = draw_sigma(model, len(prompts), self.config, rng)
        return model.parameterization.scale_noise(noise, sigma), sigma

    @torch.no_grad()
    def _denoise(
        self, model: Denoiser, prompts: Sequence[Conditioning], noise: torch.Tensor, end: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Denoise from noise alone to the timestep `end`."""
        steps = max(1, round(self.denoise_steps * (1 - end / TIMESTEPS)))
        levels = model.sigma_at(torch.linspace(TIMESTEPS, end, steps + 1, device=noise.device))
        sigmas = levels[:, None].expand(-1, len(prompts))
        x_t = model.parameterization.scale_noise(noise, sigmas[0])
        for sigma, following in zip(sigmas, sigmas[1:]):
            slope = model.parameterization.slope(x_t, model.predict(x_t, sigma, prompts), sigma)
            x_t = x_t + slope * match_dims(following - sigma, x_t)
        return x_t, sigmas[-1]
