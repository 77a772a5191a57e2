"""Image formats: each decodes to the photograph it was written from, upright, with its alpha as mask."""

from __future__ import annotations

import base64
import itertools
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from image_files import CAT, MAN, load, load_one, to_bytes, write
from PIL import Image
from skimage import data

LOSSLESS = ["PNG", "png", "tif", "TIFF", "bmp", "pcx", "Webp", "apng", "jp2", "J2K", "jpx", "jpf", "jpc", "j2c"]


@pytest.mark.parametrize("extension", LOSSLESS)
def test_a_photo_in_a_lossless_format_loads_bit_for_bit(tmp_path, extension):
    write(tmp_path / f"cat.{extension}", lossless=True)
    image = load_one(tmp_path)
    assert np.array_equal(to_bytes(image.file.pixels()), CAT)
    assert image.file.pixels().dtype == torch.float32 and image.file.pixels().is_contiguous()
    assert image.file.alpha().shape == (100, 170) and bool((image.file.alpha() == 1).all())


@pytest.mark.parametrize("extension", ["jpg", "JPEG", "Jpg", "jfif", "JPE", "mpo", "avif"])
def test_a_jpeg_loads_close_to_its_photo(tmp_path, extension):
    write(tmp_path / f"cat.{extension}", quality=95)
    assert np.abs(to_bytes(load_one(tmp_path).file.pixels()).astype(int) - CAT).mean() < 4


def test_an_icon_loads_its_largest_image(tmp_path):
    square = Image.fromarray(data.astronaut()[100:356, 100:356])
    write(tmp_path / "a.ico", square, sizes=[(32, 32), (256, 256)])
    assert np.array_equal(to_bytes(load_one(tmp_path).file.pixels()), np.asarray(square))


def test_a_gif_has_the_colors_of_its_palette(tmp_path):
    reduced = Image.fromarray(CAT).quantize(256)
    write(tmp_path / "cat.gif", reduced)
    assert np.array_equal(to_bytes(load_one(tmp_path).file.pixels()), np.asarray(reduced.convert("RGB")))


@pytest.mark.parametrize("extension", ["png", "tif", "webp"])
def test_alpha_becomes_the_mask_unchanged(tmp_path, extension):
    alpha = np.tile(np.linspace(0, 255, 170).astype(np.uint8), (100, 1))
    write(tmp_path / f"cat.{extension}", np.dstack([CAT, alpha]), lossless=True, exact=True)
    image = load_one(tmp_path)
    assert np.array_equal(to_bytes(image.file.alpha()), alpha)
    assert np.array_equal(to_bytes(image.file.pixels()), CAT)


def test_gray_with_alpha_gives_gray_pixels_and_a_mask(tmp_path):
    alpha = np.where(np.arange(128) < 40, 0, 255).astype(np.uint8) * np.ones((128, 1), np.uint8)
    write(tmp_path / "man.png", np.dstack([MAN, alpha]))
    image = load_one(tmp_path)
    assert np.array_equal(to_bytes(image.file.pixels()), np.dstack([MAN] * 3))
    assert np.array_equal(to_bytes(image.file.alpha()), alpha)


def test_a_palette_with_one_transparent_color_masks_that_color(tmp_path):
    indices = np.arange(100 * 170).reshape(100, 170).astype(np.uint8) % 7
    indexed = Image.frombytes("P", (170, 100), indices.tobytes())
    colors = [30, 60, 90] + [200, 10, 10] * 2 + [0, 250, 0] * 4
    indexed.putpalette(colors)
    for name in ("a.gif", "b.png"):
        write(tmp_path / name, indexed, transparency=3)
    for image in load(tmp_path):
        assert np.array_equal(image.file.alpha().numpy(), (indices != 3).astype(np.float32))
        assert np.array_equal(to_bytes(image.file.pixels()), np.array(colors, np.uint8).reshape(7, 3)[indices])


def test_a_palette_with_partial_transparency_gives_a_soft_mask(tmp_path):
    indices = np.arange(64 * 64).reshape(64, 64).astype(np.uint8) % 4
    image = Image.frombytes("P", (64, 64), indices.tobytes())
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    write(tmp_path / "a.png", image, transparency=bytes([0, 51, 102, 255]))
    assert np.array_equal(to_bytes(load_one(tmp_path).file.alpha()), np.array([0, 51, 102, 255])[indices])


