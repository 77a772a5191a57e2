"""LoRA: the denoising loss on captioned images."""

from __future__ import annotations

from typing import Iterator, Sequence

import torch

from ..config import TrainingConfig
from ..data import TrainingExample, stack_masks
from ..denoiser import Denoiser, TextEncoder
from ..network import LoRANetwork
from ..noise import draw_noise, draw_sigma
from . import StepOutput


class Denoise:
    """Learns to take noise off the examples, each with its own caption.

    batches: draws the indices of the next batch's examples, all of one latent size
    text_encoder: encodes the captions in every step where it is trained, too; the examples' conditioning is then text
    """

    def __init__(
        self,
        examples: Sequence[TrainingExample],
        batches: Iterator[list[int]],
        config: TrainingConfig,
        text_encoder: TextEncoder | None = None,
    ) -> None:
        self.examples, self.batches, self.config, self.text_encoder = examples, batches, config, text_encoder

    def strength(self, step: int) -> float:
        return 1.0

    def run_step(self, model: Denoiser, network: LoRANetwork, step: int, rng: torch.Generator) -> StepOutput:
        batch = [self.examples[i] for i in next(self.batches)]
        x0 = torch.stack([example.latent for example in batch])
        sigma = draw_sigma(model, len(batch), self.config, rng)
        x_t = model.add_noise(x0, draw_noise(x0.shape, rng), sigma)
        captions = [example.conditioning for example in batch]
        prediction = model.predict(x_t, sigma, self.text_encoder.encode(captions) if self.text_encoder else captions)
        return StepOutput(prediction, model.parameterization.target(x_t, x0, sigma), sigma, stack_masks(batch))

    def skip(self, batches: int) -> None:
        for _ in range(batches):
            next(self.batches)
