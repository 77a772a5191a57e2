"""An image as it is trained: cropped to its bucket resolution, with caption and mask."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .buckets import Resolution


@dataclass(frozen=True, eq=False)
class TrainingImage:
    """An image cropped to its bucket resolution. Pixels are shared between outputs: do not write to them."""

    pixels: torch.Tensor  # (H, W, 3), uint8 as files hold it, or float32 in [0, 1]
    caption: str
    mask: torch.Tensor | None  # (H, W) bool, True where the loss is taken; None means everywhere
    name: str  # of the image it was cropped from, for messages
    source_size: Resolution  # width, height of that image in pixels
    mirrored: bool = False
    repeats: int = 1  # times it is used per epoch

    @property
    def resolution(self) -> Resolution:
        """Return width, height in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]

    @property
    def scale(self) -> float:
        """Return the factor the source image was resized by; above 1 it was enlarged."""
        return max(side / source for side, source in zip(self.resolution, self.source_size))

    @property
    def cropped_fraction(self) -> float:
        """Return the fraction of the source image's area that was cropped away, in [0, 1)."""
        kept = self.resolution[0] * self.resolution[1] / self.scale**2
        return max(0.0, 1 - kept / (self.source_size[0] * self.source_size[1]))
