"""Turns captioned pictures into training images of a few frames, and draws batches of one frame."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from .buckets import BucketConfig, Frame, choose_frames, main_frames, sub_frames
from .denoiser import Conditioning

MASK_THRESHOLD = 0.1  # more alpha than this is trained
SHAPE_TOLERANCE = 0.02  # relative difference of width / height that a mask may have from its picture (rounding)


@dataclass(frozen=True, eq=False)
class TrainingImage:
    """A picture cropped to its frame. Pixels are shared between outputs: do not write to them."""

    pixels: torch.Tensor  # (H, W, 3), float32 in [0, 1]
    caption: str
    mask: torch.Tensor | None  # (H, W), bool, True where the loss is taken; None when that is everywhere
    name: str  # of the picture it comes from, for messages
    source_size: Frame  # width, height of that picture in pixels
    mirrored: bool = False
    repeats: int = 1  # times it counts in one epoch

    @property
    def frame(self) -> Frame:
        """Return width, height in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]

    @property
    def scale(self) -> float:
        """Return the factor the picture was scaled by to cover the frame; above 1 it was enlarged."""
        return max(side / source for side, source in zip(self.frame, self.source_size))

    @property
    def crop_loss(self) -> float:
        """Return the part of the picture that lies outside the frame, in [0, 1)."""
        kept = self.frame[0] * self.frame[1] / self.scale**2
        return max(0.0, 1 - kept / (self.source_size[0] * self.source_size[1]))


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """A picture and its caption as other nodes have encoded them.

    latent: (C, H, W) as the VAE makes it, not yet in the model's scale
    """

    latent: torch.Tensor
    conditioning: Conditioning
    repeats: int = 1


@dataclass(frozen=True, eq=False)
class TrainingExample:
    """What a method learns from.

    latent: (C, H, W) clean latents in the model's scale, on its device
    conditioning: the caption as the host encodes it
    mask: (H, W) float, 1 where the loss is taken; None when that is everywhere
    """

    latent: torch.Tensor
    conditioning: Conditioning
    mask: torch.Tensor | None = None


def fill_buckets(
    images: Sequence[torch.Tensor],
    captions: Sequence[str],
    masks: Sequence[torch.Tensor] | None,
    config: BucketConfig,
    names: Sequence[str] | None = None,
) -> list[TrainingImage]:
    """Crop every image (H, W, 3) to its frames, in the order given; without `masks` (H, W) everything is trained.

    One caption serves all images. `names` stand in messages; without them images are counted from 1.
    Raises ValueError naming every image that no frame fits, whose mask has another shape, or that is masked out.
    """
    sources = _pair_up(images, captions, masks, config, names)
    main, sub = main_frames(config), sub_frames(config) if config.sub_image_num else []
    frames = [choose_frames(source.frame, main, sub, config) for source in sources]
    _refuse_small([source for source, chosen in zip(sources, frames) if not chosen], main + sub)
    filled = [_fit(source, frame) for source, chosen in zip(sources, frames) for frame in chosen]
    _refuse_masked_out(filled)
    return [copy for image in filled for copy in ((image, _mirror(image)) if config.mirroring else (image,))]


def draw_batches(
    frames: Sequence[Hashable], batch_size: int, generator: torch.Generator, repeats: Sequence[int] | None = None
) -> Iterator[list[int]]:
    """Yield batches of indices into `frames` without end; all indices of a batch have the same frame.

    In one epoch index i is drawn `repeats[i]` times (once if not given), in random order; a frame comes in proportion
    to what is left of it, and its last batch may be smaller. The same generator state draws the same batches.
    """
    if batch_size < 1:
        raise ValueError(f"The batch size is {batch_size}: set it to 1 or more.")
    if not frames or (repeats is not None and min(repeats) < 1):
        raise ValueError("There are no images to draw from." if not frames else "repeats must be 1 or more.")
    buckets: dict[Hashable, list[int]] = {}
    for index, frame in enumerate(frames):
        buckets.setdefault(frame, []).extend([index] * (repeats[index] if repeats else 1))
    return _draw_epochs(list(buckets.values()), batch_size, generator)


def _draw_epochs(buckets: list[list[int]], batch_size: int, generator: torch.Generator) -> Iterator[list[int]]:
    while True:
        left = [_shuffle(bucket, generator) for bucket in buckets]
        while any(left):
            bucket = _draw_bucket(left, generator)
            yield bucket[-batch_size:]
            del bucket[-batch_size:]


def _shuffle(bucket: list[int], generator: torch.Generator) -> list[int]:
    order = torch.randperm(len(bucket), generator=generator, device=generator.device)
    return [bucket[place] for place in order.tolist()]


