"""Shows what became of the pictures: a short text and a contact sheet."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from .buckets import Frame
from .data import TrainingImage
from .picture import to_unit_range

SHEET_WIDTH = 1024  # pixels, at most: on a node it is shown at a third of that
TILE_HEIGHT = 176  # pixels
TILES_PER_FRAME = 40
NAMES_PER_LINE = 20
GAP = 12  # pixels
CAPTION_HEIGHT = 84  # pixels of a frame's heading
FONT_SIZE = 28  # pixels
BACKGROUND, INK = (26, 27, 30), (232, 232, 235)
MUCH_CROPPED = 0.25  # part of a picture that lies outside its frame and is worth a remark
MASKED_OUT = 0.2  # brightness that is left where nothing is trained

Group = list[TrainingImage]


def report_buckets(images: Sequence[TrainingImage]) -> str:
    """Return which pictures went to which frame, and what is worth a look: enlarged, much cropped, without words."""
    sources = _name_sources([image for image in images if not image.mirrored])
    groups = group_by_frame(images)
    total = f"{_count(images, 'training image')} in {_count(groups, 'frame')}"
    head = f"{_count(sources, 'picture')} -> {total}; {sum(image.repeats for image in images)} per epoch"
    frames = [f"{_heading(frame, group)}: {_list_names(group, lambda image: '')}" for frame, group in groups.items()]
    return "\n".join([head, *frames, *_remarks([image for image in images if not image.mirrored])])


def draw_contact_sheet(images: Sequence[TrainingImage]) -> torch.Tensor:
    """Draw all training images under their frames as one picture (1, H, W, 3) in [0, 1], at most 1024 pixels wide."""
    parts = [_draw_group(frame, group) for frame, group in group_by_frame(images).items()]
    width = max(part.width for part in parts) + GAP
    sheet = Image.new("RGB", (width, sum(part.height for part in parts) + GAP), BACKGROUND)
    top = 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height
    return torch.from_numpy(np.array(sheet)).float().div_(255)[None]


def group_by_frame(images: Sequence[TrainingImage]) -> dict[Frame, Group]:
    """Return the images of each frame in their order, the frames from upright to wide."""
    frames = sorted({image.frame for image in images}, key=lambda frame: (frame[0] / frame[1], -frame[0]))
    return {frame: [image for image in images if image.frame == frame] for frame in frames}


def _remarks(images: Group) -> list[str]:
    enlarged, cut = [i for i in images if i.scale > 1], [i for i in images if i.crop_loss > MUCH_CROPPED]
    remarks = {
        "enlarged, so they may be blurred": (enlarged, lambda image: f" {image.scale:.2g}x in {_size(image)}"),
        f"more than {MUCH_CROPPED:.0%} cut off": (cut, lambda image: f" {image.crop_loss:.0%} in {_size(image)}"),
        "trained only inside a mask": ([i for i in images if i.mask is not None], lambda image: ""),
        "without a caption": ([i for i in images if not i.caption], lambda image: ""),
    }
    return [f"{remark}: {_list_names(found, detail)}" for remark, (found, detail) in remarks.items() if found]


def _name_sources(images: Group) -> list[str]:
    return list(dict.fromkeys(image.name for image in images))


def _list_names(images: Group, detail: Callable[[TrainingImage], str]) -> str:
    names = list(dict.fromkeys(f"{image.name}{detail(image)}" for image in images))
    more = f" and {len(names) - NAMES_PER_LINE} more" if len(names) > NAMES_PER_LINE else ""
    return ", ".join(names[:NAMES_PER_LINE]) + more


def _heading(frame: Frame, group: Group) -> str:
    mirrored = sum(image.mirrored for image in group)
    return f"{frame[0]}x{frame[1]}, {_count(group, 'image')}" + (f" ({mirrored} mirrored)" if mirrored else "")


def _describe_crop(group: Group) -> str:
    losses = [image.crop_loss for image in group if not image.mirrored]
    if max(losses) < 0.005:
        return "nothing cut off"
    return f"cut off: median {median(losses):.0%}, most {max(losses):.0%}"


def _size(image: TrainingImage) -> str:
    return f"{image.frame[0]}x{image.frame[1]}"


def _count(items: Sequence[object] | dict[Frame, Group], noun: str) -> str:
    return f"{len(items)} {noun}" + ("" if len(items) == 1 else "s")


def _draw_group(frame: Frame, group: Group) -> Image.Image:
    size = _tile_size(frame)
    columns = max(1, (SHEET_WIDTH - GAP) // (size[0] + GAP))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        tiles = list(pool.map(lambda image: _draw_tile(image, size), group[:TILES_PER_FRAME]))
    rows = -(-len(tiles) // columns)
    shown = f", the first {TILES_PER_FRAME} shown" if len(group) > len(tiles) else ""
    lines = [_heading(frame, group) + shown, _describe_crop(group)]
    font = ImageFont.load_default(size=FONT_SIZE)
    written = int(max(font.getlength(line) for line in lines))
    width = max(GAP + min(columns, len(tiles)) * (size[0] + GAP), 2 * GAP + written)
    part = Image.new("RGB", (min(width, SHEET_WIDTH - GAP), CAPTION_HEIGHT + rows * (size[1] + GAP)), BACKGROUND)
    ImageDraw.Draw(part).text((GAP, GAP), "\n".join(lines), font=font, fill=INK)
    for place, tile in enumerate(tiles):
        left, top = GAP + place % columns * (size[0] + GAP), CAPTION_HEIGHT + place // columns * (size[1] + GAP)
        part.paste(tile, (left, top))
    return part


def _tile_size(frame: Frame) -> Frame:
    """Return the frame at the tiles' height; a very wide one still fits the sheet."""
    scale = min(TILE_HEIGHT / frame[1], (SHEET_WIDTH - 3 * GAP) / frame[0])
    return max(1, round(frame[0] * scale)), max(1, round(frame[1] * scale))


def _draw_tile(image: TrainingImage, size: Frame) -> Image.Image:
    shown = image.pixels
    if image.mask is not None:
        shown = to_unit_range(shown) * image.mask[:, :, None].float().clamp(min=MASKED_OUT)
    tile = Image.fromarray((shown if shown.dtype == torch.uint8 else shown.mul(255).round().byte()).numpy())
    return tile.resize(size, Image.Resampling.LANCZOS if size[0] < tile.width else Image.Resampling.NEAREST)
