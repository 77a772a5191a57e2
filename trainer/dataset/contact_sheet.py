"""Draws a contact sheet: all training images, bucket by bucket."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from .bucket_report import describe_bucket, group_by_resolution
from .buckets import Resolution
from .image_decoding import to_unit_range
from .training_image import TrainingImage

SHEET_WIDTH = 1024  # pixels, at most: a node shows it at a third of that
TILE_HEIGHT = 176  # pixels
TILES_PER_BUCKET = 40
GAP = 12  # pixels
HEADING_HEIGHT = 84  # pixels
FONT_SIZE = 28  # pixels
BACKGROUND, INK = (26, 27, 30), (232, 232, 235)
MASKED_BRIGHTNESS = 0.2  # of what is not trained


def draw_contact_sheet(images: Sequence[TrainingImage]) -> torch.Tensor:
    """Draw all training images under the headings of their buckets: (1, H, W, 3) float32 in [0, 1], W at most 1024."""
    parts = [_draw_bucket(resolution, bucket) for resolution, bucket in group_by_resolution(images).items()]
    width = max(part.width for part in parts) + GAP
    sheet = Image.new("RGB", (width, sum(part.height for part in parts) + GAP), BACKGROUND)
    top = 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height
    return torch.from_numpy(np.array(sheet)).float().div_(255)[None]


def _draw_bucket(resolution: Resolution, bucket: list[TrainingImage]) -> Image.Image:
    size = _tile_size(resolution)
    columns = max(1, (SHEET_WIDTH - GAP) // (size[0] + GAP))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        tiles = list(pool.map(lambda image: _draw_tile(image, size), bucket[:TILES_PER_BUCKET]))
    rows = -(-len(tiles) // columns)
    shown = f", the first {TILES_PER_BUCKET} shown" if len(bucket) > len(tiles) else ""
    lines = [describe_bucket(resolution, bucket) + shown, _describe_crops(bucket)]
    font = ImageFont.load_default(size=FONT_SIZE)
    written = int(max(font.getlength(line) for line in lines))
    width = max(GAP + min(columns, len(tiles)) * (size[0] + GAP), 2 * GAP + written)
    part = Image.new("RGB", (min(width, SHEET_WIDTH - GAP), HEADING_HEIGHT + rows * (size[1] + GAP)), BACKGROUND)
    ImageDraw.Draw(part).text((GAP, GAP), "\n".join(lines), font=font, fill=INK)
    for place, tile in enumerate(tiles):
        left, top = GAP + place % columns * (size[0] + GAP), HEADING_HEIGHT + place // columns * (size[1] + GAP)
        part.paste(tile, (left, top))
    return part


def _describe_crops(bucket: list[TrainingImage]) -> str:
    cropped = [image.cropped_fraction for image in bucket if not image.mirrored]
    if max(cropped) < 0.005:
        return "nothing cropped away"
    return f"cropped away: median {median(cropped):.0%}, max {max(cropped):.0%}"


def _tile_size(resolution: Resolution) -> Resolution:
    """Return the resolution at the tiles' height; a very wide one still fits the sheet."""
    scale = min(TILE_HEIGHT / resolution[1], (SHEET_WIDTH - 3 * GAP) / resolution[0])
    return max(1, round(resolution[0] * scale)), max(1, round(resolution[1] * scale))


def _draw_tile(image: TrainingImage, size: Resolution) -> Image.Image:
    shown = image.pixels
    if image.mask is not None:
        shown = to_unit_range(shown) * image.mask[:, :, None].float().clamp(min=MASKED_BRIGHTNESS)
    tile = Image.fromarray((shown if shown.dtype == torch.uint8 else shown.mul(255).round().byte()).numpy())
    return tile.resize(size, Image.Resampling.LANCZOS if size[0] < tile.width else Image.Resampling.NEAREST)
