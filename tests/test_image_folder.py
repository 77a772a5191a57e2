"""Loading a folder: which images are found and in which order, and one error that names all bad files."""

from __future__ import annotations

import os
import struct

import pytest
from image_files import CAT, load, write
from pack.trainer.dataset.image_decoding import refuse_truncated
from pack.trainer.dataset.image_folder import fingerprint_folder, load_folder
from pack.trainer.dataset.image_on_disk import read_header
from PIL import Image, ImageFile


def test_images_come_in_natural_order_of_their_relative_paths(tmp_path):
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


def test_hidden_files_and_other_files_are_skipped(tmp_path):
    write(tmp_path / "cat.png")
    write(tmp_path / ".thumbnails" / "cat.png")
    (tmp_path / "._cat.png").write_bytes(b"resource fork")
    (tmp_path / "notes.md").write_text("not an image")
    assert [image.file.path.name for image in load(tmp_path)] == ["cat.png"]


def test_images_in_formats_that_are_not_read_are_counted_in_the_log(tmp_path, caplog):
    write(tmp_path / "cat.png")
    for name in ("a.heic", "b.HEIC", "c.jxl", "sub/d.tga", ".hidden.heic", "raw.cr2", "notes.md", "cat.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"a")
    found = load(tmp_path)
    assert [image.file.path.name for image in found] == ["cat.png"]
    (record,) = caplog.records
    assert record.message.endswith(": 1 cr2, 2 heic, 1 jxl, 1 tga") and str(tmp_path) in record.message
    assert found[0].file.folder_note == record.message
    assert load(tmp_path, subfolders=False)[0].file.folder_note.endswith(": 1 cr2, 2 heic, 1 jxl")


def test_a_folder_of_images_that_are_not_read_says_so(tmp_path):
    (tmp_path / "a.heic").touch()
    with pytest.raises(ValueError, match="has no images. .* Save these as PNG or JPEG: 1 heic."):
        load(tmp_path)


def test_one_error_names_every_file_that_cannot_be_used_and_why(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as other packs leave it
    write(tmp_path / "good.png")
    whole = write(tmp_path / "sub" / "half.jpg").read_bytes()
    (tmp_path / "sub" / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.webp").write_bytes(b"")
    (tmp_path / "text.png").write_text("this is not an image")
    (tmp_path / "drawing.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    half = write(tmp_path / "half.png").read_bytes()
    (tmp_path / "half.png").write_bytes(half[: len(half) // 2])
    (tmp_path / "good.txt").write_bytes("größer".encode("latin-1"))
    with pytest.raises(ValueError) as caught:
        load(tmp_path)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"6 files in {str(tmp_path)!r} cannot be used. Repair or remove them."
    assert [line.split(":")[0] for line in lines[1:]] == [
        "- drawing.png",
        "- empty.webp",
        "- good.txt",
        "- half.png",
        "- sub/half.jpg",
        "- text.png",
    ]
    unknown, truncated = "not an image in a supported format", "truncated"
    reasons = [unknown, "empty (0 bytes)", "not UTF-8 (byte 3 is 0xf6)", truncated, truncated, unknown]
    assert all(reason in line for reason, line in zip(reasons, lines[1:]))
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own, about broken TIFF tags
def test_damaged_bytes_anywhere_in_an_image_raise_no_other_exception(tmp_path):
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


def test_an_image_of_too_many_pixels_is_named_whatever_other_packs_allow(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    Image.new("1", (20_000, 9_000)).save(tmp_path / "bomb.png")
    with pytest.raises(ValueError, match="bomb.png: .*exceeds limit"):
        load_folder(tmp_path, True, "caption file", "")
    with pytest.raises(ValueError, match="has 20000x9000 pixels, but the limit is 178956970: resize it"):
        read_header(tmp_path / "bomb.png")
    assert Image.MAX_IMAGE_PIXELS is None


def test_an_image_of_too_many_pixels_inside_an_icon_is_not_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    Image.new("1", (20_000, 9_000)).save(tmp_path / "bomb.png")
    png = (tmp_path / "bomb.png").read_bytes()
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(png), 22)
    (tmp_path / "bomb.ico").write_bytes(struct.pack("<HHH", 0, 1, 1) + entry + png)
    with refuse_truncated(), pytest.raises(Image.DecompressionBombError):
        read_header(tmp_path / "bomb.ico")


def test_an_empty_or_missing_folder_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="has no images. Supported formats: jpg, "):
        load(tmp_path)
    with pytest.raises(ValueError, match="There is no folder .*nowhere'. Check its name"):
        load(tmp_path / "nowhere")


def test_the_error_points_out_images_in_subfolders(tmp_path):
    write(tmp_path / "sub" / "cat.png")
    with pytest.raises(ValueError, match="has no images. Its subfolders have 1: turn on include_subfolders"):
        load(tmp_path, subfolders=False)


def test_the_fingerprint_follows_images_and_captions_and_nothing_else(tmp_path):
    write(tmp_path / "sub" / "cat.png")
    seen = [fingerprint_folder(tmp_path, True)]
    (tmp_path / "notes.md").write_text("not looked at")
    (tmp_path / "sub" / "dog.txt").write_text("a caption without its image")
    assert fingerprint_folder(tmp_path, True) == seen[0]
    (tmp_path / "sub" / "cat.txt").write_text("a cat")
    seen.append(fingerprint_folder(tmp_path, True))
    os.utime(tmp_path / "sub" / "cat.txt", ns=(1, 1))
    seen.append(fingerprint_folder(tmp_path, True))
    (tmp_path / "sub" / "cat.png").rename(tmp_path / "cat.png")
    seen.append(fingerprint_folder(tmp_path, True))
    seen.append(fingerprint_folder(tmp_path / "nowhere", True))
    assert len(set(seen)) == 5 and seen[4] == ""
