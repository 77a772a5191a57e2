"""iLECO (instant LECO): makes one prompt act like another."""

from __future__ import annotations

from itertools import cycle
from typing import Sequence

import torch

from ..config import TrainingConfig
from ..denoiser import Conditioning, Denoiser
from ..network import LoRANetwork
from . import StepOutput
from .prompt_latents import PromptLatents


class ILECO:
    """Trains the LoRA to predict for each original prompt what the model without it predicts for the target prompt.

    The latents are pure noise, so a step is only two forward passes. With denoise_steps the latents are partly denoised with
    the LoRA and the original prompt, as in LECO (Gandikota et al. 2023, arXiv 2303.07345): slower, but closer to sampling.

    pairs: (original, target) prompts, used in turn
    preserved: prompts whose prediction must not change; they double the batch
    shape: of one latent, (C, h, w)
    guidance: how far the prediction goes beyond the target, away from the original, as a multiple of their difference; 0 stops
        at the target, above 0 costs a third forward pass
    denoise_steps: see PromptLatents
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
        self.guidance, self.config = guidance, config
        self._latents = PromptLatents(shape, denoise_steps, config)
        self._pairs = cycle(pairs)
        self._preserved = cycle((prompt, prompt) for prompt in preserved) if preserved else None

    def strength(self, step: int) -> float:
        """Return the LoRA's strength in a step (from 0)."""
        return 1.0

    def run_step(self, model: Denoiser, network: LoRANetwork, step: int, rng: torch.Generator) -> StepOutput:
        """Predict a batch of original prompts with the LoRA, and their targets without it."""
        pairs, end = self._draw_turn()
        originals, targets = zip(*pairs)
        x_t, sigma = self._latents.draw(model, originals, end, rng)
        with torch.no_grad(), network.scaled(0.0):
            target = model.predict(x_t, sigma, targets)
            if self.guidance:
                target += self.guidance * (target - model.predict(x_t, sigma, originals))
        return StepOutput(model.predict(x_t, sigma, originals), target, sigma)

    def skip(self, batches: int) -> None:
        """Skip the first batches, which a resumed training has already used."""
        for _ in range(batches):
            self._draw_turn()

    def _draw_turn(self) -> tuple[list[tuple[Conditioning, Conditioning]], float]:
        """Return the next batch of prompt pairs, and the timestep at which their denoising ends."""
        turns = [source for source in (self._pairs, self._preserved) if source is not None]
        pairs = [next(source) for source in turns for _ in range(self.config.batch_size)]
        return pairs, self._latents.draw_end()
