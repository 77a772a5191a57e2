"""Lays samples out in rows with a line of text above each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .world import SIZE

COLUMNS = 12
CELL = 2 * SIZE
TEXT = 30  # pixels of a row's line of text
GAP = 4


def draw_sheet(rows: Sequence[tuple[str, Sequence[Image.Image]]], path: Path) -> Path:
    """Write a PNG with the first COLUMNS samples of each row, and return its path."""
    width, height = COLUMNS * (CELL + GAP) + GAP, CELL + GAP + TEXT
    sheet = Image.new("RGB", (width, len(rows) * height + GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    for number, (text, pictures) in enumerate(rows):
        top = number * height
        pen.text((GAP, top + 6), text, fill="black", font=font)
        for column, picture in enumerate(pictures[:COLUMNS]):
            place = GAP + column * (CELL + GAP), top + TEXT
            sheet.paste(picture.resize((CELL, CELL), Image.Resampling.BICUBIC), place)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return path
