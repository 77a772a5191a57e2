"""Chooses the frames that pictures are cropped to; one batch holds pictures of one frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Frame = tuple[int, int]  # width, height in pixels

# What the nodes offer at most; what is wired into them may be anything.
LARGEST_SIDE, MOST_SUB_IMAGES, MOST_REPEATS = 8192, 64, 1000
LATENT_PIXELS = 8  # the latent cell of most models; one that needs 16 is checked where the model is known


@dataclass(frozen=True)
class BucketConfig:
    """Says which frames there are and how pictures fill them."""

    width: int = 1024  # pixels; with height the largest area of a frame, in either orientation
    height: int = 1024  # pixels
    step: int = 128  # pixels between one frame side and the next
    min_length: int = 512  # pixels, the shortest frame side the grid starts from
    max_ratio: float = 2.0  # longer side / shorter side, at least 1
    sub_image_num: int = 0  # smaller frames that each picture goes to besides its main one
    mirroring: bool = False  # a flipped copy of each
    disable_upscale: bool = False  # leave out frames larger than the picture
    repeats: int = 1  # times a picture counts in one epoch

    def __post_init__(self) -> None:
        """Raise ValueError naming every value that cannot be used."""
        sides = {"width": self.width, "height": self.height, "buckets_step": self.step, "min_length": self.min_length}
        problems = [
            f"{name} {value} must be a multiple of {LATENT_PIXELS}, the pixels of one latent cell (some models ask for 16)"
            for name, value in sides.items()
            if value < LATENT_PIXELS or value % LATENT_PIXELS
        ]
        limited = {name: (value, LARGEST_SIDE) for name, value in sides.items()}
        limited |= {"sub_image_num": (self.sub_image_num, MOST_SUB_IMAGES), "repeats": (self.repeats, MOST_REPEATS)}
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


def main_frames(config: BucketConfig) -> list[Frame]:
    """Return the frames that use the whole area, from upright to wide: every picture goes to one of them."""
    longer, shorter = max(config.width, config.height), min(config.width, config.height)
    frames = {(shorter, shorter)}
    for width in _grid(config):
        # Whole-number division: floor(W * H / w / step) without a float's rounding.
        height = min(longer, longer * shorter // (width * config.step) * config.step)
        if _within_ratio((width, height), config):
            frames |= {(width, height), (height, width)}
    return _from_upright_to_wide(frames)


def sub_frames(config: BucketConfig) -> list[Frame]:
    """Return the other frames of the grid that are no larger in area, from upright to wide."""
    area = config.width * config.height
    grid = [(width, height) for width in _grid(config) for height in _grid(config) if width * height <= area]
    return _from_upright_to_wide({frame for frame in grid if _within_ratio(frame, config)} - set(main_frames(config)))


def choose_frames(size: Frame, main: Sequence[Frame], sub: Sequence[Frame], config: BucketConfig) -> list[Frame]:
    """Return the frames a picture of `size` goes to: the main frame of nearest width / height, then the sub frames.

    An empty list means that upscaling is off and the picture is smaller than each of them.
    """
    nearest_main = _nearest(size, _fitting(size, main, config))
    nearest_sub = _nearest(size, _fitting(size, sub, config))
    return nearest_main[:1] + nearest_sub[: config.sub_image_num]


def _grid(config: BucketConfig) -> range:
    return range(config.min_length, max(config.width, config.height) + 1, config.step)


def _within_ratio(frame: Frame, config: BucketConfig) -> bool:
    return max(frame) <= config.max_ratio * min(frame)


def _from_upright_to_wide(frames: set[Frame]) -> list[Frame]:
    return sorted(frames, key=lambda frame: (frame[0] / frame[1], -frame[0]))


def _fitting(size: Frame, frames: Sequence[Frame], config: BucketConfig) -> list[Frame]:
    if not config.disable_upscale:
        return list(frames)
    return [frame for frame in frames if frame[0] <= size[0] and frame[1] <= size[1]]


def _nearest(size: Frame, frames: Sequence[Frame]) -> list[Frame]:
    """Sort by distance of width / height; of two equally near the larger in area comes first."""
    ratio = size[0] / size[1]
    return sorted(frames, key=lambda frame: (abs(frame[0] / frame[1] - ratio), -frame[0] * frame[1]))
