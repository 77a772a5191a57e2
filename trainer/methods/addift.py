"""ADDifT: what differs between two pictures, learned without a copy machine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Iterator, Sequence

import torch

from ..config import TrainingConfig
from ..data import TrainingExample, stack_masks
from ..denoiser import Denoiser
from ..network import LoRANetwork
from ..noise import draw_noise, draw_sigma
from . import StepOutput

STRENGTH = 0.25  # the LoRA holds the difference at a quarter of its strength: a slider reaches beyond the pair


@dataclass(frozen=True, eq=False)
class ExamplePair:
    """Two pictures of one size, each with its caption; the mask of the target is that of both."""

    original: TrainingExample
    target: TrainingExample


class ADDifT:
    """Alternates between the two directions of a difference; a positive strength moves original towards target.

    Even turns teach the LoRA at +STRENGTH to predict on the noisy target what the bare model predicts on the noisy
    original: where the noise is the same, that prediction leads from the one picture to the other. Odd turns
    teach it the way back at -STRENGTH * alternation. The timesteps sweep their range in bands, one for two turns.

    batches: draws the indices of the next batch's pairs, all of one latent size
    bands: parts of the range of timesteps, 1 or more
    alternation: strength of the odd turns against the even ones; 0 leaves them out
    """

    def __init__(
        self,
        pairs: Sequence[ExamplePair],
        batches: Iterator[list[int]],
        bands: int,
        alternation: float,
        config: TrainingConfig,
    ) -> None:
        self.pairs, self.batches, self.alternation, self.config = pairs, batches, alternation, config
        self.bands = min(bands, config.max_timestep - config.min_timestep)

    def strength(self, step: int) -> float:
        return -STRENGTH * self.alternation if self._is_way_back(step) else STRENGTH

    def run_step(self, model: Denoiser, network: LoRANetwork, step: int, rng: torch.Generator) -> StepOutput:
        pairs = [self.pairs[i] for i in next(self.batches)]
        student, teacher = [pair.target for pair in pairs], [pair.original for pair in pairs]
        if self._is_way_back(step):
            student, teacher = teacher, student
        sigma = draw_sigma(model, len(pairs), self._in_band(step), rng)
        noise = draw_noise((len(pairs), *student[0].latent.shape), rng)
        with torch.no_grad(), network.scaled(0.0):
            target = _predict(model, teacher, noise, sigma)
        prediction = _predict(model, student, noise, sigma)
        return StepOutput(prediction, target, sigma, stack_masks([pair.target for pair in pairs]))

    def skip(self, batches: int) -> None:
        for _ in range(batches):
            next(self.batches)

    def _is_way_back(self, step: int) -> bool:
        return self.alternation > 0 and step % 2 == 1

    def _in_band(self, step: int) -> TrainingConfig:
        """Return the config with the timesteps of this turn's band."""
        low, high = self.config.min_timestep, self.config.max_timestep
        ends = [low + (high - low) * (step // 2 % self.bands + side) // self.bands for side in (0, 1)]
        return replace(self.config, min_timestep=ends[0], max_timestep=ends[1])


def _predict(
    model: Denoiser, examples: Sequence[TrainingExample], noise: torch.Tensor, sigma: torch.Tensor
) -> torch.Tensor:
    x_t = model.add_noise(torch.stack([example.latent for example in examples]), noise, sigma)
    return model.predict(x_t, sigma, [example.conditioning for example in examples])
