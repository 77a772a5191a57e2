"""Pairs by suffix: each image has one partner, and errors name files by their paths in the folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from image_files import CAT, load, write
from pack.nodes.load_image_pairs import LoadImagePairs
from pack.trainer.dataset.image_pairs import pair_by_suffix

VALUES = {"include_subfolders": True, "captions": "caption file", "trigger_word": "", "suffix": "_target"}
VALUES |= {"width": 64, "height": 64, "buckets_step": 8, "min_length": 64, "max_ratio": 2.0}


def pair(folder: Path) -> list[tuple[str, str]]:
    pairs = pair_by_suffix(load(folder), "_target", folder)
    return [tuple(image.file.path.relative_to(folder).as_posix() for image in two) for two in pairs]


def test_partners_are_in_the_same_folder_in_any_format(tmp_path):
    for name in ("cat.png", "cat_target.jpg", "sub/cat.webp", "sub/cat_target.png", "a.b.png", "a.b_target.png"):
        write(tmp_path / name)
    assert pair(tmp_path) == [
        ("a.b.png", "a.b_target.png"),
        ("cat.png", "cat_target.jpg"),
        ("sub/cat.webp", "sub/cat_target.png"),
    ]


@pytest.mark.parametrize(
    "names, named",
    [
        (("sub/cat.png", "sub/cat.jpg", "sub/cat_target.png"), "sub/cat.jpg and sub/cat.png"),
        (("cat.png", "cat_target.png", "cat_target.webp"), "cat_target.png and cat_target.webp"),
        (("cat.png", "cat.PNG", "cat_target.png"), "cat.PNG and cat.png"),
        (("a.png", "a.gif", "b.bmp", "b.tif", "b.png"), "a.gif and a.png; b.bmp and b.png and b.tif"),
    ],
)
def test_images_with_the_same_name_but_for_the_format_are_named(tmp_path, names, named):
    for name in names:
        write(tmp_path / name, CAT[:64, :64])
    with pytest.raises(ValueError, match=f"the same name but for the format: {named}. A pair has one original"):
        pair(tmp_path)


def test_images_without_a_partner_are_named_by_their_paths(tmp_path):
    for name in ("cat.png", "sub/cat_target.png", "_target.png"):
        write(tmp_path / name)
    with pytest.raises(
        ValueError, match="No partner with the suffix '_target' for _target.png, cat.png, sub/cat_target"
    ):
        pair(tmp_path)


def test_images_of_different_sizes_are_named_by_their_paths(tmp_path):
    write(tmp_path / "sub" / "cat.png", CAT[:64, :64])
    write(tmp_path / "sub" / "cat_target.png", CAT[:64, :72])
    with pytest.raises(ValueError, match="differ in size: sub/cat.png and sub/cat_target.png. Resize"):
        pair(tmp_path)


def test_the_node_crops_pairs_beyond_the_width_with_a_maximum_length(base):
    for name in ("cat.png", "cat_target.png"):
        write(base / "input" / "pairs" / name, CAT[:90, :160])
    sizes = {"width": 256, "height": 256, "buckets_step": 16, "min_length": 128}
    for added, shape in (({}, (1, 144, 256, 3)), ({"max_length": 512}, (1, 192, 336, 3))):
        originals, targets, _ = LoadImagePairs.execute(folder="pairs", **VALUES | sizes | added).args
        assert [image.shape for image in (*originals, *targets)] == [shape] * 2
