"""Crops captioned pictures to the frames they are trained in."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F

from .buckets import BucketConfig, Frame, choose_frames, main_frames, sub_frames
from .data import TrainingImage
from .picture import PictureFile, attempt, refuse_truncated

MASK_THRESHOLD = 0.1  # more alpha than this is trained
SHAPE_TOLERANCE = 0.02  # relative difference of width / height that a mask may have from its picture (rounding)

Picture = torch.Tensor | PictureFile
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class _Source:
    """A whole picture and what belongs to it."""

    picture: Picture  # (H, W, 3), or the file
    mask: Picture | None  # (H, W), or the file whose alpha it is
    caption: str
    name: str

    @property
    def size(self) -> Frame:
        return _size_of(self.picture)


def fill_buckets(
    images: Sequence[Picture],
    captions: Sequence[str],
    masks: Sequence[Picture] | None,
    config: BucketConfig,
    names: Sequence[str] | None = None,
) -> list[TrainingImage]:
    """Crop every image (H, W, 3) to its frames, in the order given; without `masks` (H, W) everything is trained.

    Files are read here, as many at a time as there are processor cores; as a mask a file means its alpha.
    One caption serves all images. `names` stand in messages; without them images are counted from 1.
    Raises ValueError naming every image that no frame fits, whose mask has another shape, or that is masked out, and
    every file that cannot be read.
    """
    sources = _pair_up(images, captions, masks, names)
    main, sub = main_frames(config), sub_frames(config) if config.sub_image_num else []
    frames = [choose_frames(source.size, main, sub, config) for source in sources]
    _refuse_small([source for source, chosen in zip(sources, frames) if not chosen], main + sub)
    filled = _crop_all(sources, frames, config)
    _refuse_masked_out([image for image in filled if not image.mirrored])
    return filled


def _pair_up(
    images: Sequence[Picture],
    captions: Sequence[str],
    masks: Sequence[Picture] | None,
    names: Sequence[str] | None,
) -> list[_Source]:
    """Return each image with its own caption, mask and name."""
    count = len(images)
    captions = list(captions) * count if len(captions) == 1 else captions
    names = names or [f"image {number}" for number in range(1, count + 1)]
    given = {"captions": captions, "masks": images if masks is None else masks, "names": names}
    problems = [f"{len(values)} {kind}" for kind, values in given.items() if len(values) != count]
    if not count or problems:
        raise ValueError(
            f"There are {count} images but {' and '.join(problems)}: wire as many of each."
            if problems
            else "There are no images."
        )
    sources = [_Source(*given) for given in zip(images, masks or [None] * count, captions, names)]
    _refuse_other_shapes([source for source in sources if source.mask is not None])
    return sources


def _refuse_other_shapes(masked: list[_Source]) -> None:
    wrong = [
        f"{source.name} is {_text(source.size)}, its mask {_text((width, height))}"
        for source, (width, height) in ((source, _size_of(source.mask)) for source in masked)
        if abs(width / height * source.size[1] / source.size[0] - 1) > SHAPE_TOLERANCE
    ]
    if wrong:
        raise ValueError(f"Masks must have the shape of their images: {'; '.join(wrong)}.")


def _crop_all(sources: list[_Source], frames: list[list[Frame]], config: BucketConfig) -> list[TrainingImage]:
    """Crop every picture to its frames, each followed by its mirrored copy if wanted.

    As many files are in memory at once as there are processor cores.
    """
    problems: dict[Path, str] = {}
    from_files = any(isinstance(source.picture, PictureFile) for source in sources)
    with refuse_truncated(), ThreadPoolExecutor(os.cpu_count()) as pool:
        run = pool.map if from_files else map  # PyTorch scales a tensor on all cores by itself
        cropped = list(run(lambda source, chosen: _crop(source, chosen, config, problems), sources, frames))
    if problems:
        files = "1 file" if len(problems) == 1 else f"{len(problems)} files"
        lines = [f"- {path}: {problems[path]}" for path in sorted(problems)]
        raise ValueError("\n".join([f"{files} cannot be used: repair or remove them.", *lines]))
    return [image for images in cropped for image in images]


def _crop(source: _Source, frames: list[Frame], config: BucketConfig, problems: dict[Path, str]) -> list[TrainingImage]:
    pixels = _read(lambda: _cover_all(source.picture, frames), source.picture, problems)
    masks = _read(lambda: _cover_mask(source.mask, frames), source.mask, problems)
    cropped = [
        TrainingImage(crop, source.caption, mask, source.name, source.size, repeats=config.repeats)
        for crop, mask in zip(pixels or (), masks or ())
    ]
    return [copy for image in cropped for copy in ((image, _mirror(image)) if config.mirroring else (image,))]


def _read(read: Callable[[], T], picture: Picture | None, problems: dict[Path, str]) -> T | None:
    return attempt(read, picture.path, problems) if isinstance(picture, PictureFile) else read()


def _cover_all(picture: Picture, frames: list[Frame]) -> list[torch.Tensor]:
    """Return a picture for each frame, (H, W, 3): uint8 from a file of 8 bits, float32 in [0, 1] else."""
    if isinstance(picture, PictureFile) and not picture.is_deep:
        scaled = picture.scale([_covering_size(picture.size, frame) for frame in frames])
        return [_cut(pixels, frame) for pixels, frame in zip(scaled, frames)]
    pixels = picture.pixels() if isinstance(picture, PictureFile) else picture
    return [pixels if _size_of(pixels) == frame else _cover(pixels, frame, "bicubic").clamp_(0, 1) for frame in frames]


def _cover_mask(mask: Picture | None, frames: list[Frame]) -> list[torch.Tensor | None]:
    """Return a mask for each frame, (H, W) bool, None where all of it is trained."""
    if mask is None or (isinstance(mask, PictureFile) and not mask.has_alpha):
        return [None] * len(frames)
    alpha = mask.alpha() if isinstance(mask, PictureFile) else mask
    trained = (alpha > MASK_THRESHOLD)[:, :, None].float()
    covered = [_cover(trained, frame, "nearest-exact")[:, :, 0] > 0 for frame in frames]
    return [None if bool(mask.all()) else mask for mask in covered]


def _cover(picture: torch.Tensor, frame: Frame, mode: str) -> torch.Tensor:
    """Scale a picture (H, W, C) until it covers the frame and cut out the centre."""
    width, height = _covering_size(_size_of(picture), frame)
    batch = picture.permute(2, 0, 1)[None]
    scaled = F.interpolate(batch, size=(height, width), mode=mode, antialias=mode == "bicubic")[0]
    return _cut(scaled.permute(1, 2, 0), frame)


def _covering_size(size: Frame, frame: Frame) -> Frame:
    scale = max(frame[0] / size[0], frame[1] / size[1])
    return max(frame[0], round(size[0] * scale)), max(frame[1], round(size[1] * scale))


def _cut(picture: torch.Tensor, frame: Frame) -> torch.Tensor:
    """Cut the centre out of a picture (H, W, C)."""
    width, height = _size_of(picture)
    top, left = (height - frame[1]) // 2, (width - frame[0]) // 2
    return picture[top : top + frame[1], left : left + frame[0]].contiguous()


def _mirror(image: TrainingImage) -> TrainingImage:
    mask = None if image.mask is None else image.mask.flip(1)
    return replace(image, pixels=image.pixels.flip(1), mask=mask, mirrored=True)


def _refuse_small(unplaced: list[_Source], frames: list[Frame]) -> None:
    if not unplaced:
        return
    smallest = min(frames, key=lambda frame: frame[0] * frame[1])
    sizes = ", ".join(f"{source.name} ({_text(source.size)})" for source in unplaced)
    raise ValueError(
        f"Too small for every frame (the smallest is {_text(smallest)}) while disable_upscale is on: {sizes};"
        " switch disable_upscale off, choose smaller frames or take these images out."
    )


def _refuse_masked_out(images: list[TrainingImage]) -> None:
    empty = [image for image in images if image.mask is not None and not image.mask.any()]
    if empty:
        names = ", ".join(f"{image.name} in {_text(image.frame)}" for image in empty)
        raise ValueError(
            f"Nothing is left to train, the mask covers all of: {names};"
            " in a mask 1 means train here: take these images out, or invert the masks."
        )


def _text(frame: Frame) -> str:
    return f"{frame[0]}x{frame[1]}"


def _size_of(picture: Picture) -> Frame:
    """Return width, height in pixels of a picture (H, W, ...) or a file."""
    return picture.size if isinstance(picture, PictureFile) else (picture.shape[1], picture.shape[0])
