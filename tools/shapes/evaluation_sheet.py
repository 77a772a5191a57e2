"""Lays samples out in rows with a line of text above each, two rows side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SHOWN = 6  # samples of each row
CELL = 96  # pixels of a sample's side
TEXT = 28  # pixels of a row's line of text
GAP = 4
MARGIN = 24  # pixels between the two halves


def draw_sheet(rows: Sequence[tuple[str, Sequence[Image.Image]]], path: Path) -> Path:
    """Write a PNG with the first samples of each row, and return its path."""
    half, height = SHOWN * (CELL + GAP) + MARGIN, CELL + GAP + TEXT
    lines = -(-len(rows) // 2)
    sheet = Image.new("RGB", (2 * half - MARGIN + GAP, lines * height + GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for number, (text, images) in enumerate(rows):
        left, top = number // lines * half + GAP, number % lines * height
        pen.text((left, top + 6), text, fill="black", font=font)
        for column, image in enumerate(images[:SHOWN]):
            shown = image.resize((CELL, CELL), Image.Resampling.BICUBIC)
            sheet.paste(shown, (left + column * (CELL + GAP), top + TEXT))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return path
