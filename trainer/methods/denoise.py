"""LoRA training: the denoising loss on captioned images."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle
from typing import Iterator, Sequence

import torch

from ..caption_draw import CaptionDraw
from ..config import TrainingConfig
from ..denoiser import Conditioning, Denoiser, TextEncoder
from ..network import LoRANetwork
from ..noise import draw_noise, draw_sigma
from ..training_example import TrainingExample, stack_masks, stack_weights
from . import StepOutput


@dataclass(frozen=True, eq=False)
class Preserved:
    """Prompts whose images must stay as they are; they double the batch.

    prompts: used in turn; as text if the text encoder is trained
    weight: of their loss, against 1 for the images'
    """

    prompts: Sequence[Conditioning]
    weight: float = 1.0


class Denoise:
    """Trains the LoRA to denoise the examples, each with its own caption.

    batches: yields the example indices of each batch, all of one latent size
    text_encoder: the one that is trained, which encodes the captions in every step; the examples' conditioning is then text
    captions: draws the captions of each batch, or None for those of the examples
    preserved: for these prompts the LoRA learns to predict, for the same noisy images, what the model without it predicts
    """

    def __init__(
        self,
        examples: Sequence[TrainingExample],
        batches: Iterator[list[int]],
        config: TrainingConfig,
        text_encoder: TextEncoder | None = None,
        captions: CaptionDraw | None = None,
        preserved: Preserved | None = None,
    ) -> None:
        self.examples, self.batches, self.config, self.text_encoder = examples, batches, config, text_encoder
        self.captions, self.preserved = captions, preserved
        self._prompts = cycle(preserved.prompts) if preserved else None
        self._without_lora: dict[str, Conditioning] = {}  # preserved prompts that a text encoder has encoded

    def strength(self, step: int) -> float:
        """Return the LoRA's strength in a step (from 0)."""
        return 1.0

    def run_step(self, model: Denoiser, network: LoRANetwork, step: int, rng: torch.Generator) -> StepOutput:
        """Predict a batch of noisy examples."""
        batch, captions, preserved = self._draw_batch()
        x0 = torch.stack([example.latent for example in batch])
        sigma = draw_sigma(model, len(batch), self.config, rng, x0.shape)
        noise = draw_noise(x0.shape, model.device, rng, self.config.noise_offset)
        x_t = model.add_noise(x0, noise, sigma)
        target = model.parameterization.target(x_t, x0, sigma)
        mask, weight = stack_masks(batch), stack_weights(batch)
        if preserved:
            with torch.no_grad(), network.scaled(0.0):
                target = _alternate(target, model.predict(x_t, sigma, self._encode_without_lora(preserved)))
            x_t, sigma = _alternate(x_t, x_t), _alternate(sigma, sigma)
            mask = None if mask is None else _alternate(mask, torch.ones_like(mask))
            weight = self._weight_of_both(weight, len(batch), model.device)
            captions = [prompt for both in zip(captions, preserved) for prompt in both]
        return StepOutput(model.predict(x_t, sigma, self._encode(captions)), target, sigma, mask, weight)

    def skip(self, batches: int) -> None:
        """Skip the first batches, which a resumed training has already used."""
        for _ in range(batches):
            self._draw_batch()

    def _draw_batch(self) -> tuple[list[TrainingExample], list[Conditioning], list[Conditioning]]:
        """Return the next batch, its captions and as many preserved prompts; as text if a text encoder is trained."""
        indices = next(self.batches)
        batch = [self.examples[i] for i in indices]
        captions = self.captions.draw(indices) if self.captions else [example.conditioning for example in batch]
        return batch, captions, [next(self._prompts) for _ in batch] if self._prompts else []

    def _encode(self, prompts: Sequence[Conditioning]) -> Sequence[Conditioning]:
        return self.text_encoder.encode(prompts) if self.text_encoder else prompts

    def _encode_without_lora(self, prompts: Sequence[Conditioning]) -> Sequence[Conditioning]:
        """Encode preserved prompts while the LoRA is off: once, as the text encoder without it stays the same."""
        if self.text_encoder is None:
            return prompts
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._without_lora]
        if new:
            self._without_lora.update(zip(new, self.text_encoder.encode(new)))
        return [self._without_lora[prompt] for prompt in prompts]

    def _weight_of_both(self, weight: torch.Tensor | None, count: int, device: torch.device) -> torch.Tensor:
        """Return the weights (2 B,) of images and preserved prompts, so that the loss is the sum of both means."""
        images = torch.ones(count, device=device) if weight is None else weight
        return 2 * _alternate(images, torch.full_like(images, self.preserved.weight))


def _alternate(images: torch.Tensor, preserved: torch.Tensor) -> torch.Tensor:
    """Return the rows (2 B, ...) of images and of preserved prompts (B, ...) by turns.

    Not one half after the other: of several processes, each predicts only a slice of a batch without the LoRA, and must get
    the same images of the batch with it.
    """
    return torch.stack([images, preserved], 1).flatten(0, 1)
