"""How alike images are to a CLIP vision model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import normalize


def image_similarities(clip_vision: Any, reference: torch.Tensor, images: Sequence[torch.Tensor]) -> list[float]:
    """Return the cosine of each image's embedding and the reference's, from -1 to 1.

    clip_vision: CLIP_VISION
    reference: (B, H, W, C) in [0, 1]; of several, the mean of their embeddings
    images: (H, W, 3) in [0, 1]
    """
    wanted = normalize(_embed(clip_vision, reference).mean(dim=0), dim=0)
    return [float(_embed(clip_vision, image[None])[0] @ wanted) for image in images]


def _embed(clip_vision: Any, images: torch.Tensor) -> torch.Tensor:
    """Return the embeddings (B, N) of images, each of length 1."""
    return normalize(clip_vision.encode_image(images[..., :3])["image_embeds"].float(), dim=-1)
