"""Converts colors from the profile that is embedded in an image to sRGB, which is what models are trained on."""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

logger = logging.getLogger(__name__)

MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # what a profile says of its colors -> Pillow's mode for them
GRAY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "F")  # modes
LEVELS = np.arange(256, dtype=np.uint8)


@dataclass(frozen=True)
class ColorConversion:
    """Converts images of one mode to sRGB. Not to be shared between threads: LittleCMS remembers the last pixel."""

    mode: str  # that an image must have: RGB, L, CMYK or LAB
    transform: ImageCms.ImageCmsTransform

    def to_srgb(self, image: Image.Image) -> Image.Image:
        """Return the RGB image of an image that is in `mode`, or of a gray one in RGB."""
        return self.transform.apply(image if image.mode == self.mode else image.convert(self.mode))

    def gray_curve(self) -> np.ndarray:
        """Return what the gray levels 0 to 255 become, (256,) float in [0, 1]."""
        return np.asarray(self.to_srgb(Image.fromarray(LEVELS[None])))[0].mean(-1) / 255

    def changes_colors(self) -> bool:
        """Tell whether any color changes by more than rounding does: a profile may be sRGB under any name."""
        side = LEVELS[::51]
        colors = np.stack(np.meshgrid(side, side, side), -1).reshape(1, -1, 3)
        probes = [np.repeat(LEVELS[None, :, None], 3, axis=2), *([] if self.mode == "L" else [colors])]
        changed = [np.asarray(self.to_srgb(Image.fromarray(probe))).astype(int) - probe for probe in probes]
        return self.mode not in ("RGB", "L") or max(np.abs(change).max() for change in changed) > 1


def find_conversion(image: Image.Image, path: Path | None = None) -> ColorConversion | None:
    """Return the conversion that an image needs, or None if its numbers are sRGB already, or count as such.

    path: the image's file, named in the log where its profile cannot be used.
    """
    profile = image.info.get("icc_profile")
    try:
        conversion = _read_lab() if image.mode == "LAB" else _read_profile(profile, image.mode) if profile else None
    except Exception as error:  # LittleCMS has no other class for its own errors, and may be missing
        if path:
            logger.warning("%s: its color profile is ignored (%s).", path, str(error) or "it is damaged")
        return None
    return conversion if conversion and conversion.changes_colors() else None


def _read_profile(profile: bytes, mode: str) -> ColorConversion:
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = opened.profile.xcolor_space.strip()
    if (space == "CMYK") != (mode == "CMYK") or (space == "GRAY" and mode not in GRAY) or space not in MODES:
        raise ValueError(f"it is for {space} colors, the image is {mode}")
    return _convert_from(opened, MODES[space])


def _read_lab() -> ColorConversion:
    return _convert_from(ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")), "LAB")


def _convert_from(profile: ImageCms.ImageCmsProfile, mode: str) -> ColorConversion:
    # As Photoshop does it by default. For profiles of three primaries, such as Display P3, all intents are the same.
    intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
    if mode == "L":
        flags |= ImageCms.Flags.NOOPTIMIZE  # which is off by up to 10 levels in the shadows of linear gray
    srgb = ImageCms.createProfile("sRGB")
    return ColorConversion(mode, ImageCms.buildTransform(profile, srgb, mode, "RGB", intent, flags))
