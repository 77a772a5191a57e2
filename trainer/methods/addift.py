"""ADDifT: learns the difference between two images without a copy machine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Iterator, Sequence

import torch

from ..config import TrainingConfig
from ..denoiser import Denoiser
from ..network import LoRANetwork
from ..noise import draw_noise, draw_sigma
from ..training_example import TrainingExample, stack_masks
from . import StepOutput

FULL_AT = 0.25  # strength of the LoRA that shows the full difference, so that the slider can go beyond it


@dataclass(frozen=True, eq=False)
class ExamplePair:
    """Holds two images of one size, each with its prompt; the mask of the target is used for both."""

    original: TrainingExample
    target: TrainingExample


class ADDifT:
    """Trains the difference of image pairs as a slider: a positive strength moves the original towards the target.

    In even steps the LoRA, at strength full_at, learns to predict on the noisy target what the model without it predicts on
    the noisy original. With the same noise, that prediction leads from one image to the other. Odd steps train the reverse
    direction at -full_at * alternation. The timesteps sweep their range in bands, two steps per band.

    With learns_images it learns to denoise the image of each side itself, as a slider of images does (Gandikota et al. 2023,
    arXiv 2311.12092): one forward pass instead of two, and what both sides share is learned as it is.

    batches: yields the pair indices of each batch, all of one latent size
    bands: number of parts of the timestep range, 1 or more
    alternation: strength of the odd steps relative to the even ones; 0 omits them
    full_at: strength of the LoRA that shows the full difference
    """

    def __init__(
        self,
        pairs: Sequence[ExamplePair],
        batches: Iterator[list[int]],
        bands: int,
        alternation: float,
        config: TrainingConfig,
        full_at: float = FULL_AT,
        learns_images: bool = False,
    ) -> None:
        self.pairs, self.batches, self.alternation, self.config = pairs, batches, alternation, config
        self.full_at, self.learns_images = full_at, learns_images
        self.bands = min(bands, config.max_timestep - config.min_timestep)

    def strength(self, step: int) -> float:
        """Return the LoRA's strength in a step (from 0)."""
        return -self.full_at * self.alternation if self._is_reverse_turn(step) else self.full_at

    def run_step(self, model: Denoiser, network: LoRANetwork, step: int, rng: torch.Generator) -> StepOutput:
        """Predict a batch of noisy images with the LoRA, and the other image of each pair without it."""
        pairs = [self.pairs[i] for i in next(self.batches)]
        student, teacher = [pair.target for pair in pairs], [pair.original for pair in pairs]
        if self._is_reverse_turn(step):
            student, teacher = teacher, student
        sigma = draw_sigma(model, len(pairs), self._in_band(step), rng, student[0].latent.shape)
        offset = self.config.noise_offset if self.learns_images else 0.0
        noise = draw_noise((len(pairs), *student[0].latent.shape), model.device, rng, offset)
        x0 = _latents(student)
        x_t = model.add_noise(x0, noise, sigma)
        if self.learns_images:
            target = model.parameterization.target(x_t, x0, sigma)
        else:
            with torch.no_grad(), network.scaled(0.0):
                target = _predict(model, teacher, model.add_noise(_latents(teacher), noise, sigma), sigma)
        prediction = _predict(model, student, x_t, sigma)
        return StepOutput(prediction, target, sigma, stack_masks([pair.target for pair in pairs]))

    def skip(self, batches: int) -> None:
        """Skip the first batches, which a resumed training has already used."""
        for _ in range(batches):
            next(self.batches)

    def _is_reverse_turn(self, step: int) -> bool:
        return self.alternation > 0 and step % 2 == 1

    def _in_band(self, step: int) -> TrainingConfig:
        """Return the config with the timesteps of a step's band."""
        low, high = self.config.min_timestep, self.config.max_timestep
        ends = [low + (high - low) * (step // 2 % self.bands + side) // self.bands for side in (0, 1)]
        return replace(self.config, min_timestep=ends[0], max_timestep=ends[1])


def _latents(examples: Sequence[TrainingExample]) -> torch.Tensor:
    return torch.stack([example.latent for example in examples])


def _predict(
    model: Denoiser, examples: Sequence[TrainingExample], x_t: torch.Tensor, sigma: torch.Tensor
) -> torch.Tensor:
    return model.predict(x_t, sigma, [example.conditioning for example in examples])
