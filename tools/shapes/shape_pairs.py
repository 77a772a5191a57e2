"""Pairs of images that differ in one thing, what they show, and what tells whether an image has that thing."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from .classify import NEAR, classify
from .scenes import BACKGROUNDS, COLOURS, NEW_COLOURS, SHAPES, SIZE, Scene

ORIGINAL = Scene("red", "circle", "white", radius=18)
COUNT = 12  # of the pairs in a folder
BAR = 10  # pixels from the lower edge: the part that the model has no word for


@dataclass(frozen=True)
class Pair:
    """Two images and their questions.

    caption: what both show, in words
    has: tells whether an image has what the target has more
    cleaned: takes the difference out of an image for the classifier
    prompts: that do not name the difference, each with its scene
    kept: the attributes of the scene that the prompt names
    more: as many pairs for a folder: originals, targets and captions
    """

    original: Image.Image
    target: Image.Image
    caption: str
    has: Callable[[Image.Image], bool]
    cleaned: Callable[[Image.Image], Image.Image]
    prompts: list[tuple[str, Scene]]
    kept: tuple[str, ...]
    more: tuple[tuple[Image.Image, Image.Image, str], ...] = ()


def _scenes() -> list[Scene]:
    """Return scenes of every colour, shape and background, with room for the bar."""
    rng, scenes = random.Random(3), []
    for i in range(COUNT):
        colour, shape, background = list(COLOURS)[i % 4], SHAPES[i // 2 % 3], list(BACKGROUNDS)[i % 3]
        radius = rng.uniform(14, 18)
        x, y = rng.uniform(radius + 2, SIZE - radius - 2), rng.uniform(radius + 2, SIZE - radius - BAR - 4)
        scenes.append(Scene(colour, shape, background, x=x, y=y, radius=radius))
    return scenes


def has_bar(image: Image.Image) -> bool:
    """Tell whether a bar near the drawn purple lies along the lower edge."""
    strip = np.asarray(image.convert("RGB"), dtype=np.float32)[-BAR + 2 :].reshape(-1, 3)
    return float(np.linalg.norm(np.median(strip, axis=0) - NEW_COLOURS["purple"])) < NEAR


def without_bar(image: Image.Image) -> Image.Image:
    """Paint the background over the place of the bar, for the classifier."""
    pixels = np.asarray(image.convert("RGB")).copy()
    pixels[-BAR - 4 :] = np.median(pixels[0], axis=0)
    return Image.fromarray(pixels)


def _with_bar(image: Image.Image) -> Image.Image:
    drawn = image.copy()
    ImageDraw.Draw(drawn).rectangle((0, SIZE - BAR, SIZE, SIZE), fill=NEW_COLOURS["purple"])
    return drawn


def _others(caption: str, prompts: list[tuple[str, Scene]]) -> list[tuple[str, Scene]]:
    """Leave out the prompt that is trained."""
    return [prompt for prompt in prompts if prompt[0] != caption]


PAIRS = {
    "background": Pair(
        ORIGINAL.draw(),
        replace(ORIGINAL, background="black").draw(),
        "a red circle",
        lambda image: classify(image).background == "black",
        lambda image: image,
        _others("a red circle", [(f"a {c} {s}", Scene(c, s, "white")) for c in COLOURS for s in SHAPES]),
        ("colour", "shape"),
    ),
    "colour": Pair(
        ORIGINAL.draw(),
        replace(ORIGINAL, colour="blue").draw(),
        "a circle on a white background",
        lambda image: classify(image).colour == "blue",
        lambda image: image,
        _others(
            "a circle on a white background",
            [(f"a {s} on a {b} background", Scene("red", s, b)) for s in SHAPES for b in BACKGROUNDS],
        ),
        ("shape", "background"),
        tuple(
            (
                replace(scene, colour="red").draw(),
                replace(scene, colour="blue").draw(),
                f"a {scene.shape}",
            )
            for scene in _scenes()
        ),
    ),
    "part": Pair(
        ORIGINAL.draw(),
        _with_bar(ORIGINAL.draw()),
        "a red circle on a white background",
        has_bar,
        without_bar,
        _others(
            ORIGINAL.caption(),
            [(s.caption(), s) for s in (Scene(c, s, b) for c in COLOURS for s in SHAPES for b in BACKGROUNDS)],
        ),
        ("colour", "shape", "background"),
        tuple(
            (
                scene.draw(),
                _with_bar(scene.draw()),
                f"{scene.colour} {scene.shape}, {scene.background} background",
            )
            for scene in _scenes()
        ),
    ),
}


def write(folder: Path) -> None:
    """Write each pair as `pair_NAME.png` and `pair_NAME_target.png`, and its folders of more pairs, `pairs_NAME`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, pair in PAIRS.items():
        pair.original.save(folder / f"pair_{name}.png")
        pair.target.save(folder / f"pair_{name}_target.png")
        for number, (original, target, caption) in enumerate(pair.more, 1):
            more = folder / f"pairs_{name}"
            more.mkdir(exist_ok=True)
            original.save(more / f"{number}.png")
            target.save(more / f"{number}_target.png")
            (more / f"{number}.txt").write_text(caption, encoding="utf-8")
