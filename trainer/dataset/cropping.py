"""Crops an image to a resolution: resizes it until it covers the resolution, then cuts out the center."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .buckets import Resolution
from .image_on_disk import ImageLike, ImageOnDisk, size_of


def crop_image(image: ImageLike, resolutions: Sequence[Resolution]) -> list[torch.Tensor]:
    """Return one crop per resolution, (H, W, 3): uint8 from a file of 8 bits, float32 in [0, 1] otherwise."""
    if isinstance(image, ImageOnDisk) and not image.is_deep:
        resized = image.resize([_covering_size(image.size, resolution) for resolution in resolutions])
        return [_cut_center(pixels, resolution) for pixels, resolution in zip(resized, resolutions)]
    pixels = image.pixels() if isinstance(image, ImageOnDisk) else image
    return [
        pixels if size_of(pixels) == resolution else cover(pixels, resolution, "bicubic").clamp_(0, 1)
        for resolution in resolutions
    ]


def cover(pixels: torch.Tensor, resolution: Resolution, mode: str) -> torch.Tensor:
    """Return pixels (H, W, C) float resized by an interpolation mode of PyTorch and cut to the resolution."""
    width, height = _covering_size(size_of(pixels), resolution)
    batch = pixels.permute(2, 0, 1)[None]
    resized = F.interpolate(batch, size=(height, width), mode=mode, antialias=mode == "bicubic")[0]
    return _cut_center(resized.permute(1, 2, 0), resolution)


def _covering_size(size: Resolution, resolution: Resolution) -> Resolution:
    scale = max(resolution[0] / size[0], resolution[1] / size[1])
    return max(resolution[0], round(size[0] * scale)), max(resolution[1], round(size[1] * scale))


def _cut_center(pixels: torch.Tensor, resolution: Resolution) -> torch.Tensor:
    width, height = size_of(pixels)
    top, left = (height - resolution[1]) // 2, (width - resolution[0]) // 2
    return pixels[top : top + resolution[1], left : left + resolution[0]].contiguous()
