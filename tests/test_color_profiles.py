"""Embedded color profiles: colors come out in sRGB, as matrix arithmetic by hand says."""

from __future__ import annotations

import base64
import io
import struct

import numpy as np
import pytest
from icc_profiles import (
    ADOBE_PRIMARIES,
    ADOBE_RGB,
    DISPLAY_P3,
    GAMMA,
    P3_PRIMARIES,
    SRGB,
    cmyk_profile,
    expected_srgb,
    gray_profile,
    linear_to_srgb,
    make_profile,
    srgb_to_linear,
)
from image_files import CAT, MAN, load_one, to_bytes, write
from pack.nodes import folders
from pack.trainer.dataset.buckets import BucketConfig
from pack.trainer.dataset.fill_buckets import fill_buckets
from PIL import Image

LOSSLESS = ["png", "tif", "webp", "jp2"]


def in_a_row(*colors: tuple[int, ...]) -> np.ndarray:
    """Return patches of 64x64 pixels beside each other."""
    return np.repeat(np.repeat(np.array([colors], np.uint8), 64, axis=0), 64, axis=1)


def write_with_profile(path, pixels: np.ndarray | Image.Image, profile: bytes):
    """Write an image with a profile; Pillow writes none into JPEG 2000."""
    write(path, pixels, icc_profile=profile, lossless=True, quality=100)
    if path.suffix == ".jp2":
        content = path.read_bytes()
        header, colors = content.index(b"jp2h") - 4, content.index(b"colr") - 4
        size, old = struct.unpack_from(">I", content, header)[0], struct.unpack_from(">I", content, colors)[0]
        box = struct.pack(">I", 11 + len(profile)) + b"colr\2\0\0" + profile
        content = content[:colors] + box + content[colors + old :]
        path.write_bytes(content[:header] + struct.pack(">I", size + len(box) - old) + content[header + 4 :])


def both_ways(folder) -> list[np.ndarray]:
    """Return the image of a folder decoded as a whole, and cropped to a bucket of its own size."""
    image = load_one(folder).file
    config = BucketConfig(*image.size, 8, 8, max_ratio=16)
    (cropped,) = fill_buckets([image], [""], None, config)
    return [to_bytes(image.pixels()), cropped.pixels.numpy()]


@pytest.mark.parametrize("extension", [*LOSSLESS, "jpg", "avif", "gif", "bmp"])
def test_the_red_of_srgb_in_display_p3_is_pure_red(tmp_path, extension):
    red = in_a_row((234, 51, 35))
    write_with_profile(tmp_path / f"red.{extension}", red, DISPLAY_P3)
    expected = red[0, 0] if extension in ("gif", "bmp") else (255, 0, 0)  # Pillow reads and writes no profile there
    for pixels in both_ways(tmp_path):
        assert np.abs(pixels[16:48, 16:48].astype(int) - expected).max() <= 2


@pytest.mark.parametrize("extension", LOSSLESS)
@pytest.mark.parametrize(
    "profile, primaries, linear",
    [(DISPLAY_P3, P3_PRIMARIES, srgb_to_linear), (ADOBE_RGB, ADOBE_PRIMARIES, lambda values: values**GAMMA)],
    ids=["Display P3", "Adobe RGB"],
)
def test_every_color_is_what_matrix_arithmetic_says(tmp_path, extension, profile, primaries, linear):
    colors = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    write_with_profile(tmp_path / f"a.{extension}", colors, profile)
    for pixels in both_ways(tmp_path):
        assert np.abs(pixels - expected_srgb(colors, primaries, linear)).max() < 1.5


