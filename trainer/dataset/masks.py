"""Masks say where the loss is taken: crops them with their image, and scales them to its latent."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .buckets import Resolution
from .cropping import cover
from .image_on_disk import ImageLike, ImageOnDisk

MASK_THRESHOLD = 0.1  # more alpha than this is trained
RATIO_TOLERANCE = 0.02  # relative difference of aspect ratio that a mask may have from its image (rounding)


def crop_mask(mask: ImageLike | None, resolutions: Sequence[Resolution]) -> list[torch.Tensor | None]:
    """Return one crop per resolution, (H, W) bool, or None where the whole image is trained.

    mask: (H, W) float in [0, 1], or a file whose alpha is the mask
    """
    if mask is None or (isinstance(mask, ImageOnDisk) and not mask.has_alpha):
        return [None] * len(resolutions)
    alpha = mask.alpha() if isinstance(mask, ImageOnDisk) else mask
    trained = (alpha > MASK_THRESHOLD)[:, :, None].float()
    crops = [cover(trained, resolution, "nearest-exact")[:, :, 0] > 0 for resolution in resolutions]
    return [None if bool(crop.all()) else crop for crop in crops]


def has_same_ratio(mask_size: Resolution, image_size: Resolution) -> bool:
    """Tell whether a mask has the aspect ratio of its image, up to rounding."""
    ratio, expected = mask_size[0] / mask_size[1], image_size[0] / image_size[1]
    return abs(ratio / expected - 1) <= RATIO_TOLERANCE


def mask_at(mask: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
    """Scale an image's mask (H, W) to its latent (C, h, w), nearest: (h, w) float 0 or 1 on the latent's device.

    A mask too thin to hit a latent pixel keeps the pixels it touches.
    """
    small = F.interpolate(mask[None, None].float(), latent.shape[-2:], mode="nearest-exact")
    if not small.any():
        small = F.adaptive_max_pool2d(mask[None, None].float(), latent.shape[-2:])
    return small[0, 0].to(latent.device)
