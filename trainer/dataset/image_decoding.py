"""Opens and decodes images safely with Pillow: known formats, bounded size, no truncated files, no clipped 16-bit gray."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFile, Jpeg2KImagePlugin, TiffImagePlugin

from .color_profiles import ColorConversion
from .image_formats import DECODERS
from .side_data import drop_side_data, jpeg2000_bits

MAX_PIXELS = 178_956_970  # where Pillow refuses, too, unless another pack has switched that off
MIN_IS_WHITE, SEPARATE_PLANES, ASSOCIATED_ALPHA = 0, 2, 1  # values of TIFF tags
PNG_GRAY_LEVELS = {"L;2": 85, "L;4": 17}  # what Pillow multiplies gray of 2 and 4 bits by, but not its transparent one


@contextmanager
def open_image(path: Path) -> Iterator[ImageFile.ImageFile]:
    """Open an image in a supported format; damage beside its pixels does not matter.

    Raises ValueError for too many pixels, however few bytes the file has, and for an image that Pillow decodes wrongly.
    """
    # A file, not its path: by path Pillow maps uncompressed TIFFs into memory and scrambles those rotated by 90 degrees.
    with path.open("rb") as file:
        content, profile = drop_side_data(file)
        with Image.open(content, formats=DECODERS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"has {image.width}x{image.height} pixels, but the limit is {MAX_PIXELS}: resize it")
            if isinstance(image, TiffImagePlugin.TiffImageFile):
                _refuse_misread_tiff(image)
            if isinstance(image, Jpeg2KImagePlugin.Jpeg2KImageFile) and not is_deep(image):
                _refuse_misread_jpeg2000(jpeg2000_bits(content))
            _mend_info(image, profile)
            yield image


def _refuse_misread_tiff(image: TiffImagePlugin.TiffImageFile) -> None:
    """Raise ValueError for TIFFs that Pillow decodes to something else (seen in 13.0.0)."""
    tags, compressed = image.tag_v2, image.info.get("compression") != "raw"
    separate = tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == SEPARATE_PLANES
    bits = max(np.atleast_1d(tags.get(TiffImagePlugin.BITSPERSAMPLE, 1)))
    is_multiplied = ASSOCIATED_ALPHA in np.atleast_1d(tags.get(TiffImagePlugin.EXTRASAMPLES, 0))
    if separate and (image.mode in ("LA", "La") or (not compressed and (bits > 8 or is_multiplied))):
        raise ValueError(f"is a TIFF with separate planes of {bits} bits, which come out scrambled: save it as PNG")
    if is_deep(image) and tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == MIN_IS_WHITE:
        raise ValueError(f"is a TIFF of {bits} bits in which 0 is white, which comes out as a negative: save it as PNG")
    if is_deep(image) and compressed and tags.prefix == TiffImagePlugin.MM and image.mode != "I;16B":
        raise ValueError(f"is a compressed big-endian TIFF of {bits} bits, which comes out scrambled: save it as PNG")


def _refuse_misread_jpeg2000(bits: int) -> None:
    """Raise ValueError where Pillow rounds the topmost values to 256, which become 0 (seen in 13.0.0)."""
    if bits > 8:
        raise ValueError(
            f"is a JPEG 2000 in color or with alpha of {bits} bits, whose white comes out black: save it as PNG"
        )


def _mend_info(image: ImageFile.ImageFile, profile: bytes | None) -> None:
    """Correct what Pillow says of an image: its profile, the scale of its transparent color, texts instead of bytes."""
    if profile:
        image.info["icc_profile"] = profile
    for key in ("exif", "icc_profile", "xmp"):
        if not isinstance(image.info.get(key, b""), bytes):
            del image.info[key]
    transparent, how = image.info.get("transparency"), image.tile[0][3] if image.tile else None
    if image.format == "PNG" and how in PNG_GRAY_LEVELS and isinstance(transparent, int):
        image.info["transparency"] = transparent * PNG_GRAY_LEVELS[how]
    elif image.format == "PNG" and how == "RGB;16B" and transparent:  # decoded to its upper 8 bits
        image.info["transparency"] = tuple(value >> 8 for value in transparent)


class _PillowSettings:
    """Settings of Pillow that hold for the whole process, while any thread here decodes: counted, then given back."""

    def __init__(self) -> None:
        self._lock, self._users = threading.Lock(), 0
        self._theirs, self._ours = (), ()

    def acquire(self) -> None:
        with self._lock:
            if not self._users:
                most = Image.MAX_IMAGE_PIXELS or MAX_PIXELS
                # Pillow warns above the limit, and raises above twice the limit.
                self._theirs, self._ours = _read_settings(), (False, min(most, MAX_PIXELS // 2))
                ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = self._ours
            self._users += 1

    def release(self) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                # What another pack has set in the meantime stays.
                now = zip(_read_settings(), self._ours, self._theirs)
                settings = [theirs if value is ours else value for value, ours, theirs in now]
                ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = settings


def _read_settings() -> tuple[bool, int | None]:
    return ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS


_settings = _PillowSettings()


@contextmanager
def refuse_truncated() -> Iterator[None]:
    """Make Pillow raise on a truncated file, which it may be set to fill with gray, and on too many pixels.

    The latter also inside other images: an icon may hold a PNG whose size shows only when it is decoded. Threads may be
    in here together; after the last one the settings are again what they were.
    """
    _settings.acquire()
    try:
        yield
    finally:
        _settings.release()


def to_rgb(image: Image.Image, conversion: ColorConversion | None = None) -> Image.Image:
    """Return a loaded image of 8 bits as RGB; alpha is dropped.

    With a conversion the colors are still those of the image's profile, and CMYK and LAB stay as they are.
    """
    if image.mode == "La":  # gray, multiplied by its alpha
        image = image.convert("LA")
    if image.has_transparency_data and image.mode != "RGBA":
        image = image.convert("RGBA")
    image.load()
    if image.mode == "RGB" or (conversion and image.mode == conversion.mode):
        return image  # convert copies even what is RGB already
    return image.convert("RGB")


def alpha_of(image: Image.Image) -> torch.Tensor:
    """Return the alpha channel of a loaded image, (H, W) float32 in [0, 1]."""
    if is_deep(image):
        return torch.from_numpy(np.asarray(image) != image.info["transparency"]).float()
    image = image.convert("LA") if image.mode == "La" else image
    return to_unit_range(to_tensor(image.convert("RGBA").getchannel("A")))


def is_deep(image: Image.Image) -> bool:
    """Tell whether an image is gray with more than 8 bits."""
    return image.mode.startswith(("I", "F"))


def decode_deep_gray(image: Image.Image, conversion: ColorConversion | None = None) -> torch.Tensor:
    """Return gray of more than 8 bits, (H, W) float32 in [0, 1]; Pillow's own conversion would clip it.

    Raises ValueError for values below black or above white.
    """
    values = np.asarray(image).astype(np.float32)
    white = 1 if image.mode == "F" else 65535
    if not (values.min() >= 0 and values.max() <= white):
        raise ValueError(
            f"has gray values from {values.min():g} to {values.max():g} instead of 0 to {white}: save it with 8 or 16 bits"
        )
    values = values / white
    if conversion:
        curve = conversion.gray_curve()
        values = np.interp(values, np.linspace(0, 1, len(curve)), curve).astype(np.float32)
    return torch.from_numpy(values)


def to_tensor(image: Image.Image) -> torch.Tensor:
    """Return the pixels of an image of 8 bits, (H, W, C) or (H, W) uint8."""
    return torch.from_numpy(np.array(image))


def to_unit_range(pixels: torch.Tensor) -> torch.Tensor:
    """Return uint8 pixels as float32 in [0, 1]; float pixels are returned as they are."""
    return pixels.float().div_(255) if pixels.dtype == torch.uint8 else pixels
