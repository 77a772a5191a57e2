"""Draws the pack's icon and banner for the registry: a star that comes out of noise along a loss curve.

    python -m tools.registry_pictures

It writes docs/icon.png (square) and docs/banner.png (21:9); matplotlib brings the font.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from .host_paths import ROOT

ICON, BANNER = (400, 400), (1260, 540)
SCALE = 3  # everything is drawn this much larger, for smooth edges
DARK, LIGHT = (24, 16, 48), (74, 38, 128)  # the background's corners
STAR, EDGE, CURVE, TEXT = (186, 104, 255), (232, 198, 255), (255, 196, 87), (245, 240, 255)


def background(size: tuple[int, int]) -> Image.Image:
    """Draw a diagonal gradient."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    share = ((x + 1 - y) / 2)[..., None]
    return Image.fromarray((np.array(DARK) * (1 - share) + np.array(LIGHT) * share).astype(np.uint8))


def star(size: int) -> Image.Image:
    """Draw a star of five points with a light edge and a glow, on nothing."""
    image = Image.new("RGBA", (size, size))
    radii = [0.40 * size, 0.175 * size] * 5
    angles = [math.pi * (index / 5 - 0.5) for index in range(10)]
    points = [(size / 2 + r * math.cos(a), size / 2 + r * math.sin(a) + 0.03 * size) for r, a in zip(radii, angles)]
    draw = ImageDraw.Draw(image)
    draw.polygon(points, fill=STAR)
    draw.line([*points, *points[:2]], fill=EDGE, width=size // 40, joint="curve")
    glow = image.filter(ImageFilter.GaussianBlur(size / 14))
    return Image.alpha_composite(glow, image)


def noisy_star(size: int, noise: float, seed: int, cells: int = 24) -> Image.Image:
    """Draw a tile with a star, of which noise covers a share: 0 is the star alone, 1 is noise alone."""
    clean = background((size, size)).convert("RGBA")
    clean.alpha_composite(star(size))
    coarse = np.random.default_rng(seed).normal(128, 70, (cells, cells, 3)).clip(0, 255) * (0.75, 0.55, 1)
    grain = Image.fromarray(coarse.astype(np.uint8)).resize((size, size), Image.Resampling.NEAREST)
    return rounded(Image.blend(clean.convert("RGB"), grain, noise), size // 9)


def rounded(image: Image.Image, radius: int) -> Image.Image:
    """Cut the corners of an image round."""
    mask = Image.new("L", image.size)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, image.width - 1, image.height - 1), radius, fill=255)
    image = image.convert("RGBA")
    image.putalpha(mask)
    return image


def loss_curve(image: Image.Image, box: tuple[int, int, int, int], width: int, wobble: float) -> None:
    """Draw a falling curve that wobbles at first into a box (left, top, right, bottom)."""
    left, top, right, bottom = box
    x = np.linspace(0, 1, 60)
    noise = np.random.default_rng(3).normal(0, wobble, x.size) * np.exp(-2 * x)
    y = np.clip(np.exp(-3.2 * x) + noise, 0, 1)
    points = [(left + (right - left) * a, bottom - (bottom - top) * b) for a, b in zip(x, y)]
    ImageDraw.Draw(image).line(points, fill=CURVE, width=width, joint="curve")
    end, radius = points[-1], 2 * width
    ImageDraw.Draw(image).ellipse((end[0] - radius, end[1] - radius, end[0] + radius, end[1] + radius), fill=CURVE)


def font(size: int, name: str = "DejaVuSans-Bold.ttf") -> ImageFont.FreeTypeFont:
    """Load the font that matplotlib brings."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)


def draw_icon() -> Image.Image:
    """Draw the star half out of the noise, with the curve below."""
    side = ICON[0] * SCALE
    clean, noise = noisy_star(side, 0, 0), noisy_star(side, 0.85, 5, cells=14)
    ramp = np.clip((0.62 - np.linspace(0, 1, 14)) / 0.5, 0, 1)  # noise at the left, in whole columns
    mask = Image.fromarray((np.tile(ramp, (14, 1)) * 255).astype(np.uint8)).resize(clean.size, Image.Resampling.NEAREST)
    image = Image.composite(noise, clean, mask)
    loss_curve(image, (side // 9, side // 2, side - side // 7, side - side // 9), side // 40, 0)
    return rounded(image.convert("RGB"), side // 6).resize(ICON, Image.Resampling.LANCZOS)


def draw_banner() -> Image.Image:
    """Draw five tiles from noise to the star below the name."""
    width, height = BANNER[0] * SCALE, BANNER[1] * SCALE
    image = background((width, height)).convert("RGBA")
    draw, left, tile = ImageDraw.Draw(image), width // 16, width * 10 // 64
    draw.text((left, height * 9 // 100), "TrainTrain", font=font(height // 5), fill=TEXT)
    line = "Train LoRAs inside a ComfyUI graph"
    draw.text((left, height * 34 // 100), line, font=font(height // 15, "DejaVuSans.ttf"), fill=EDGE)
    gap = (width - 2 * left - 5 * tile) // 4
    for index, noise in enumerate((1.0, 0.8, 0.55, 0.28, 0.0)):
        image.alpha_composite(noisy_star(tile, noise, index), (left + index * (tile + gap), height * 54 // 100))
    loss_curve(image, (width * 62 // 100, height // 9, width - left, height * 42 // 100), height // 90, 0.05)
    return image.convert("RGB").resize(BANNER, Image.Resampling.LANCZOS)


def main() -> None:
    """Write both pictures."""
    draw_icon().save(ROOT / "docs" / "icon.png", optimize=True)
    draw_banner().quantize(256).save(ROOT / "docs" / "banner.png", optimize=True)


if __name__ == "__main__":
    main()
