"""Chooses bucket resolutions: which there are, and which of them an image is cropped to (aspect ratio bucketing)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Resolution = tuple[int, int]  # width, height in pixels

# The limits of the node's inputs, checked here too: values that come by wire are not checked by ComfyUI.
MAX_SIDE, MAX_SUB_IMAGES, MAX_REPEATS = 8192, 64, 1000
LATENT_PIXELS = 8  # pixels per latent cell of most models; the few that need 16 are checked where the model is known


@dataclass(frozen=True)
class BucketConfig:
    """Says which bucket resolutions there are and how images fill them."""

    width: int = 1024  # pixels; width x height is the largest area of a bucket, portrait or landscape
    height: int = 1024  # pixels
    step: int = 128  # pixels between one side length and the next
    min_length: int = 512  # pixels, the shortest side the grid starts from
    max_ratio: float = 2.0  # longer side / shorter side, at least 1
    sub_image_num: int = 0  # smaller buckets that each image goes into besides its main one
    mirroring: bool = False  # adds a flipped copy of each image
    disable_upscale: bool = False  # skips buckets larger than the image
    repeats: int = 1  # times an image is used per epoch
    max_length: int = 0  # pixels, the longest side of a bucket; 0 means the longer of width and height

    @property
    def longest(self) -> int:
        """Return the longest side that a bucket may have, in pixels."""
        return self.max_length or max(self.width, self.height)

    def __post_init__(self) -> None:
        """Raise ValueError naming every value that cannot be used."""
        sides = {"width": self.width, "height": self.height, "buckets_step": self.step, "min_length": self.min_length}
        problems = [
            f"{name} {value} must be a multiple of {LATENT_PIXELS} pixels (some models need 16)"
            for name, value in sides.items()
            if value < LATENT_PIXELS or value % LATENT_PIXELS
        ]
        if self.max_length and (self.max_length % LATENT_PIXELS or self.max_length < max(self.width, self.height)):
            problems.append(
                f"max_length {self.max_length} must be 0, or a multiple of {LATENT_PIXELS} pixels that is not less than"
                f" width {self.width} and height {self.height}"
            )
        limited = {name: (value, MAX_SIDE) for name, value in sides.items()}
        limited |= {"sub_image_num": (self.sub_image_num, MAX_SUB_IMAGES), "repeats": (self.repeats, MAX_REPEATS)}
        limited["max_length"] = (self.max_length, MAX_SIDE)
        problems += [
            f"{name} {value} must be {most} or less" for name, (value, most) in limited.items() if value > most
        ]
        if not self.max_ratio >= 1:
            problems.append(f"max_ratio {self.max_ratio} must be at least 1 (longer side / shorter side)")
        if self.sub_image_num < 0:
            problems.append(f"sub_image_num {self.sub_image_num} must be 0 or more")
        if self.repeats < 1:
            problems.append(f"repeats {self.repeats} must be 1 or more")
        if problems:
            raise ValueError(f"{'; '.join(problems)}.")


def main_resolutions(config: BucketConfig) -> list[Resolution]:
    """Return the resolutions that use the full area, from tall to wide; every image goes into one of them."""
    longer, shorter = max(config.width, config.height), min(config.width, config.height)
    resolutions = {(shorter, shorter)}
    for width in _grid(config):
        # Whole-number division: floor(W * H / w / step) without a float's rounding.
        height = min(config.longest, longer * shorter // (width * config.step) * config.step)
        if _within_ratio((width, height), config) and (width <= longer or height >= config.min_length):
            resolutions |= {(width, height), (height, width)}
    return from_tall_to_wide(resolutions)


def sub_resolutions(config: BucketConfig) -> list[Resolution]:
    """Return the other resolutions of the grid up to the same area, from tall to wide."""
    area = config.width * config.height
    grid = [(width, height) for width in _grid(config) for height in _grid(config) if width * height <= area]
    return from_tall_to_wide({sides for sides in grid if _within_ratio(sides, config)} - set(main_resolutions(config)))


def choose_resolutions(
    size: Resolution, main: Sequence[Resolution], sub: Sequence[Resolution], config: BucketConfig
) -> list[Resolution]:
    """Return the resolutions for an image of `size`: the main one of nearest aspect ratio, then `sub_image_num` others.

    An empty list means that upscaling is disabled and the image is smaller than every bucket.
    """
    nearest_main = _nearest(size, _fitting(size, main, config))
    nearest_sub = _nearest(size, _fitting(size, sub, config))
    return nearest_main[:1] + nearest_sub[: config.sub_image_num]


def from_tall_to_wide(resolutions: Iterable[Resolution]) -> list[Resolution]:
    """Sort by width / height; of one aspect ratio the larger comes first."""
    return sorted(resolutions, key=lambda sides: (sides[0] / sides[1], -sides[0]))


def format_size(size: Resolution) -> str:
    """Return a size as text: "512x640"."""
    return f"{size[0]}x{size[1]}"


def format_megapixels(size: Resolution) -> str:
    """Return the area of a size as text: "0.33 MP"."""
    return f"{size[0] * size[1] / 1e6:.2f} MP"


def _grid(config: BucketConfig) -> range:
    return range(config.min_length, config.longest + 1, config.step)


def _within_ratio(resolution: Resolution, config: BucketConfig) -> bool:
    return max(resolution) <= config.max_ratio * min(resolution)


def _fitting(size: Resolution, resolutions: Sequence[Resolution], config: BucketConfig) -> list[Resolution]:
    if not config.disable_upscale:
        return list(resolutions)
    return [(width, height) for width, height in resolutions if width <= size[0] and height <= size[1]]


def _nearest(size: Resolution, resolutions: Sequence[Resolution]) -> list[Resolution]:
    """Sort by distance of the aspect ratio; of two that are equally near, the larger area comes first."""
    ratio = size[0] / size[1]
    return sorted(resolutions, key=lambda sides: (abs(sides[0] / sides[1] - ratio), -sides[0] * sides[1]))
