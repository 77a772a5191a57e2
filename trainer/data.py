"""What a training learns from, and how batches of one frame are drawn."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .buckets import Frame
from .denoiser import Conditioning


@dataclass(frozen=True, eq=False)
class TrainingImage:
    """A picture cropped to its frame. Pixels are shared between outputs: do not write to them."""

    pixels: torch.Tensor  # (H, W, 3), uint8 as files hold it, or float32 in [0, 1]
    caption: str
    mask: torch.Tensor | None  # (H, W), bool, True where the loss is taken; None when that is everywhere
    name: str  # of the picture it comes from, for messages
    source_size: Frame  # width, height of that picture in pixels
    mirrored: bool = False
    repeats: int = 1  # times it counts in one epoch

    @property
    def frame(self) -> Frame:
        """Return width, height in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]

    @property
    def scale(self) -> float:
        """Return the factor the picture was scaled by to cover the frame; above 1 it was enlarged."""
        return max(side / source for side, source in zip(self.frame, self.source_size))

    @property
    def crop_loss(self) -> float:
        """Return the part of the picture that lies outside the frame, in [0, 1)."""
        kept = self.frame[0] * self.frame[1] / self.scale**2
        return max(0.0, 1 - kept / (self.source_size[0] * self.source_size[1]))


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """A picture and its caption as other nodes have encoded them.

    latent: (C, H, W) as the VAE makes it, not yet in the model's scale
    """

    latent: torch.Tensor
    conditioning: Conditioning
    repeats: int = 1


@dataclass(frozen=True, eq=False)
class TrainingExample:
    """What a method learns from.

    latent: (C, H, W) clean latents in the model's scale, on its device
    conditioning: the caption as the host encodes it
    mask: (H, W) float, 1 where the loss is taken; None when that is everywhere
    """

    latent: torch.Tensor
    conditioning: Conditioning
    mask: torch.Tensor | None = None


def draw_batches(
    frames: Sequence[Hashable], batch_size: int, generator: torch.Generator, repeats: Sequence[int] | None = None
) -> Iterator[list[int]]:
    """Yield batches of indices into `frames` without end; all indices of a batch have the same frame.

    In one epoch index i is drawn `repeats[i]` times (once if not given), in random order; a frame comes in proportion
    to what is left of it, and its last batch may be smaller. The same generator state draws the same batches.
    """
    if batch_size < 1:
        raise ValueError(f"The batch size is {batch_size}: set it to 1 or more.")
    if not frames or (repeats is not None and min(repeats) < 1):
        raise ValueError("There are no images to draw from." if not frames else "repeats must be 1 or more.")
    buckets: dict[Hashable, list[int]] = {}
    for index, frame in enumerate(frames):
        buckets.setdefault(frame, []).extend([index] * (repeats[index] if repeats else 1))
    return _draw_epochs(list(buckets.values()), batch_size, generator)


def _draw_epochs(buckets: list[list[int]], batch_size: int, generator: torch.Generator) -> Iterator[list[int]]:
    while True:
        left = [_shuffle(bucket, generator) for bucket in buckets]
        while any(left):
            bucket = _draw_bucket(left, generator)
            yield bucket[-batch_size:]
            del bucket[-batch_size:]


def _shuffle(bucket: list[int], generator: torch.Generator) -> list[int]:
    order = torch.randperm(len(bucket), generator=generator, device=generator.device)
    return [bucket[place] for place in order.tolist()]


def _draw_bucket(left: list[list[int]], generator: torch.Generator) -> list[int]:
    total = sum(len(bucket) for bucket in left)
    ticket = int(torch.randint(total, (), generator=generator, device=generator.device))
    for bucket in left:
        if ticket < len(bucket):
            return bucket
        ticket -= len(bucket)
    raise AssertionError("a ticket is always below the total")


def mask_at(mask: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
    """Scale a picture's mask (H, W) to its latent (C, h, w), nearest, on the latent's device, as float 0 or 1.

    A mask too thin to meet a latent pixel keeps the pixels that it touches.
    """
    small = F.interpolate(mask[None, None].float(), latent.shape[-2:], mode="nearest-exact")
    if not small.any():
        small = F.adaptive_max_pool2d(mask[None, None].float(), latent.shape[-2:])
    return small[0, 0].to(latent.device)


def stack_masks(batch: Sequence[TrainingExample]) -> torch.Tensor | None:
    """Return the masks of a batch (B, h, w), or None where all of every example counts."""
    if all(example.mask is None for example in batch):
        return None
    full = torch.ones(batch[0].latent.shape[-2:], device=batch[0].latent.device)
    return torch.stack([full if example.mask is None else example.mask for example in batch])