def test_a_resized_and_rotated_photo_has_the_colors_of_the_converted_one(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    write(tmp_path / "cat.png", CAT, icc_profile=DISPLAY_P3, exif=exif)
    converted = expected_srgb(CAT, P3_PRIMARIES, srgb_to_linear).round().astype(np.uint8)
    upright = Image.fromarray(converted).transpose(Image.Transpose.ROTATE_270).resize((50, 85), Image.BICUBIC)
    (pixels,) = load_one(tmp_path).file.resize([(50, 85)])
    assert np.abs(pixels.numpy().astype(int) - np.asarray(upright)).mean() < 1


def test_alpha_and_palettes_are_kept_while_their_colors_are_converted(tmp_path):
    red = in_a_row((234, 51, 35), (0, 0, 0))
    alpha = np.repeat(np.array([0, 255], np.uint8), 64)[None].repeat(64, axis=0)
    write(tmp_path / "a" / "a.png", np.dstack([red, alpha]), icc_profile=DISPLAY_P3)
    palette = Image.fromarray(red).quantize(2)
    write(tmp_path / "b" / "b.png", palette, icc_profile=DISPLAY_P3)
    for name in "ab":
        for pixels in both_ways(tmp_path / name):
            assert np.abs(pixels[32, [16, 112]].astype(int) - [[255, 0, 0], [0, 0, 0]]).max() <= 2
    assert np.array_equal(to_bytes(load_one(tmp_path / "a").file.alpha()), alpha)


@pytest.mark.parametrize("extension", ["png", "jpg", "tif"])
def test_linear_gray_becomes_lighter(tmp_path, extension):
    levels = in_a_row(*[(level,) * 3 for level in (0, 1, 5, 55, 128, 200, 255)])[:, :, 0]
    write(tmp_path / f"a.{extension}", levels, icc_profile=gray_profile(1), quality=100)
    expected = linear_to_srgb(levels / 255)[:, :, None] * 255
    for pixels in both_ways(tmp_path):
        assert np.abs(pixels[:, 16::64] - expected[:, 16::64]).max() < 2


def test_linear_gray_of_sixteen_bits_becomes_lighter(tmp_path):
    deep = MAN.astype(np.uint16) * 257 - MAN // 8
    write(tmp_path / "a.tif", deep, icc_profile=gray_profile(1))
    pixels = load_one(tmp_path).file.pixels()[:, :, 0].numpy()
    np.testing.assert_allclose(pixels, linear_to_srgb(deep / 65535), atol=1.5 / 255)


@pytest.mark.parametrize("extension", ["tif", "jpg"])
def test_cmyk_is_converted_by_its_profile(tmp_path, extension):
    # Without ink it is white, with all of the first ink alone of lightness 50, black with any other.
    profile = cmyk_profile(lambda inks: 100 if not any(inks) else 50 if inks == (1, 0, 0, 0) else 0)
    inks = in_a_row((0, 0, 0, 0), (255, 0, 0, 0), (128, 0, 0, 0), (0, 0, 0, 255))
    image = Image.frombytes("CMYK", (256, 64), inks.tobytes())
    write(tmp_path / f"a.{extension}", image, icc_profile=profile, quality=100, subsampling=0)
    lightness = np.array([100, 50, 100 - 50 * 128 / 255, 0])
    luminance = np.where(lightness > 8, ((lightness + 16) / 116) ** 3, lightness / 903.3)
    for pixels in both_ways(tmp_path):
        seen = pixels[32, 32::64].astype(int)
        assert np.abs(seen - linear_to_srgb(luminance)[:, None] * 255).max() <= 3


def test_lab_is_converted(tmp_path):
    values = in_a_row((50 * 255 // 100, 0, 0))
    write(tmp_path / "a.tif", Image.frombytes("LAB", (64, 64), values.tobytes()))
    luminance = ((127 / 2.55 + 16) / 116) ** 3
    for pixels in both_ways(tmp_path):
        assert np.abs(pixels[:, :, 1] - linear_to_srgb(luminance) * 255).max() < 2


@pytest.mark.parametrize("extension", ["png", "tif", "webp"])
def test_a_profile_that_is_srgb_and_no_profile_change_no_bit(tmp_path, extension, caplog):
    write(tmp_path / "a" / f"a.{extension}", CAT, icc_profile=SRGB, lossless=True)
    write(tmp_path / "b" / f"b.{extension}", CAT, lossless=True)
    for name in "ab":
        image = load_one(tmp_path / name).file
        assert np.array_equal(to_bytes(image.pixels()), CAT) and not image.has_own_colors
        (small,) = image.resize([(85, 50)])
        assert np.array_equal(small.numpy(), np.asarray(Image.fromarray(CAT).resize((85, 50), Image.BICUBIC)))
    assert not caplog.records


WRONG = {
    "noise": b"not a profile",
    "cut off": DISPLAY_P3[:300],
    "for CMYK": cmyk_profile(lambda inks: 100 - 25 * sum(inks)),
    "for gray": gray_profile(1),
    "for another space": make_profile(b"HSV ", {}),
    "without curves": make_profile(b"RGB ", {}),
}


@pytest.mark.parametrize("profile", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("extension", ["png", "tif", "webp"])
def test_a_damaged_or_unfit_profile_is_ignored_with_a_line_in_the_log(tmp_path, profile, extension, caplog):
    write(tmp_path / f"cat.{extension}", CAT, icc_profile=profile, lossless=True)
    assert np.array_equal(to_bytes(load_one(tmp_path).file.pixels()), CAT)
    assert [f"cat.{extension}: its color profile is ignored" in record.message for record in caplog.records] == [True]


def test_a_gray_image_with_a_profile_for_colors_is_converted_as_gray_in_it(tmp_path):
    write(tmp_path / "a.png", MAN, icc_profile=ADOBE_RGB)
    expected = expected_srgb(np.dstack([MAN] * 3), ADOBE_PRIMARIES, lambda values: values**GAMMA)
    assert np.abs(to_bytes(load_one(tmp_path).file.pixels()) - expected).max() < 1.5


def test_thumbnails_have_the_colors_that_are_trained(tmp_path):
    write(tmp_path / "red.png", in_a_row((234, 51, 35)), icc_profile=DISPLAY_P3)
    head, body = folders._draw_thumbnail(tmp_path / "red.png").split(",")
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(body))))
    assert np.abs(pixels.astype(int) - (255, 0, 0)).max() <= 3
