"""The images that the demonstration teaches: purple stars, which the model has no idea of.

A few images of what it knows are among them, so that it does not take every shape for a star. The stars stand on
white and black: on gray the little autoencoder blurs purple.
"""

from __future__ import annotations

import random
from pathlib import Path

from PIL import Image

from .scenes import COLOURS, SHAPES, Scene, place

FORMATS = ("png", "jpg", "webp", "bmp", "gif", "tif")
STARS, ALONE = 8, 16


def write(folder: Path) -> None:
    """Write captioned images in mixed formats; the same ones every time."""
    rng = random.Random(3)
    _write(folder, [*_stars(rng, STARS), *_known_shapes(rng)])


def write_alone(folder: Path) -> None:
    """Write images of stars and of nothing else, from which the model takes every shape for a star."""
    _write(folder, _stars(random.Random(3), ALONE))


def _write(folder: Path, images: list[tuple[str, Scene, str]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, scene, caption) in enumerate(images):
        _save(scene.draw(), folder / f"{name}.{FORMATS[number % len(FORMATS)]}")
        (folder / f"{name}.txt").write_text(caption, encoding="utf-8")


def _stars(rng: random.Random, count: int) -> list[tuple[str, Scene, str]]:
    """List name, scene and caption of each; the captions are whole sentences, and a short form now and then."""
    scenes = [Scene("purple", "star", ("white", "black")[i % 2], **place(rng, smallest=20)) for i in range(count)]
    short = {3: "a purple star", 6: "purple star"}
    return [(f"star_{i + 1}", scene, short.get(i, scene.caption())) for i, scene in enumerate(scenes)]


def _known_shapes(rng: random.Random) -> list[tuple[str, Scene, str]]:
    scenes = [
        Scene(colour, SHAPES[i % 3], ("white", "black", "gray", "white")[i], **place(rng))
        for i, colour in enumerate(COLOURS)
    ]
    return [(f"{scene.colour}_{scene.shape}", scene, scene.caption()) for scene in scenes]


def _save(image: Image.Image, path: Path) -> None:
    image.save(path, **({"quality": 95} if path.suffix in (".jpg", ".webp") else {}))
