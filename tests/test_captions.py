"""Captions: from a text file, from the file name, or the trigger word alone."""

from __future__ import annotations

import os
import unicodedata

import pytest
from image_files import CAT, load, write
from pack.trainer.dataset.image_folder import load_folder


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


def test_a_file_name_becomes_a_caption_up_to_its_id(tmp_path):
    for name in ("red_cat_id_0012.png", "on a mat.png", "a_id_b_id_c.png"):
        write(tmp_path / name, CAT[:8, :8])
    (tmp_path / "on a mat.txt").write_bytes(b"\xff not asked for")
    assert [image.caption for image in load(tmp_path, captions="file name")] == ["a", "on a mat", "red,cat"]
    assert [image.caption for image in load(tmp_path, captions="file name", trigger="sks")][2] == "sks, red,cat"


def test_the_trigger_word_alone_is_the_caption_if_chosen(tmp_path):
    write(tmp_path / "cat.png")
    (tmp_path / "cat.txt").write_text("a cat")
    assert load(tmp_path, captions="trigger word only", trigger="sks")[0].caption == "sks"


def test_an_unreadable_caption_of_two_images_is_named_once(tmp_path):
    for extension in ("png", "bmp"):
        write(tmp_path / f"cat.{extension}", CAT[:8, :8])
    (tmp_path / "cat.txt").write_bytes(b"\xff\xfea\x00")
    with pytest.raises(ValueError, match="1 file in") as caught:
        load(tmp_path)
    assert str(caught.value).count("cat.txt") == 1


def test_a_huge_caption_file_is_named(tmp_path):
    write(tmp_path / "a.png", CAT[:8, :8])
    (tmp_path / "a.txt").write_bytes(b"a cat " * 1_000_000)
    with pytest.raises(ValueError, match="a.txt: is larger than 100000 bytes"):
        load(tmp_path)


def test_an_unknown_caption_source_is_refused(tmp_path):
    write(tmp_path / "cat.png")
    with pytest.raises(ValueError, match="'tags'. Choose one of: caption file, file name, trigger word only"):
        load(tmp_path, captions="tags")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_is_refused_and_not_read_as_text_with_nul_characters(tmp_path, encoding):
    write(tmp_path / "cat.png")
    (tmp_path / "cat.txt").write_bytes("a cat".encode(encoding))
    with pytest.raises(ValueError, match="cat.txt: has NUL characters, as UTF-16 text does: save it as UTF-8"):
        load(tmp_path)


COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "Käthe") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    "image, text",
    [
        ("A.png", "a.txt"),
        ("a.PNG", "A.TXT"),
        (f"{COMPOSED}.png", f"{DECOMPOSED}.txt"),
        (f"{DECOMPOSED}.png", f"{COMPOSED}.caption"),
    ],
)
def test_a_caption_is_found_under_a_name_that_other_systems_treat_as_the_same(tmp_path, image, text):
    write(tmp_path / image)
    (tmp_path / text).write_text("a cat")
    assert [found.caption for found in load(tmp_path)] == ["a cat"]


def test_a_caption_of_exactly_the_same_name_wins_and_is_no_other_image_s(tmp_path):
    for name in ("A.png", "a.png", "b.png"):
        write(tmp_path / name, CAT[:8, :8])
    (tmp_path / "a.txt").write_text("small")
    (tmp_path / "b.txt").write_text("exact")
    (tmp_path / "B.txt").write_text("similar")
    assert {image.file.path.name: image.caption for image in load(tmp_path)} == {
        "A.png": "",
        "a.png": "small",
        "b.png": "exact",
    }


def test_a_file_name_that_is_not_utf_8_is_no_caption_and_named(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    write(tmp_path / "cat.png")
    (tmp_path / "cat.png").rename(tmp_path / name)
    with pytest.raises(ValueError, match="has a name that is not UTF-8, so it cannot be a caption: rename it"):
        load(tmp_path, captions="file name")
    assert load(tmp_path)[0].caption == ""


def test_folders_like_kohya_s_give_repeats_and_the_captions_that_are_missing(tmp_path):
    for name in (
        "10_ohwx cat/a.png",
        "10_ohwx cat/b.png",
        "3_hat/deep/c.png",
        "plain/d.png",
        "2_/e.png",
        "2024_x/f.png",
    ):
        write(tmp_path / name, CAT[:8, :8])
    (tmp_path / "10_ohwx cat" / "b.txt").write_text("on a mat")
    loaded = load_folder(tmp_path, True, "caption file", "sks", kohya_folders=True)
    found = {image.file.path.stem: (image.repeats, image.caption) for image in loaded}
    assert found == {
        "a": (10, "sks, ohwx cat"), "b": (10, "sks, on a mat"), "c": (3, "sks, hat"), "d": (1, "sks"), "e": (2, "sks"),
        "f": (1, "sks"),
    }  # fmt: skip
    inside = load_folder(tmp_path / "10_ohwx cat", True, "trigger word only", "sks", kohya_folders=True)
    assert [(image.repeats, image.caption) for image in inside] == [(10, "sks")] * 2
    assert {(image.repeats, image.caption) for image in load(tmp_path)} == {(1, ""), (1, "on a mat")}
