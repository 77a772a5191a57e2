"""The scenes that the demonstration model knows: one flat shape on a plain background, and its captions."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

SIZE = 64  # pixels, both sides of every image
OVERSAMPLING = 4  # shapes are drawn this much larger and scaled down, which smooths their edges

COLOURS = {"red": (220, 40, 40), "green": (40, 165, 60), "blue": (45, 75, 220), "yellow": (240, 210, 40)}
BACKGROUNDS = {"white": (245, 245, 245), "black": (12, 12, 12), "gray": (128, 128, 128)}
SHAPES = ("circle", "square", "triangle")

# What the model has never seen, for the trainings that teach it something.
NEW_COLOURS = {"purple": (150, 50, 200)}
NEW_SHAPES = ("star",)


@dataclass(frozen=True)
class Scene:
    """One shape on one background.

    colour, shape, background: words of this module
    x, y: centre of the shape, pixels
    radius: half the shape's largest side, pixels
    """

    colour: str
    shape: str
    background: str
    x: float = SIZE / 2
    y: float = SIZE / 2
    radius: float = SIZE / 4

    def draw(self) -> Image.Image:
        """Draw the scene as an RGB image of SIZE x SIZE pixels."""
        size = SIZE * OVERSAMPLING
        image = Image.new("RGB", (size, size), BACKGROUNDS[self.background])
        points = [
            ((self.x + self.radius * u) * OVERSAMPLING, (self.y + self.radius * v) * OVERSAMPLING)
            for u, v in outline(self.shape)
        ]
        ImageDraw.Draw(image).polygon(points, fill=(COLOURS | NEW_COLOURS)[self.colour])
        return image.resize((SIZE, SIZE), Image.Resampling.BOX)

    def caption(self) -> str:
        """Say the whole scene in one sentence."""
        return f"a {self.colour} {self.shape} on a {self.background} background"


def outline(shape: str) -> list[tuple[float, float]]:
    """Return the corners (x, y) of a shape that fits the square from -1 to 1; y points down."""
    if shape == "circle":
        return _on_circle([1.0] * 48)
    if shape == "square":
        return [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]
    if shape == "triangle":
        return [(0.0, -0.95), (1.0, 0.85), (-1.0, 0.85)]
    if shape == "star":
        return _on_circle([1.05, 0.52] * 5)
    raise ValueError(f"There is no shape {shape!r}; there are {', '.join(SHAPES + NEW_SHAPES)}.")


def _on_circle(radii: list[float]) -> list[tuple[float, float]]:
    steps = [2 * math.pi * i / len(radii) for i in range(len(radii))]
    return [(r * math.sin(a), -r * math.cos(a)) for r, a in zip(radii, steps)]


def place(rng: random.Random, smallest: float = 15) -> dict[str, float]:
    """Draw a place and a size, of a radius from `smallest` to 25 pixels, that keep the shape inside the image."""
    radius = rng.uniform(smallest, 25)
    return {
        "x": rng.uniform(radius + 2, SIZE - radius - 2),
        "y": rng.uniform(radius + 2, SIZE - radius - 2),
        "radius": radius,
    }


def random_scene(rng: random.Random) -> Scene:
    """Draw any scene the model knows."""
    return Scene(rng.choice(list(COLOURS)), rng.choice(SHAPES), rng.choice(list(BACKGROUNDS)), **place(rng))


def captions(scene: Scene) -> list[tuple[str, float]]:
    """List the ways of captioning a scene, from the whole sentence to one word, with their shares."""
    c, s, b = scene.colour, scene.shape, scene.background
    return [
        (scene.caption(), 0.34),
        (f"a {c} {s}", 0.1),
        (f"{c} {s}", 0.06),
        (f"{c} {s}, {b} background", 0.06),
        (f"a {s} on a {b} background", 0.08),
        (f"a {c} shape on a {b} background", 0.05),
        (f"a {c} shape", 0.03),
        (f"a {s}", 0.04),
        (f"{b} background", 0.03),
        (c, 0.05),
        (s, 0.05),
        (b, 0.01),
        ("", 0.1),
    ]


def random_caption(scene: Scene, rng: random.Random) -> str:
    """Draw one of the ways of captioning a scene."""
    texts, shares = zip(*captions(scene))
    return rng.choices(texts, shares)[0]
