"""Slider: learns the direction from one prompt to another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import torch

from ..config import TrainingConfig
from ..denoiser import Conditioning, Denoiser
from ..network import LoRANetwork
from . import StepOutput
from .prompt_latents import PromptLatents


@dataclass(frozen=True, eq=False)
class Poles:
    """Holds the two ends of a slider, and the prompt that it acts on."""

    positive: Conditioning
    negative: Conditioning
    acts_on: Conditioning


class Slider:
    """Trains the direction from a negative to a positive prompt: a positive strength moves images towards the positive one.

    Concept Sliders (Gandikota et al. 2023, arXiv 2311.12092). In even steps the LoRA, at strength 1, learns to predict for
    the prompt it acts on what the model without it predicts, moved by guidance * (positive - negative). Odd steps train the
    reverse direction at strength -1.

    poles: used in turn, the same ones for both directions
    shape: of one latent, (C, h, w)
    denoise_steps: see PromptLatents
    guidance: how far strength 1 moves, as a multiple of the difference of the poles
    """

    def __init__(
        self, poles: Sequence[Poles], shape: Sequence[int], denoise_steps: int, guidance: float, config: TrainingConfig
    ) -> None:
        self.guidance, self.config = guidance, config
        self._latents = PromptLatents(shape, denoise_steps, config)
        self._poles, self._drawn = poles, 0  # batches

    def strength(self, step: int) -> float:
        """Return the LoRA's strength in a step (from 0)."""
        return -1.0 if step % 2 else 1.0

    def run_step(self, model: Denoiser, network: LoRANetwork, step: int, rng: torch.Generator) -> StepOutput:
        """Predict a batch of prompts with the LoRA, and the same prompts, moved along the slider, without it."""
        poles, end = self._draw_turn()
        prompts = [each.acts_on for each in poles]
        x_t, sigma = self._latents.draw(model, prompts, end, rng)
        with torch.no_grad(), network.scaled(0.0):
            target, positive, negative = (
                model.predict(x_t, sigma, [getattr(each, side) for each in poles])
                for side in ("acts_on", "positive", "negative")
            )
        target += self.strength(step) * self.guidance * (positive - negative)
        return StepOutput(model.predict(x_t, sigma, prompts), target, sigma)

    def skip(self, batches: int) -> None:
        """Skip the first batches, which a resumed training has already used."""
        for _ in range(batches):
            self._draw_turn()

    def _draw_turn(self) -> tuple[list[Poles], float]:
        """Return the next batch of poles, and the timestep at which their denoising ends."""
        step, part = divmod(self._drawn, self.config.gradient_accumulation)
        first = (step // 2 * self.config.gradient_accumulation + part) * self.config.batch_size
        self._drawn += 1
        indices = range(first, first + self.config.batch_size)
        return [self._poles[index % len(self._poles)] for index in indices], self._latents.draw_end()
