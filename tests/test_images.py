"""Reading a folder: every format against the photograph it was written from, captions, and errors that name all."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from pack.trainer.images import LoadedImage, fingerprint_folder, load_folder
from PIL import Image, ImageFile
from skimage import data

CAT = data.chelsea()[80:180, 120:290]  # 100 x 170 x 3
MAN = data.camera()[80:208, 180:308]  # 128 x 128, gray
LOSSLESS = ["PNG", "png", "tif", "TIFF", "bmp", "pcx", "Webp"]


def load(
    folder: Path, *, subfolders: bool = True, captions: str = "caption file", trigger: str = ""
) -> list[LoadedImage]:
    return load_folder(folder, subfolders, captions, trigger)


def load_one(folder: Path) -> LoadedImage:
    (image,) = load(folder)
    return image


def to_bytes(pixels: torch.Tensor) -> np.ndarray:
    return (pixels * 255).round().byte().numpy()


def write(path: Path, picture: np.ndarray | Image.Image = CAT, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(path, **options)
    return path


@pytest.mark.parametrize("extension", LOSSLESS)
def test_a_photograph_in_a_lossless_format_loads_bit_for_bit(tmp_path, extension):
    write(tmp_path / f"cat.{extension}", lossless=True)
    image = load_one(tmp_path)
    assert np.array_equal(to_bytes(image.file.pixels()), CAT)
    assert image.file.pixels().dtype == torch.float32 and image.file.pixels().is_contiguous()
    assert image.file.alpha().shape == (100, 170) and bool((image.file.alpha() == 1).all())


@pytest.mark.parametrize("extension", ["jpg", "JPEG", "Jpg"])
def test_a_jpeg_loads_close_to_its_photograph(tmp_path, extension):
    write(tmp_path / f"cat.{extension}", quality=95)
    assert np.abs(to_bytes(load_one(tmp_path).file.pixels()).astype(int) - CAT).mean() < 4


def test_an_icon_loads_its_largest_picture(tmp_path):
    square = Image.fromarray(data.astronaut()[100:356, 100:356])
    write(tmp_path / "a.ico", square, sizes=[(32, 32), (256, 256)])
    assert np.array_equal(to_bytes(load_one(tmp_path).file.pixels()), np.asarray(square))


def test_a_gif_has_the_colors_of_its_palette(tmp_path):
    reduced = Image.fromarray(CAT).quantize(256)
    write(tmp_path / "cat.gif", reduced)
    assert np.array_equal(to_bytes(load_one(tmp_path).file.pixels()), np.asarray(reduced.convert("RGB")))


@pytest.mark.parametrize("extension", ["png", "tif", "webp"])
def test_alpha_becomes_the_mask_as_it_is(tmp_path, extension):
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
    picture = Image.frombytes("P", (170, 100), indices.tobytes())
    colors = [30, 60, 90] + [200, 10, 10] * 2 + [0, 250, 0] * 4
    picture.putpalette(colors)
    for name in ("a.gif", "b.png"):
        write(tmp_path / name, picture, transparency=3)
    for image in load(tmp_path):
        assert np.array_equal(image.file.alpha().numpy(), (indices != 3).astype(np.float32))
        assert np.array_equal(to_bytes(image.file.pixels()), np.array(colors, np.uint8).reshape(7, 3)[indices])


def test_a_palette_with_graded_transparency_gives_graded_masks(tmp_path):
    indices = np.arange(64 * 64).reshape(64, 64).astype(np.uint8) % 4
    picture = Image.frombytes("P", (64, 64), indices.tobytes())
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    write(tmp_path / "a.png", picture, transparency=bytes([0, 51, 102, 255]))
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


def test_floating_point_pictures_load_from_zero_to_one_and_are_refused_outside(tmp_path):
    write(tmp_path / "inside.tif", (MAN / 255).astype(np.float32))
    np.testing.assert_allclose(load_one(tmp_path).file.pixels()[:, :, 0].numpy(), MAN / 255, atol=1e-6)
    write(tmp_path / "outside.tif", MAN.astype(np.float32))
    with pytest.raises(ValueError, match="outside.tif: has gray values from .* save it with 8 or 16 bits"):
        load(tmp_path)


def test_black_and_white_and_gray_pictures_have_three_equal_channels(tmp_path):
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
    picture = CAT if extension == "jpg" else np.dstack([CAT, CAT[:, :, 0] | 1])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED[orientation](picture))
    write(tmp_path / f"cat.{extension}", stored, exif=exif, lossless=True, quality=95)
    image = load_one(tmp_path)
    assert image.file.pixels().shape == (100, 170, 3)
    assert np.abs(to_bytes(image.file.pixels()).astype(int) - CAT).mean() < 4
    if extension != "jpg":
        assert np.array_equal(to_bytes(image.file.alpha()), CAT[:, :, 0] | 1)


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("extension", ["png", "tif"])
def test_a_rotated_sixteen_bit_picture_comes_out_upright(tmp_path, orientation, extension):
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


def test_a_picture_under_another_formats_name_loads(tmp_path):
    write(tmp_path / "cat.jpg", format="PNG")
    assert np.array_equal(to_bytes(load_one(tmp_path).file.pixels()), CAT)


def test_pictures_come_in_natural_order_of_their_relative_paths(tmp_path):
    names = ["b2.png", "B10.PNG", "a/9.png", "a/10.png", "A1.png", "c/deep/x.png", "b1.png"]
    for name in names:
        write(tmp_path / name, CAT[:8, :8])
    found = [image.file.path.relative_to(tmp_path).as_posix() for image in load(tmp_path)]
    assert found == ["a/9.png", "a/10.png", "A1.png", "b1.png", "b2.png", "B10.PNG", "c/deep/x.png"]
    assert [image.file.path.name for image in load(tmp_path, subfolders=False)] == [
        "A1.png",
        "b1.png",
        "b2.png",
        "B10.PNG",
    ]


def test_hidden_files_and_other_files_are_passed_over(tmp_path):
    write(tmp_path / "cat.png")
    write(tmp_path / ".thumbnails" / "cat.png")
    (tmp_path / "._cat.png").write_bytes(b"resource fork")
    (tmp_path / "notes.md").write_text("no picture")
    assert [image.file.path.name for image in load(tmp_path)] == ["cat.png"]


def test_a_caption_is_the_text_file_then_the_caption_file_after_the_trigger_word(tmp_path):
    for name in ("a", "b", "c", "d", "sub/a"):
        write(tmp_path / f"{name}.png", CAT[:8, :8])
    (tmp_path / "a.txt").write_text("a cat\n")
    (tmp_path / "a.caption").write_text("not this")
    (tmp_path / "b.Caption").write_bytes("\ufeffein Kätzchen".encode())
    (tmp_path / "c.txt").write_text("  \n")
    (tmp_path / "sub" / "a.txt").write_text("another")
    assert [image.caption for image in load(tmp_path, trigger=" sks ")] == [
        "sks, a cat",
        "sks, ein Kätzchen",
        "sks",
        "sks",
        "sks, another",
    ]
    assert [image.caption for image in load(tmp_path)] == ["a cat", "ein Kätzchen", "", "", "another"]


def test_a_file_name_becomes_words_up_to_its_id(tmp_path):
    for name in ("red_cat_id_0012.png", "on a mat.png", "a_id_b_id_c.png"):
        write(tmp_path / name, CAT[:8, :8])
    (tmp_path / "on a mat.txt").write_bytes(b"\xff not asked for")
    assert [image.caption for image in load(tmp_path, captions="file name")] == ["a", "on a mat", "red,cat"]
    assert [image.caption for image in load(tmp_path, captions="file name", trigger="sks")][2] == "sks, red,cat"


def test_the_trigger_word_alone_is_the_caption_if_asked_for(tmp_path):
    write(tmp_path / "cat.png")
    (tmp_path / "cat.txt").write_text("a cat")
    assert load(tmp_path, captions="trigger word only", trigger="sks")[0].caption == "sks"


def test_one_error_names_every_file_that_cannot_be_used_and_why(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as other packs leave it
    write(tmp_path / "good.png")
    whole = write(tmp_path / "sub" / "half.jpg").read_bytes()
    (tmp_path / "sub" / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.webp").write_bytes(b"")
    (tmp_path / "text.png").write_text("this is no picture")
    (tmp_path / "drawing.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    half = write(tmp_path / "half.png").read_bytes()
    (tmp_path / "half.png").write_bytes(half[: len(half) // 2])
    (tmp_path / "good.txt").write_bytes("größer".encode("latin-1"))
    with pytest.raises(ValueError) as caught:
        load(tmp_path)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"6 files in {str(tmp_path)!r} cannot be used: repair or remove them."
    assert [line.split(":")[0] for line in lines[1:]] == [
        "- drawing.png",
        "- empty.webp",
        "- good.txt",
        "- half.png",
        "- sub/half.jpg",
        "- text.png",
    ]
    unknown, truncated = "no picture in a known format", "truncated"
    reasons = [unknown, "empty (0 bytes)", "not UTF-8 (byte 3 is 0xf6)", truncated, truncated, unknown]
    assert all(reason in line for reason, line in zip(reasons, lines[1:]))
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own, about broken TIFF tags
def test_damaged_bytes_anywhere_in_a_picture_never_end_in_another_exception(tmp_path):
    for extension in ("jpg", "png", "gif", "tif", "bmp", "webp", "pcx", "ico"):
        content = bytearray(write(tmp_path / f"a.{extension}", CAT[:48, :48]).read_bytes())
        for place in range(8, min(len(content), 200), 7):
            content[place] ^= 0xFF
        (tmp_path / f"a.{extension}").write_bytes(content)
    with pytest.raises(ValueError, match="files in .* cannot be used"):
        load(tmp_path)


def test_a_decompression_bomb_is_named_and_not_decoded(tmp_path, monkeypatch):
    write(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="bomb.png: .*exceeds limit"):
        load(tmp_path)


def test_an_unreadable_caption_of_two_pictures_is_named_once(tmp_path):
    for extension in ("png", "bmp"):
        write(tmp_path / f"cat.{extension}", CAT[:8, :8])
    (tmp_path / "cat.txt").write_bytes(b"\xff\xfea\x00")
    with pytest.raises(ValueError, match="1 file in") as caught:
        load(tmp_path)
    assert str(caught.value).count("cat.txt") == 1


def test_an_empty_or_missing_folder_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="holds no pictures"):
        load(tmp_path)
    with pytest.raises(ValueError, match="There is no folder .*nowhere"):
        load(tmp_path / "nowhere")


def test_pictures_that_lie_only_in_subfolders_are_pointed_out(tmp_path):
    write(tmp_path / "sub" / "cat.png")
    with pytest.raises(ValueError, match="subfolders hold 1, switch include_subfolders on"):
        load(tmp_path, subfolders=False)


def test_an_unknown_caption_source_is_refused(tmp_path):
    write(tmp_path / "cat.png")
    with pytest.raises(ValueError, match="'tags': choose one of caption file, file name, trigger word only"):
        load(tmp_path, captions="tags")


def test_the_fingerprint_follows_pictures_and_captions_and_nothing_else(tmp_path):
    write(tmp_path / "sub" / "cat.png")
    seen = [fingerprint_folder(tmp_path, True)]
    (tmp_path / "notes.md").write_text("not looked at")
    (tmp_path / "sub" / "dog.txt").write_text("a caption without its picture")
    assert fingerprint_folder(tmp_path, True) == seen[0]
    (tmp_path / "sub" / "cat.txt").write_text("a cat")
    seen.append(fingerprint_folder(tmp_path, True))
    os.utime(tmp_path / "sub" / "cat.txt", ns=(1, 1))
    seen.append(fingerprint_folder(tmp_path, True))
    (tmp_path / "sub" / "cat.png").rename(tmp_path / "cat.png")
    seen.append(fingerprint_folder(tmp_path, True))
    seen.append(fingerprint_folder(tmp_path / "nowhere", True))
    assert len(set(seen)) == 5 and seen[4] == ""
