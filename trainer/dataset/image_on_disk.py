"""An image that stays in its file: the header is read at once, the pixels each time they are needed."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import ExifTags, Image, ImageFile

from .buckets import Resolution
from .color_profiles import ColorConversion, find_conversion
from .image_decoding import alpha_of, decode_deep_gray, is_deep, open_image, to_rgb, to_tensor, to_unit_range
from .side_data import png_chunks

logger = logging.getLogger(__name__)

# How an image is turned upright, by its EXIF orientation.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class ImageOnDisk:
    """An image file. Every method decodes it anew and raises what the decoder raises, or ValueError."""

    path: Path
    size: Resolution  # width, height in pixels, upright
    orientation: int  # EXIF's, 1 to 8; from 5 on, width and height are swapped in the file
    has_alpha: bool
    is_deep: bool  # gray of more than 8 bits
    has_own_colors: bool  # by an embedded profile that is not sRGB
    stamp: tuple[int, int]  # bytes and modification time (ns) when the header was read
    folder_note: str = ""  # what the report says of the folder it was found in

    def pixels(self) -> torch.Tensor:
        """Return the pixels of the first frame, (H, W, 3) float32 in [0, 1], upright, in sRGB."""
        with self._open() as opened:
            conversion = self._conversion(opened)
            image = self._turn_upright(opened)
        if self.is_deep:
            return decode_deep_gray(image, conversion)[:, :, None].repeat(1, 1, 3)
        image = to_rgb(image, conversion)
        return to_unit_range(to_tensor(conversion.to_srgb(image) if conversion else image))

    def alpha(self) -> torch.Tensor:
        """Return the alpha channel, (H, W) float32 in [0, 1], upright; 1 everywhere if the image has none."""
        if not self.has_alpha:
            return torch.ones(self.size[::-1])
        with self._open() as opened:
            image = self._turn_upright(opened)
        return alpha_of(image)

    def resize(self, sizes: Sequence[Resolution]) -> list[torch.Tensor]:
        """Return the pixels at each size (width, height), (H, W, 3) uint8, upright, in sRGB. Not for deep images."""
        stored = [size[::-1] if self.orientation > 4 else size for size in sizes]
        with self._open() as opened:
            # A JPEG decodes faster at 1/2, 1/4 or 1/8. From twice the wanted size on nobody can see it: the result
            # differs by less than 1/255 on average.
            draft = opened.draft(None, tuple(2 * max(sides) for sides in zip(*stored)))
            conversion = self._conversion(opened)
            image = to_rgb(opened, conversion)
        box = draft and draft[1]
        resized = [image.resize(size, Image.Resampling.BICUBIC, box) for size in stored]
        if conversion:  # now, when there are fewer pixels to convert
            resized = [conversion.to_srgb(small) for small in resized]
        return [to_tensor(self._turn_upright(small)) for small in resized]

    def _conversion(self, opened: ImageFile.ImageFile) -> ColorConversion | None:
        return find_conversion(opened) if self.has_own_colors else None

    def _turn_upright(self, image: Image.Image) -> Image.Image:
        image.load()
        return image.transpose(UPRIGHT[self.orientation]) if self.orientation in UPRIGHT else image

    @contextmanager
    def _open(self) -> Iterator[ImageFile.ImageFile]:
        if _stamp(self.path) != self.stamp:
            raise ValueError("has changed since it was loaded: run Load Image Folder again")
        with open_image(self.path) as image:
            yield image


ImageLike = torch.Tensor | ImageOnDisk  # (H, W, 3) float32 in [0, 1], or its file


def size_of(image: ImageLike) -> Resolution:
    """Return width, height in pixels of a tensor (H, W, ...) or a file."""
    return image.size if isinstance(image, ImageOnDisk) else (image.shape[1], image.shape[0])


def read_header(path: Path) -> ImageOnDisk:
    """Return the image of a file without its pixels; a file that may be truncated or out of range is decoded as a check.

    Raises whatever the decoder raises, or ValueError.
    """
    stamp = _stamp(path)
    if stamp[0] == 0:
        raise ValueError("is empty (0 bytes)")
    with open_image(path) as image:
        size, has_alpha = image.size, image.has_transparency_data
        if not _is_complete(path, image.format):
            image.draft(None, (1, 1))  # a JPEG as small as it gets: the whole file is read all the same
            image.load()
        orientation = _read_orientation(image, path)
        deep, has_own_colors = is_deep(image), find_conversion(image, path) is not None
        if deep:
            decode_deep_gray(image)  # refuses values out of range
    upright = size[::-1] if orientation > 4 else size
    return ImageOnDisk(path, upright, orientation, has_alpha, deep, has_own_colors, stamp)


def _read_orientation(image: ImageFile.ImageFile, path: Path) -> int:
    """Return an image's EXIF orientation, 1 if there is none or it cannot be read."""
    try:
        # Not image.getexif(), which decodes a PNG to find an orientation behind its pixels.
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    except Exception as error:  # damaged EXIF data makes Pillow raise almost anything
        logger.warning("%s: its EXIF data is ignored (%s).", path, error)
        return 1
    return orientation if orientation in UPRIGHT else 1


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _is_complete(path: Path, form: str | None) -> bool:
    """Tell whether the end of the file proves that nothing is missing; in most formats it proves nothing."""
    with path.open("rb") as file:
        if form in ("JPEG", "MPO"):
            file.seek(-2, os.SEEK_END)
            return file.read() == b"\xff\xd9"
        # No chunk, such as an orientation, stands behind the pixels of a PNG; half a WebP does not open.
        return form == "WEBP" or (form == "PNG" and [c.kind for c in png_chunks(file)][-2:] == [b"IDAT", b"IEND"])
