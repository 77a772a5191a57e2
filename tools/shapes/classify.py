"""Say what an image of the demonstration model shows, by looking at its pixels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from .scenes import BACKGROUNDS, COLOURS, NEW_COLOURS, NEW_SHAPES, SHAPES, SIZE, outline

EDGE = 60  # distance in RGB (of 441) from the background beyond which a pixel belongs to the shape
NEAR = 90  # distance in RGB within which a colour is the named one
ALIKE = 0.75  # overlap (intersection over union) with a shape's own outline from which it is that shape


@dataclass(frozen=True)
class Seen:
    """What an image shows; None where it is nothing that has a name."""

    colour: str | None
    shape: str | None
    background: str | None


def classify(image: Image.Image) -> Seen:
    """Name the background by the image's rim, the shape by its outline, the colour by the shape's inside."""
    pixels = np.asarray(image.convert("RGB").resize((SIZE, SIZE)), dtype=np.float32)
    rim = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    background = np.median(rim, axis=0)
    inside = np.linalg.norm(pixels - background, axis=-1) > EDGE
    if inside.sum() < 30:
        return Seen(None, None, _nearest(background, BACKGROUNDS))
    colour = np.median(pixels[inside], axis=0)
    return Seen(_nearest(colour, COLOURS | NEW_COLOURS), _likest(inside), _nearest(background, BACKGROUNDS))


def _nearest(colour: np.ndarray, names: dict[str, tuple[int, int, int]]) -> str | None:
    distances = {name: float(np.linalg.norm(colour - np.asarray(value))) for name, value in names.items()}
    best = min(distances, key=distances.get)
    return best if distances[best] < NEAR else None


def _likest(inside: np.ndarray) -> str | None:
    """Compare a mask, cut to its bounds, with each shape drawn into the same bounds."""
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    cut = inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    cut = np.asarray(Image.fromarray(cut).resize((48, 48))) > 0
    overlaps = {shape: (cut & mask).sum() / (cut | mask).sum() for shape, mask in _stencils().items()}
    best = max(overlaps, key=overlaps.get)
    return best if overlaps[best] > ALIKE else None


@cache
def _stencils() -> dict[str, np.ndarray]:
    return {shape: _stencil(shape) for shape in SHAPES + NEW_SHAPES}


def _stencil(shape: str) -> np.ndarray:
    """Draw a shape so that it just fills 48 x 48 pixels."""
    points = np.asarray(outline(shape))
    low, high = points.min(0), points.max(0)
    scaled = (points - low) / (high - low) * 47
    image = Image.new("1", (48, 48))
    ImageDraw.Draw(image).polygon([tuple(p) for p in scaled], fill=1)
    return np.asarray(image)
