"""What tests of buckets and crops share: photographs in memory and on disk, and their way into buckets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from pack.trainer.dataset.buckets import BucketConfig, Resolution
from pack.trainer.dataset.fill_buckets import fill_buckets
from pack.trainer.dataset.image_decoding import to_unit_range
from pack.trainer.dataset.image_on_disk import ImageLike, ImageOnDisk, read_header
from pack.trainer.dataset.training_image import TrainingImage
from PIL import Image
from skimage import data

WHOLE_CAT = data.chelsea()  # 300 x 451 x 3


def photo(width: int, height: int) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.fromarray(data.astronaut()).resize((width, height)))).float() / 255


def save(path: Path, pixels: np.ndarray = WHOLE_CAT, **options: object) -> ImageOnDisk:
    Image.fromarray(pixels).save(path, **options)
    return read_header(path)


def fill(*images: torch.Tensor, masks: list[torch.Tensor] | None = None, **settings: object) -> list[TrainingImage]:
    config = BucketConfig(**{"width": 768, "height": 512, "step": 128, "min_length": 256} | settings)
    return fill_buckets(images, [f"caption {i}" for i in range(len(images))], masks, config)


def crop(*images: ImageLike, masks: list | None = None, **changed: int) -> list[TrainingImage]:
    config = BucketConfig(**{"width": 256, "height": 256, "step": 64, "min_length": 128} | changed)
    return fill_buckets(images, [""], masks, config)


def resolutions_of(*images: torch.Tensor, **settings: object) -> list[Resolution]:
    return [image.resolution for image in fill(*images, **settings)]


def to_bytes(pixels: torch.Tensor) -> np.ndarray:
    return (to_unit_range(pixels) * 255).round().numpy()
