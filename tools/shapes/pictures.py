"""The pictures that the demonstration teaches: purple stars, which the model has no idea of."""

from __future__ import annotations

import random
from pathlib import Path

from PIL import Image

from .world import BACKGROUNDS, Scene, place

FORMATS = ("png", "jpg", "webp", "bmp", "gif", "tif")
COUNT = 12


def write(folder: Path) -> None:
    """Write captioned pictures in mixed formats; the same ones every time."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(3)
    for number in range(COUNT):
        scene = Scene("purple", "star", list(BACKGROUNDS)[number % len(BACKGROUNDS)], **place(rng))
        name = f"star_{number + 1:02d}"
        ending = FORMATS[number % len(FORMATS)]
        _save(scene.draw(), folder / f"{name}.{ending}")
        (folder / f"{name}.txt").write_text(_caption(scene, number), encoding="utf-8")


def _caption(scene: Scene, number: int) -> str:
    """Whole sentences, and a short form now and then."""
    return ("purple star", scene.caption(), "a purple star", scene.caption())[number % 4]


def _save(image: Image.Image, path: Path) -> None:
    image.save(path, **({"quality": 95} if path.suffix in (".jpg", ".webp") else {}))