def _draw_bucket(left: list[list[int]], generator: torch.Generator) -> list[int]:
    total = sum(len(bucket) for bucket in left)
    ticket = int(torch.randint(total, (), generator=generator, device=generator.device))
    for bucket in left:
        if ticket < len(bucket):
            return bucket
        ticket -= len(bucket)
    raise AssertionError("a ticket is always below the total")


def _pair_up(
    images: Sequence[torch.Tensor],
    captions: Sequence[str],
    masks: Sequence[torch.Tensor] | None,
    config: BucketConfig,
    names: Sequence[str] | None,
) -> list[TrainingImage]:
    """Return the images uncropped, each with its own caption, mask and name."""
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
    sources = [
        TrainingImage(pixels, caption, None, name, (pixels.shape[1], pixels.shape[0]), repeats=config.repeats)
        for pixels, caption, name in zip(images, captions, names)
    ]
    return sources if masks is None else _with_masks(sources, masks)


def _with_masks(sources: list[TrainingImage], masks: Sequence[torch.Tensor]) -> list[TrainingImage]:
    wrong = [
        f"{source.name} is {_size(source.frame)}, its mask {_size((mask.shape[1], mask.shape[0]))}"
        for source, mask in zip(sources, masks)
        if abs(mask.shape[1] / mask.shape[0] * source.frame[1] / source.frame[0] - 1) > SHAPE_TOLERANCE
    ]
    if wrong:
        raise ValueError(f"Masks must have the shape of their images: {'; '.join(wrong)}.")
    return [replace(source, mask=mask > MASK_THRESHOLD) for source, mask in zip(sources, masks)]


def _fit(source: TrainingImage, frame: Frame) -> TrainingImage:
    mask = None if source.mask is None else _cover(source.mask[:, :, None].float(), frame, "nearest-exact")[:, :, 0] > 0
    pixels = source.pixels if source.frame == frame else _cover(source.pixels, frame, "bicubic").clamp_(0, 1)
    return replace(source, pixels=pixels, mask=None if mask is None or bool(mask.all()) else mask)


def _cover(picture: torch.Tensor, frame: Frame, mode: str) -> torch.Tensor:
    """Scale a picture (H, W, C) until it covers the frame and cut out the centre."""
    height, width = picture.shape[:2]
    scale = max(frame[0] / width, frame[1] / height)
    size = max(frame[1], round(height * scale)), max(frame[0], round(width * scale))
    scaled = F.interpolate(picture.permute(2, 0, 1)[None], size=size, mode=mode, antialias=mode == "bicubic")[0]
    top, left = (size[0] - frame[1]) // 2, (size[1] - frame[0]) // 2
    return scaled[:, top : top + frame[1], left : left + frame[0]].permute(1, 2, 0).contiguous()


def _mirror(image: TrainingImage) -> TrainingImage:
    mask = None if image.mask is None else image.mask.flip(1)
    return replace(image, pixels=image.pixels.flip(1), mask=mask, mirrored=True)


def _refuse_small(unplaced: list[TrainingImage], frames: list[Frame]) -> None:
    if not unplaced:
        return
    smallest = min(frames, key=lambda frame: frame[0] * frame[1])
    sizes = ", ".join(f"{image.name} ({_size(image.frame)})" for image in unplaced)
    raise ValueError(
        f"Too small for every frame (the smallest is {_size(smallest)}) while disable_upscale is on: {sizes};"
        " switch disable_upscale off, choose smaller frames or take these images out."
    )


def _refuse_masked_out(images: list[TrainingImage]) -> None:
    empty = [image for image in images if image.mask is not None and not image.mask.any()]
    if empty:
        names = ", ".join(f"{image.name} in {_size(image.frame)}" for image in empty)
        raise ValueError(
            f"Nothing is left to train, the mask covers all of: {names};"
            " in a mask 1 means train here: take these images out, or invert the masks."
        )


def _size(frame: Frame) -> str:
    return f"{frame[0]}x{frame[1]}"


def mask_at(mask: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
    """Scale a picture's mask (H, W) to its latent (C, h, w), nearest, on the latent's device, as float 0 or 1.

    A mask too thin to meet a latent pixel keeps the pixels that it touches.
    """
    small = F.interpolate(mask[None, None].float(), latent.shape[-2:], mode="nearest-exact")
    if not small.any():
        small = F.adaptive_max_pool2d(mask[None, None].float(), latent.shape[-2:])
    return small[0, 0].to(latent.device)


def stack_masks(batch: Sequence[TrainingExample]) -> torch.Tensor | None:
    """Return the masks of a batch (B, h, w), or None where all of every example counts."""
    if all(example.mask is None for example in batch):
        return None
    full = torch.ones(batch[0].latent.shape[-2:], device=batch[0].latent.device)
    return torch.stack([full if example.mask is None else example.mask for example in batch])
