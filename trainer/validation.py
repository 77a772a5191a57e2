"""The validation: the loss on images that are not trained on, which rises when the LoRA overfits."""

from __future__ import annotations

from dataclasses import replace
from typing import Sequence

import torch

from .config import TrainingConfig
from .denoiser import Denoiser, TextEncoder
from .loss import step_loss
from .methods import StepOutput
from .noise import draw_noise, draw_sigma
from .training_example import TrainingExample, stack_masks

BANDS = 4  # of the timesteps, in each of which the loss on each image is measured once


class Validation:
    """Measures the loss on held-out examples, always with the same noise and timesteps, also from training to training.

    every: steps between two measurements
    text_encoder: the one that is trained, or None; the examples' conditioning is then text
    """

    def __init__(
        self,
        examples: Sequence[TrainingExample],
        every: int,
        config: TrainingConfig,
        text_encoder: TextEncoder | None = None,
    ) -> None:
        self._examples, self._every, self._text_encoder = examples, every, text_encoder
        self._config, self._bands = config, _bands(config)

    def is_due(self, step: int) -> bool:
        """Return whether to measure after a step (from 1)."""
        return step % self._every == 0 or step == self._config.steps

    @torch.no_grad()
    def measure(self, model: Denoiser) -> float:
        """Return the mean loss over all examples and bands."""
        rng = torch.Generator().manual_seed(0)
        losses = [self._loss(model, example, band, rng) for example in self._examples for band in self._bands]
        return torch.stack(losses).mean().item()

    def _loss(
        self, model: Denoiser, example: TrainingExample, band: TrainingConfig, rng: torch.Generator
    ) -> torch.Tensor:
        x0 = example.latent[None]
        sigma = draw_sigma(model, 1, band, rng, x0.shape)
        x_t = model.add_noise(x0, draw_noise(x0.shape, model.device, rng), sigma)
        prompts = [example.conditioning]
        if self._text_encoder:
            with torch.enable_grad():  # by its gradient the denoiser knows a prompt that is different in every step
                prompts = self._text_encoder.encode(prompts)
        prediction, target = model.predict(x_t, sigma, prompts), model.parameterization.target(x_t, x0, sigma)
        return step_loss(StepOutput(prediction, target, sigma, stack_masks([example])), model, band)


def _bands(config: TrainingConfig) -> list[TrainingConfig]:
    """Return the config with each part of its timesteps."""
    low, high = config.min_timestep, config.max_timestep
    count = min(BANDS, high - low)
    ends = [low + (high - low) * number // count for number in range(count + 1)]
    return [replace(config, min_timestep=start, max_timestep=end) for start, end in zip(ends, ends[1:])]
