"""Crops captioned images to their bucket resolutions: the whole way from images to training images."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from .buckets import BucketConfig, Resolution, choose_resolutions, format_size, main_resolutions, sub_resolutions
from .cropping import crop_image
from .file_errors import attempt, list_problems
from .image_decoding import refuse_truncated
from .image_on_disk import ImageLike, ImageOnDisk, size_of
from .masks import crop_mask, has_same_ratio
from .training_image import TrainingImage

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class _Source:
    """An uncropped image and what belongs to it."""

    image: ImageLike
    mask: ImageLike | None  # (H, W), or a file whose alpha it is
    caption: str
    name: str
    repeats: int

    @property
    def size(self) -> Resolution:
        return size_of(self.image)


def fill_buckets(
    images: Sequence[ImageLike],
    captions: Sequence[str],
    masks: Sequence[ImageLike] | None,
    config: BucketConfig,
    names: Sequence[str] | None = None,
    repeats: Sequence[int] | None = None,
) -> list[TrainingImage]:
    """Crop every image (H, W, 3) to its bucket resolutions, in the order given.

    captions: one per image, or one for all
    masks: (H, W) each, or files whose alpha they are; None trains everything
    names: one per image, for messages; by default "image 1" and so on
    repeats: times each is used per epoch, one per image or one for all; by default the config's

    Files are read here, at most as many at a time as there are CPU cores.

    Raises ValueError naming every image that fits no bucket, whose mask has another aspect ratio, or that is masked out
    entirely, and every file that cannot be read.
    """
    sources = _match(images, captions, masks, names, repeats or [config.repeats])
    main, sub = main_resolutions(config), sub_resolutions(config) if config.sub_image_num else []
    chosen = [choose_resolutions(source.size, main, sub, config) for source in sources]
    _refuse_small([source for source, resolutions in zip(sources, chosen) if not resolutions], main + sub)
    filled = _crop_all(sources, chosen, config)
    _refuse_masked_out([image for image in filled if not image.mirrored])
    return filled


def _match(
    images: Sequence[ImageLike],
    captions: Sequence[str],
    masks: Sequence[ImageLike] | None,
    names: Sequence[str] | None,
    repeats: Sequence[int],
) -> list[_Source]:
    """Return each image with its own caption, mask, name and repeats."""
    count = len(images)
    if not count:
        raise ValueError("There are no images. Connect at least one.")
    captions = list(captions) * count if len(captions) == 1 else captions
    repeats = list(repeats) * count if len(repeats) == 1 else repeats
    names = names or [f"image {number}" for number in range(1, count + 1)]
    given = {"captions": captions, "masks": images if masks is None else masks, "names": names, "repeats": repeats}
    wrong = [f"{kind} ({len(values)})" for kind, values in given.items() if len(values) != count]
    if wrong:
        raise ValueError(
            f"The number of {' and '.join(wrong)} must match the number of images ({count}). Connect one per image."
        )
    sources = [_Source(*parts) for parts in zip(images, masks or [None] * count, captions, names, repeats)]
    _refuse_other_ratios([source for source in sources if source.mask is not None])
    return sources


def _crop_all(sources: list[_Source], chosen: list[list[Resolution]], config: BucketConfig) -> list[TrainingImage]:
    """Crop every image to its chosen resolutions, each crop followed by its mirrored copy if wanted."""
    problems: dict[Path, str] = {}
    from_files = any(isinstance(source.image, ImageOnDisk) for source in sources)
    with refuse_truncated(), ThreadPoolExecutor(os.cpu_count()) as pool:
        run = pool.map if from_files else map  # PyTorch resizes a tensor on all cores by itself
        cropped = list(run(lambda source, resolutions: _crop(source, resolutions, config, problems), sources, chosen))
    if problems:
        raise ValueError(list_problems([(str(path), problems[path]) for path in sorted(problems)]))
    return [image for images in cropped for image in images]


def _crop(
    source: _Source, resolutions: list[Resolution], config: BucketConfig, problems: dict[Path, str]
) -> list[TrainingImage]:
    pixels = _read(lambda: crop_image(source.image, resolutions), source.image, problems)
    masks = _read(lambda: crop_mask(source.mask, resolutions), source.mask, problems)
    cropped = [
        TrainingImage(crop, source.caption, mask, source.name, source.size, repeats=source.repeats)
        for crop, mask in zip(pixels or (), masks or ())
    ]
    return [copy for image in cropped for copy in ((image, _mirror(image)) if config.mirroring else (image,))]


def _read(read: Callable[[], T], image: ImageLike | None, problems: dict[Path, str]) -> T | None:
    return attempt(read, image.path, problems) if isinstance(image, ImageOnDisk) else read()


def _mirror(image: TrainingImage) -> TrainingImage:
    mask = None if image.mask is None else image.mask.flip(1)
    return replace(image, pixels=image.pixels.flip(1), mask=mask, mirrored=True)


def _refuse_other_ratios(masked: list[_Source]) -> None:
    wrong = [
        f"{source.name} is {format_size(source.size)} but its mask is {format_size(size_of(source.mask))}"
        for source in masked
        if not has_same_ratio(size_of(source.mask), source.size)
    ]
    if wrong:
        raise ValueError(
            f"A mask must have the aspect ratio of its image: {'; '.join(wrong)}. Resize or crop the masks."
        )


def _refuse_small(unplaced: list[_Source], resolutions: list[Resolution]) -> None:
    if not unplaced:
        return
    smallest = min(resolutions, key=lambda resolution: resolution[0] * resolution[1])
    sizes = ", ".join(f"{source.name} ({format_size(source.size)})" for source in unplaced)
    raise ValueError(
        f"Too small for every bucket (the smallest is {format_size(smallest)}) with disable_upscale on: {sizes}."
        " Turn disable_upscale off, use smaller buckets, or remove these images."
    )


def _refuse_masked_out(images: list[TrainingImage]) -> None:
    empty = [image for image in images if image.mask is not None and not image.mask.any()]
    if empty:
        names = ", ".join(f"{image.name} at {format_size(image.resolution)}" for image in empty)
        raise ValueError(
            f"The mask leaves nothing to train in {names}."
            " In a mask, 1 means train here: invert the masks or remove these images."
        )