@pytest.mark.parametrize("extension", ["tif", "jpg"])
def test_cmyk_becomes_rgb(tmp_path, extension):
    write(tmp_path / f"cat.{extension}", Image.fromarray(CAT).convert("CMYK"), quality=98)
    assert np.abs(to_bytes(load_one(tmp_path).file.pixels()).astype(int) - CAT).mean() < 4


@pytest.mark.parametrize("extension", ["png", "tif"])
@pytest.mark.parametrize("byte_order", ["<u2", ">u2"])
def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path, extension, byte_order):
    deep = MAN.astype(np.uint16) * 257 - MAN // 8
    write(tmp_path / f"man.{extension}", Image.fromarray(deep.astype(byte_order)))
    pixels = load_one(tmp_path).file.pixels()
    assert pixels.shape == (128, 128, 3)
    np.testing.assert_allclose(pixels[:, :, 1].numpy(), deep / 65535, atol=1e-7)


def test_a_floating_point_image_loads_if_its_values_are_from_zero_to_one(tmp_path):
    write(tmp_path / "inside.tif", (MAN / 255).astype(np.float32))
    np.testing.assert_allclose(load_one(tmp_path).file.pixels()[:, :, 0].numpy(), MAN / 255, atol=1e-6)
    write(tmp_path / "outside.tif", MAN.astype(np.float32))
    with pytest.raises(
        ValueError, match="outside.tif: has gray values from .* instead of 0 to 1: save it with 8 or 16 bits"
    ):
        load(tmp_path)


def test_black_and_white_and_gray_images_have_three_equal_channels(tmp_path):
    write(tmp_path / "bits.png", Image.fromarray(MAN).convert("1", dither=Image.Dither.NONE))
    write(tmp_path / "gray.jpg", MAN, quality=100)
    bits, gray = load(tmp_path)
    assert np.array_equal(to_bytes(bits.file.pixels())[:, :, 2], np.where(MAN >= 128, 255, 0))
    assert np.abs(to_bytes(gray.file.pixels()).astype(int) - MAN[:, :, None]).max() <= 4


# What stands in the file for each EXIF orientation, by the standard's "0th row, 0th column" table.
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[:, ::-1],
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("extension", ["png", "tif", "webp", "jpg"])
def test_every_exif_orientation_comes_out_upright_with_its_mask(tmp_path, orientation, extension):
    pixels = CAT if extension == "jpg" else np.dstack([CAT, CAT[:, :, 0] | 1])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED[orientation](pixels))
    write(tmp_path / f"cat.{extension}", stored, exif=exif, lossless=True, quality=95)
    image = load_one(tmp_path)
    assert image.file.pixels().shape == (100, 170, 3)
    assert np.abs(to_bytes(image.file.pixels()).astype(int) - CAT).mean() < 4
    if extension != "jpg":
        assert np.array_equal(to_bytes(image.file.alpha()), CAT[:, :, 0] | 1)


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("extension", ["png", "tif"])
def test_a_rotated_sixteen_bit_image_comes_out_upright(tmp_path, orientation, extension):
    exif = Image.Exif()
    exif[0x0112] = orientation
    deep = np.ascontiguousarray(STORED[orientation](MAN[:80].astype(np.uint16) * 257))
    write(tmp_path / f"man.{extension}", deep, exif=exif)
    np.testing.assert_allclose(load_one(tmp_path).file.pixels()[:, :, 0].numpy(), MAN[:80] / 255, atol=1e-6)


@pytest.mark.parametrize("extension", ["gif", "png", "webp", "tiff"])
def test_an_animation_gives_its_first_frame(tmp_path, extension):
    frames = [Image.fromarray(a).quantize(64).convert("RGB") for a in (CAT, CAT[::-1], 255 - CAT)]
    write(tmp_path / f"a.{extension}", frames[0], save_all=True, append_images=frames[1:], lossless=True)
    assert np.array_equal(to_bytes(load_one(tmp_path).file.pixels()), np.asarray(frames[0]))


def test_an_image_with_the_extension_of_another_format_loads(tmp_path):
    write(tmp_path / "cat.jpg", format="PNG")
    assert np.array_equal(to_bytes(load_one(tmp_path).file.pixels()), CAT)


