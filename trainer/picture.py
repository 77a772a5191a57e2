"""A picture that stays in its file: the header is read at once, the pixels each time they are asked for."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from .buckets import Frame

# Only these decoders: a file that merely calls itself .png must not start, say, the PostScript interpreter.
DECODERS = ("JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP", "PCX", "ICO")
MAX_PIXELS = 178_956_970  # where Pillow refuses, too, unless another pack has switched that off
ON_ITS_SIDE = (5, 6, 7, 8)  # EXIF orientations that exchange width and height

T = TypeVar("T")


@dataclass(frozen=True)
class PictureFile:
    """A picture on disk. Its methods decode it anew and raise what the decoder raises, or ValueError."""

    path: Path
    size: Frame  # width, height in pixels, upright
    on_its_side: bool  # stored with width and height exchanged
    has_alpha: bool
    is_deep: bool  # gray of more than 8 bits
    stamp: tuple[int, int]  # bytes and modification time (ns) when the header was read

    def pixels(self) -> torch.Tensor:
        """Return the pixels of the first frame, (H, W, 3) float32 in [0, 1], upright."""
        with self._open() as opened:
            image = ImageOps.exif_transpose(opened)
        if self.is_deep:
            return _deep_gray(image)[:, :, None].repeat(1, 1, 3)
        return to_unit_range(_to_tensor(_to_rgb(image)))

    def alpha(self) -> torch.Tensor:
        """Return the alpha, (H, W) float32 in [0, 1], upright; 1 everywhere for a picture without one."""
        if not self.has_alpha:
            return torch.ones(self.size[::-1])
        with self._open() as opened:
            image = ImageOps.exif_transpose(opened)
        return to_unit_range(_to_tensor(image.convert("RGBA").getchannel("A")))

    def scale(self, sizes: Sequence[Frame]) -> list[torch.Tensor]:
        """Return the pixels scaled to each size (width, height), (H, W, 3) uint8, upright; not for deep ones."""
        stored = [size[::-1] if self.on_its_side else size for size in sizes]
        with self._open() as opened:
            # A JPEG decodes faster at 1/2, 1/4 or 1/8. From twice the size that is wanted nobody can tell: what comes out
            # differs by less than 1/255 in the mean.
            draft = opened.draft(None, tuple(2 * max(sides) for sides in zip(*stored)))
            image = _to_rgb(opened)
        box = draft and draft[1]
        scaled = [image.resize(size, Image.Resampling.BICUBIC, box) for size in stored]
        return [_to_tensor(ImageOps.exif_transpose(small)) for small in scaled]

    @contextmanager
    def _open(self) -> Iterator[ImageFile.ImageFile]:
        if _stamp(self.path) != self.stamp:
            raise ValueError("has changed since it was loaded: run Load Image Folder again")
        with open_picture(self.path) as image:
            yield image


def read_header(path: Path) -> PictureFile:
    """Return the picture in a file without its pixels; one that may be cut short or out of range is decoded, to see.

    Raises whatever the decoder raises, or ValueError.
    """
    stamp = _stamp(path)
    if stamp[0] == 0:
        raise ValueError("is empty (0 bytes)")
    with open_picture(path) as image:
        size, has_alpha = image.size, image.has_transparency_data
        if not _is_complete(path, image.format):
            image.draft(None, (1, 1))  # a JPEG as small as it gets: all of the file is read nevertheless
            image.load()
        # Not image.getexif(), which decodes a PNG to see what stands behind its pixels.
        on_its_side = Image.Image.getexif(image).get(ExifTags.Base.Orientation) in ON_ITS_SIDE
        is_deep = image.mode.startswith(("I", "F"))
        if is_deep:
            _deep_gray(image)  # refuses values out of range
    return PictureFile(path, size[::-1] if on_its_side else size, on_its_side, has_alpha, is_deep, stamp)


@contextmanager
def open_picture(path: Path) -> Iterator[ImageFile.ImageFile]:
    """Open a picture of a known format. Raises ValueError for one of too many pixels, however few bytes it has."""
    # A file, not its path: by path Pillow maps uncompressed TIFFs into memory and scrambles those turned by 90 degrees.
    with path.open("rb") as file, Image.open(file, formats=DECODERS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"has {image.width}x{image.height} pixels, and {MAX_PIXELS} are the most: scale it down")
        yield image


@contextmanager
def refuse_truncated() -> Iterator[None]:
    """Make Pillow raise on a truncated file, whatever another node pack set: half of it would be gray.

    And on one of too many pixels: a picture may hold another one, as an icon does, whose size shows only then.
    """
    before, most = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    Image.MAX_IMAGE_PIXELS = min(most or MAX_PIXELS, MAX_PIXELS // 2)  # Pillow warns of more, and refuses twice as many
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = before, most


def attempt(read: Callable[[], T], path: Path, problems: dict[Path, str]) -> T | None:
    """Return what `read` gives, or None after noting under `path` why it failed."""
    try:
        return read()
    # A broken file makes decoders raise almost anything (SyntaxError, struct.error, EOFError, ...); all are reported.
    except Exception as error:
        problems[path] = explain(error)
        return None


def explain(error: Exception) -> str:
    """Say in words that follow a file's name what is wrong with it."""
    if isinstance(error, UnidentifiedImageError):
        return "is no picture in a known format, or it is broken"
    if isinstance(error, UnicodeDecodeError):
        return f"is not UTF-8 (byte {error.start + 1} is 0x{error.object[error.start]:02x}): save the caption as UTF-8"
    return getattr(error, "strerror", None) or str(error).strip() or type(error).__name__


def to_unit_range(pixels: torch.Tensor) -> torch.Tensor:
    """Return pixels as float32 in [0, 1], from uint8 or from that already."""
    return pixels.float().div_(255) if pixels.dtype == torch.uint8 else pixels


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _is_complete(path: Path, form: str | None) -> bool:
    """Tell whether the file's end says that nothing is missing; of most formats it says nothing."""
    with path.open("rb") as file:
        if form in ("JPEG", "MPO"):
            file.seek(-2, os.SEEK_END)
            return file.read() == b"\xff\xd9"
        return form == "WEBP" or (form == "PNG" and _ends_with_pixels(file))  # half a WebP does not open


def _ends_with_pixels(file: BinaryIO) -> bool:
    """Tell whether a PNG has all of its chunks and nothing behind its pixels, such as an orientation."""
    file.seek(8)
    kinds = []
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        kinds.append(kind)
        file.seek(length + 4, os.SEEK_CUR)
    return kinds[-2:] == [b"IDAT", b"IEND"]


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data and image.mode != "RGBA":
        image = image.convert("RGBA")
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")  # which copies one that is RGB already


def _to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image))


def _deep_gray(image: Image.Image) -> torch.Tensor:
    """Return the gray of a picture with more than 8 bits, (H, W) in [0, 1]; Pillow's own conversion would clip it."""
    values = np.asarray(image).astype(np.float32)
    white = 1 if image.mode == "F" else 65535
    if not (values.min() >= 0 and values.max() <= white):
        raise ValueError(f"has gray values from {values.min():g} to {values.max():g}: save it with 8 or 16 bits")
    return torch.from_numpy(values / white)
