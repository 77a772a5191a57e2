"""The image nodes: what they declare and what they output."""

from __future__ import annotations

from pathlib import Path

import folder_paths
import numpy as np
import pytest
import torch
from comfy_api.latest import io
from conftest import ROOT
from pack.nodes.bucket_images import BucketImages
from pack.nodes.load_image_folder import LoadImageFolder
from PIL import Image
from skimage import data

CAT = data.chelsea()[80:180, 120:280]  # 100 x 160 x 3


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch) -> Path:
    """Give the host a temporary folder for node previews."""
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    return tmp_path / "temp"


def write_cats(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(CAT).save(folder / "cat.png")
    Image.fromarray(np.dstack([CAT, CAT[:, :, 0]])).save(folder / "masked.webp", lossless=True, exact=True)
    (folder / "cat.txt").write_text("a cat")


SIZES = {"width": 64, "height": 64, "buckets_step": 16, "min_length": 32, "max_ratio": 2.0, "sub_image_num": 0}
SIZES |= {"mirroring": False, "disable_upscale": False}


def bucket(images: list[torch.Tensor], captions: list[str], **changed: object) -> tuple:
    return run_buckets(images, captions, **changed).args


def run_buckets(images: list[torch.Tensor], captions: list[str], **changed: object) -> io.NodeOutput:
    """Run the node as the host does: every input is a list."""
    values = {**SIZES, "repeats": 1}
    wired = {name: changed.pop(name) for name in ("masks", "names") if name in changed}
    return BucketImages.execute(images, captions, **{k: [v] for k, v in (values | changed).items()}, **wired)


def test_the_nodes_declare_their_inputs_and_outputs_in_order():
    folder, buckets = LoadImageFolder.GET_SCHEMA(), BucketImages.GET_SCHEMA()
    assert (folder.node_id, folder.display_name) == ("TrainTrain_LoadImageFolder", "Load Image Folder")
    assert (buckets.node_id, buckets.display_name) == ("TrainTrain_BucketImages", "Bucket Images")
    assert [i.id for i in folder.inputs] == [
        "folder",
        "include_subfolders",
        "captions",
        "trigger_word",
        "kohya_folders",
        "caption_lines",
    ]
    assert [(o.id, o.io_type, o.is_output_list) for o in folder.outputs][:3] == [
        ("images", "IMAGE", True),
        ("masks", "MASK", True),
        ("captions", "STRING", True),
    ]
    assert " ".join(i.id for i in buckets.inputs) == (
        "images captions masks width height buckets_step min_length max_ratio sub_image_num mirroring disable_upscale"
        " repeats names max_length"
    )
    assert [(o.id, o.io_type, o.is_output_list) for o in buckets.outputs] == [
        ("training_images", "TRAINING_IMAGES", False),
        ("preview", "IMAGE", False),
        ("report", "STRING", False),
    ]


@pytest.mark.parametrize("node", [LoadImageFolder, BucketImages])
def test_every_input_and_output_has_a_tooltip_and_a_place_in_the_help_page(node):
    schema = node.GET_SCHEMA()
    schema.validate()
    assert schema.category == "TrainTrain" and schema.description and schema.search_aliases
    assert all(end.tooltip for end in [*schema.inputs, *schema.outputs])
    page = (ROOT / "web" / "docs" / f"{schema.node_id}.md").read_text()
    assert all(f"`{end.id}`" in page for end in [*schema.inputs, *schema.outputs])


def test_the_loader_outputs_batches_of_one_with_masks_captions_and_names(base):
    write_cats(base / "input" / "kittens" / "deep")
    images, masks, captions, names, repeats = LoadImageFolder.execute("kittens", True, "caption file", "sks").args
    assert [tuple(image.shape) for image in images] == [(1, 100, 160, 3)] * 2
    assert np.array_equal((images[1][0] * 255).round().numpy(), CAT)
    assert masks[0].shape == (1, 100, 160) and masks[0].min() == 1
    assert np.array_equal((masks[1][0] * 255).round().numpy(), CAT[:, :, 0])
    assert captions == ["sks, a cat", "sks"] and names == ["deep/cat.png", "deep/masked.webp"]
    assert repeats == [1, 1]


def test_the_fingerprint_changes_with_a_caption_and_never_fails(base):
    write_cats(base / "input" / "kittens")
    constants = {"folder": "kittens", "include_subfolders": True, "captions": "caption file", "trigger_word": ""}
    before = LoadImageFolder.fingerprint_inputs(**constants)
    assert before == LoadImageFolder.fingerprint_inputs(**constants)
    (base / "input" / "kittens" / "cat.txt").write_text("another cat")
    assert before != LoadImageFolder.fingerprint_inputs(**constants)
    for folder in (None, "", "nowhere", "/etc"):
        assert LoadImageFolder.fingerprint_inputs(**constants | {"folder": folder}) == ""


def test_loaded_images_become_training_images_a_preview_and_a_report(base):
    write_cats(base / "input" / "kittens")
    images, masks, captions, names, _ = LoadImageFolder.execute("kittens", True, "caption file", "").args
    training_images, preview, report = bucket(images, captions, masks=masks, names=names, mirroring=True, repeats=3)
    assert [(i.resolution, i.caption, i.mirrored, i.repeats) for i in training_images] == [
        ((64, 48), "a cat", False, 3),
        ((64, 48), "a cat", True, 3),
        ((64, 48), "", False, 3),
        ((64, 48), "", True, 3),
    ]
    assert preview.shape[0] == 1 and preview.shape[3] == 3
    assert "64x48 (0.00 MP), 4 images (2 mirrored): cat.png, masked.webp" in report


def test_the_report_counts_the_images_of_the_folder_that_are_not_read(base):
    write_cats(base / "input" / "kittens")
    for name in ("a.heic", "b.heic", "c.jxl"):
        (base / "input" / "kittens" / name).touch()
    images, masks, captions, names, _ = LoadImageFolder.execute("kittens", True, "caption file", "").args
    for left in (images, [image.clone() for image in images]):
        _, _, report = bucket(left, captions, masks=masks, names=names)
        assert report.splitlines()[-1].endswith("kittens' (save them as PNG or JPEG): 2 heic, 1 jxl")


def test_with_a_maximum_length_a_wide_image_goes_beyond_the_width():
    training_images, _, report = bucket(
        [torch.rand(1, 90, 160, 3)], ["a"], width=1024, height=1024, max_length=1536, buckets_step=64, min_length=512
    )
    assert training_images[0].resolution == (1344, 768) and "1344x768 (1.03 MP), 1 image" in report


def test_repeats_of_folders_reach_each_image_and_the_report_offers_them(base):
    write_cats(base / "input" / "set" / "10_ohwx cat")
    write_cats(base / "input" / "set" / "3_hat")
    images, _, captions, names, _ = folder(False)
    *_, report = bucket(images, captions, names=names)
    assert "in folders named like kohya's" in report and "10_ohwx cat/cat.png" in report.splitlines()[-1]
    images, _, captions, names, repeats = folder(True)
    values = {"images": images, "captions": captions, "names": names, "repeats": repeats}
    assert captions == ["a cat", "hat", "a cat", "ohwx cat"]
    sizes = {name: [side] for name, side in SIZES.items()}
    training_images, _, report = BucketImages.execute(**values, **sizes).args
    assert [image.repeats for image in training_images] == [3, 3, 10, 10]
    assert "26 per epoch" in report and "kohya" not in report
    with pytest.raises(ValueError, match=r"The number of repeats \(3\) must match the number of images \(4\)"):
        BucketImages.execute(**values | {"repeats": [1, 2, 3]}, **sizes)
    with pytest.raises(ValueError, match="repeats is 0. Set it to a value from 1 to 1000"):
        BucketImages.execute(**values | {"repeats": [1, 2, 0, 4]}, **sizes)


def folder(kohya: bool) -> tuple:
    return LoadImageFolder.execute("set", True, "caption file", "", kohya).args


def test_the_node_shows_the_contact_sheet_that_it_outputs(temporary):
    output = run_buckets([torch.rand(3, 80, 64, 3)], ["a"])
    (shown,) = output.ui.as_dict()["images"]
    assert shown["type"] == "temp"
    saved = np.asarray(Image.open(temporary / shown["subfolder"] / shown["filename"]))
    assert np.array_equal(saved, (output.args[1][0] * 255).round().byte().numpy())


def test_batches_of_images_are_split_and_a_fourth_channel_is_dropped():
    training_images, _, _ = bucket([torch.rand(3, 64, 64, 4), torch.rand(1, 64, 64, 3)], list("abcd"))
    assert [image.caption for image in training_images] == list("abcd")
    assert all(image.pixels.shape == (64, 64, 3) for image in training_images)


def test_images_made_in_inference_mode_can_be_bucketed():
    with torch.inference_mode():
        training_images, _, _ = bucket([torch.rand(1, 80, 70, 3)], ["a"], masks=[torch.rand(1, 80, 70)], mirroring=True)
    assert len(training_images) == 2


def test_a_width_that_is_not_a_multiple_of_eight_is_an_error():
    with pytest.raises(ValueError, match="width 60 must be a multiple of 8"):
        bucket([torch.rand(1, 64, 64, 3)], ["a"], width=60)