@pytest.mark.parametrize("extension", ["avif", "jp2", "j2k"])
def test_the_newer_formats_have_masks_and_are_named_when_cut_off(tmp_path, extension):
    alpha = np.tile(np.linspace(0, 255, 170).astype(np.uint8), (100, 1))
    path = write(
        tmp_path / f"cat.{extension}", np.dstack([CAT, alpha]), **({"quality": 100} if extension == "avif" else {})
    )
    assert np.abs(to_bytes(load_one(tmp_path).file.alpha()).astype(int) - alpha).max() <= 2
    content = path.read_bytes()
    for part in (0.3, 0.9, 0.97):
        path.write_bytes(content[: int(len(content) * part)])
        with pytest.raises(ValueError, match=f"- cat.{extension}: "):
            load(tmp_path)


def write_png(path: Path, depth: int, color: int, row: bytes, transparent: tuple[int, ...]) -> None:
    """Write a PNG of one row of four pixels by hand; `color` is 0 for gray and 2 for RGB."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 4, 1, depth, color, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks + pixels)


@pytest.mark.parametrize(
    "depth, color, row, transparent",
    [
        (1, 0, bytes([0b01000000]), (1,)),
        (2, 0, bytes([0b00_10_01_11]), (2,)),
        (4, 0, bytes([0x0A, 0x5F]), (10,)),
        (8, 0, bytes([0, 7, 8, 255]), (7,)),
        (16, 0, struct.pack(">4H", 0, 300, 301, 65535), (300,)),
        (8, 2, bytes([0, 0, 0, 9, 8, 7, 9, 8, 6, 1, 2, 3]), (9, 8, 7)),
        (
            16,
            2,
            struct.pack(">12H", 0, 0, 0, 0x1234, 0x5678, 0x9ABC, 0x1234, 0x5678, 0, 1, 2, 3),
            (0x1234, 0x5678, 0x9ABC),
        ),
    ],
    ids=["1 bit", "2 bits", "4 bits", "8 bits", "16 bits", "RGB", "RGB of 16 bits"],
)
def test_a_png_with_one_transparent_color_masks_it_at_any_depth(tmp_path, depth, color, row, transparent):
    write_png(tmp_path / "a.png", depth, color, row, transparent)
    image = load_one(tmp_path).file
    assert image.has_alpha and image.alpha().tolist() == [[1, 0, 1, 1]]
    assert image.pixels().shape == (1, 4, 3)


# A black pixel and three white ones, as imagecodecs 2026.3.6 writes them; Pillow writes no more than 8 bits of a channel.
JPEG2000 = {
    "RGB of 8 bits": "/0//UQAvAAAAAAACAAAAAgAAAAAAAAAAAAAAAgAAAAIAAAAAAAAAAAADBwEBBwEBBwEB/1IADAAAAAEBAAQEAAH/XAAEQED/ZAAlAAFDcmVhdGVkIGJ5IE9wZW5KUEVHIHZlcnNpb24gMi41LjT/kAAKAAAAAAAZAAH/k9+AMAdmdwk4H4CA/9k=",
    "gray of 12 bits": "/0//UQApAAAAAAACAAAAAgAAAAAAAAAAAAAAAgAAAAIAAAAAAAAAAAABCwEB/1IADAAAAAEAAAQEAAH/XAAEQGD/ZAAlAAFDcmVhdGVkIGJ5IE9wZW5KUEVHIHZlcnNpb24gMi41LjT/kAAKAAAAAAAYAAH/k9/gHAdmdwk4Hdj/2Q==",
    "RGB of 12 bits": "/0//UQAvAAAAAAACAAAAAgAAAAAAAAAAAAAAAgAAAAIAAAAAAAAAAAADCwEBCwEBCwEB/1IADAAAAAEBAAQEAAH/XAAEQGD/ZAAlAAFDcmVhdGVkIGJ5IE9wZW5KUEVHIHZlcnNpb24gMi41LjT/kAAKAAAAAAAaAAH/k9/gHAdmdwk4HdiAgP/Z",
    "gray with alpha of 10 bits": "AAAADGpQICANCocKAAAAFGZ0eXBqcDIgAAAAAGpwMiAAAAAtanAyaAAAABZpaGRyAAAAAgAAAAIAAgkHAAAAAAAPY29scgEAAAAAABEAAACVanAyY/9P/1EALAAAAAAAAgAAAAIAAAAAAAAAAAAAAAIAAAACAAAAAAAAAAAAAgkBAQkBAf9SAAwAAAABAAAEBAAB/1wABEBQ/2QAJQABQ3JlYXRlZCBieSBPcGVuSlBFRyB2ZXJzaW9uIDIuNS40/5AACgAAAAAAIAAB/5PfsDAHZncJOB3fsDAHZncJOB3/2Q==",
}


@pytest.mark.parametrize("kind", JPEG2000)
def test_white_in_a_jpeg_2000_is_white_or_the_file_is_refused(tmp_path, kind):
    (tmp_path / f"a.{'jp2' if 'alpha' in kind else 'j2k'}").write_bytes(base64.b64decode(JPEG2000[kind]))
    if kind in ("RGB of 8 bits", "gray of 12 bits"):
        pixels = load_one(tmp_path).file.pixels()
        torch.testing.assert_close(pixels[:, :, 0], torch.tensor([[0.0, 1.0], [1.0, 1.0]]), atol=1e-3, rtol=0)
    else:
        with pytest.raises(
            ValueError, match="is a JPEG 2000 in color or with alpha of 1[02] bits, whose white comes out"
        ):
            load(tmp_path)


def test_gray_multiplied_by_its_alpha_is_divided_by_it(tmp_path):
    alpha = np.where(np.arange(128) < 40, 100, 255).astype(np.uint8) * np.ones((128, 1), np.uint8)
    stored = np.dstack([(MAN.astype(int) * alpha // 255).astype(np.uint8), alpha])
    tifffile.imwrite(
        tmp_path / "man.tif", stored, photometric="minisblack", planarconfig="contig", extrasamples=["assocalpha"]
    )
    image = load_one(tmp_path).file
    assert np.array_equal(to_bytes(image.alpha()), alpha)
    assert np.abs(to_bytes(image.pixels())[:, :, 0].astype(int) - MAN).max() <= 3
    assert image.resize([(64, 64)])[0].shape == (64, 64, 3)


def tiff_kinds() -> list[tuple]:
    """Return type, what it shows, channels, planes, compression and byte order of TIFFs that programs write."""
    shown = [("minisblack", 1), ("miniswhite", 1), ("rgb", 3), ("rgb", 4), ("separated", 4), ("minisblack", 2)]
    kinds = itertools.product(("u1", "u2", "f4"), shown, ("contig", "separate"), (None, "zlib"), "<>")
    return [kind for kind in kinds if kind[1][1] > 1 or kind[2] == "contig"]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind, shown, planes, compression, order", tiff_kinds())
def test_a_tiff_is_read_right_or_refused_in_a_sentence(tmp_path, kind, shown, planes, compression, order):
    photometric, channels = shown
    white = {"u1": 255, "u2": 65535, "f4": 1}[kind]
    levels = np.stack([np.roll(MAN, 9 * channel, 0) for channel in range(channels)], -1) / 255
    stored = (levels * white).astype(order + kind)
    stored = stored[:, :, 0] if channels == 1 else np.moveaxis(stored, -1, 0) if planes == "separate" else stored
    extra = {"extrasamples": ["unassalpha"]} if (photometric, channels) in (("rgb", 4), ("minisblack", 2)) else {}
    how = {"photometric": photometric, "compression": compression, "byteorder": order, **extra}
    tifffile.imwrite(tmp_path / "a.tif", stored, planarconfig=planes if channels > 1 else None, **how)
    try:
        image = load_one(tmp_path).file
    except ValueError as refused:
        assert len(str(refused).splitlines()) == 2 and "a.tif: " in str(refused)
        known = ("separate planes", "0 is white", "big-endian", "not an image in a supported format")
        assert any(reason in str(refused) for reason in known) and not (kind == "u1" and planes == "contig")
        return
    colors = levels[:, :, :3] if photometric == "rgb" else levels[:, :, :1]
    expected = 1 - colors if photometric == "miniswhite" else colors
    if photometric == "separated":
        expected = (1 - levels[:, :, :3]) * (1 - levels[:, :, 3:])
    assert np.abs(image.pixels().numpy() - expected).max() < 1.5 / 255
