"""Draws images of LoRAs at several strengths as a labelled grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

SMALLEST, LARGEST = 192, 512  # pixels, the longer side of a tile
GAP = 12  # pixels
BACKGROUND, INK = (26, 27, 30), (232, 232, 235)
FONT_SHARE = 7  # a tile is so many times as wide as its label is high: a node shows a grid much smaller than it is
SMALLEST_FONT = 12  # pixels
LINE = 1.4  # height of a line in font sizes


def draw_grid(rows: dict[str, Sequence[torch.Tensor]], columns: Sequence[str]) -> torch.Tensor:
    """Draw images (H, W, 3) in [0, 1], all of one size, as a grid (1, H, W, 3): each row under its name, each image under
    the label of its column."""
    size = _tile_size(next(iter(rows.values()))[0])
    font = _fitting_font(columns, size[0])
    line = round(font.size * LINE)
    height = 2 * line + size[1] + GAP
    width = GAP + len(columns) * (size[0] + GAP)
    sheet = Image.new("RGB", (width, GAP + len(rows) * height), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for row, (name, images) in enumerate(rows.items()):
        top = GAP + row * height
        draw.text((GAP, top), _shorten(name, font, width - 2 * GAP), font=font, fill=INK)
        for column, (label, image) in enumerate(zip(columns, images, strict=True)):
            left = GAP + column * (size[0] + GAP)
            draw.text((left, top + line), label, font=font, fill=INK)
            sheet.paste(_draw_tile(image, size), (left, top + 2 * line))
    return torch.from_numpy(np.array(sheet)).float().div_(255)[None]


def _tile_size(image: torch.Tensor) -> tuple[int, int]:
    """Return width and height of an image's tile: small images are enlarged by a whole number, large ones are reduced."""
    height, width = image.shape[:2]
    scale = (
        max(1, round(SMALLEST / max(width, height))) if max(width, height) < LARGEST else LARGEST / max(width, height)
    )
    return round(width * scale), round(height * scale)


def _fitting_font(labels: Sequence[str], width: int) -> ImageFont.FreeTypeFont:
    """Return the largest font, up to a share of the tile, in which every label is as wide as a tile or narrower."""
    size = max(SMALLEST_FONT, width // FONT_SHARE)
    widest = max(ImageFont.load_default(size=size).getlength(label) for label in labels)
    return ImageFont.load_default(size=max(SMALLEST_FONT, int(size * min(1, width / widest))))


def _shorten(name: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    shown = name
    while font.getlength(shown) > width and len(name) > 1:
        name = name[:-1]
        shown = f"{name}..."
    return shown


def _draw_tile(image: torch.Tensor, size: tuple[int, int]) -> Image.Image:
    pixels = image.nan_to_num(0).clamp(0, 1).mul(255).round().byte().cpu().numpy()
    tile = Image.fromarray(pixels)
    return tile.resize(size, Image.Resampling.LANCZOS if size[0] < tile.width else Image.Resampling.NEAREST)
