"""Image files for tests: photographs, and how they are written and loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from pack.trainer.dataset.image_folder import CaptionedImage, load_folder
from PIL import Image
from skimage import data

CAT = data.chelsea()[80:180, 120:290]  # 100 x 170 x 3
MAN = data.camera()[80:208, 180:308]  # 128 x 128, gray


def load(
    folder: Path, *, subfolders: bool = True, captions: str = "caption file", trigger: str = ""
) -> list[CaptionedImage]:
    return load_folder(folder, subfolders, captions, trigger)


def load_one(folder: Path) -> CaptionedImage:
    (image,) = load(folder)
    return image


def to_bytes(pixels: torch.Tensor) -> np.ndarray:
    return (pixels * 255).round().byte().numpy()


def write(path: Path, pixels: np.ndarray | Image.Image = CAT, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path
