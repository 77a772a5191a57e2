"""The two nodes: what they declare, what they hand on, and which folders they may read."""

from __future__ import annotations

import ast
from pathlib import Path

import folder_paths
import numpy as np
import pytest
import torch
from comfy_api.latest import io
from pack.nodes.images import BucketImages, LoadImageFolder, find_folder
from PIL import Image
from skimage import data

ROOT = Path(__file__).resolve().parent.parent
CAT = data.chelsea()[80:180, 120:280]  # 100 x 160 x 3


@pytest.fixture
def base(tmp_path, monkeypatch):
    """Give the host input, output and one listed folder in a new place, with a folder outside of them."""
    for name in ("input", "output", "listed", "outside"):
        (tmp_path / name / "cats").mkdir(parents=True)
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "input"))
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    extra = folder_paths.folder_names_and_paths | {"training_images": ([str(tmp_path / "listed")], set())}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", extra)
    return tmp_path


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch) -> Path:
    """Give the host a temporary folder for what nodes show."""
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    return tmp_path / "temp"


def write_cats(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(CAT).save(folder / "cat.png")
    Image.fromarray(np.dstack([CAT, CAT[:, :, 0]])).save(folder / "masked.webp", lossless=True, exact=True)
    (folder / "cat.txt").write_text("a cat")


def bucket(images: list[torch.Tensor], captions: list[str], **changed: object) -> tuple:
    return run_buckets(images, captions, **changed).args


def run_buckets(images: list[torch.Tensor], captions: list[str], **changed: object) -> io.NodeOutput:
    """Run the node as the host does: every input is a list."""
    values = {"width": 64, "height": 64, "buckets_step": 16, "min_length": 32, "max_ratio": 2.0, "sub_image_num": 0}
    values |= {"mirroring": False, "disable_upscale": False, "repeats": 1}
    wired = {name: changed.pop(name) for name in ("masks", "names") if name in changed}
    return BucketImages.execute(images, captions, **{k: [v] for k, v in (values | changed).items()}, **wired)


def test_the_nodes_declare_the_agreed_inputs_and_outputs_in_order():
    folder, frames = LoadImageFolder.GET_SCHEMA(), BucketImages.GET_SCHEMA()
    assert (folder.node_id, folder.display_name) == ("TrainTrain_LoadImageFolder", "Load Image Folder")
    assert (frames.node_id, frames.display_name) == ("TrainTrain_BucketImages", "Bucket Images")
    assert [i.id for i in folder.inputs] == ["folder", "include_subfolders", "captions", "trigger_word"]
    assert [(o.id, o.io_type, o.is_output_list) for o in folder.outputs][:3] == [
        ("images", "IMAGE", True),
        ("masks", "MASK", True),
        ("captions", "STRING", True),
    ]
    assert " ".join(i.id for i in frames.inputs) == (
        "images captions masks width height buckets_step min_length max_ratio sub_image_num mirroring disable_upscale"
        " repeats names"
    )
    assert [(o.id, o.io_type, o.is_output_list) for o in frames.outputs] == [
        ("training_images", "TRAINING_IMAGES", False),
        ("preview", "IMAGE", False),
        ("report", "STRING", False),
    ]


@pytest.mark.parametrize("node", [LoadImageFolder, BucketImages])
def test_every_input_and_output_explains_itself_and_the_node_has_a_help_page(node):
    schema = node.GET_SCHEMA()
    schema.validate()
    assert schema.category == "TrainTrain" and schema.description and schema.search_aliases
    assert all(end.tooltip for end in [*schema.inputs, *schema.outputs])
    page = (ROOT / "web" / "docs" / f"{schema.node_id}.md").read_text()
    assert all(f"`{end.id}`" in page for end in [*schema.inputs, *schema.outputs])


def test_the_loader_hands_on_batches_of_one_with_masks_captions_and_names(base):
    write_cats(base / "input" / "cats" / "deep")
    images, masks, captions, names = LoadImageFolder.execute("cats", True, "caption file", "sks").args
    assert [tuple(image.shape) for image in images] == [(1, 100, 160, 3)] * 2
    assert np.array_equal((images[1][0] * 255).round().numpy(), CAT)
    assert masks[0].shape == (1, 100, 160) and masks[0].min() == 1
    assert np.array_equal((masks[1][0] * 255).round().numpy(), CAT[:, :, 0])
    assert captions == ["sks, a cat", "sks"] and names == ["deep/cat.png", "deep/masked.webp"]


def test_what_the_loader_gives_becomes_training_images_a_preview_and_a_report(base):
    write_cats(base / "input" / "cats")
    images, masks, captions, names = LoadImageFolder.execute("cats", True, "caption file", "").args
    training_images, preview, report = bucket(images, captions, masks=masks, names=names, mirroring=True, repeats=3)
    assert [(i.frame, i.caption, i.mirrored, i.repeats) for i in training_images] == [
        ((64, 48), "a cat", False, 3),
        ((64, 48), "a cat", True, 3),
        ((64, 48), "", False, 3),
        ((64, 48), "", True, 3),
    ]
    assert preview.shape[0] == 1 and preview.shape[3] == 3
    assert "64x48, 4 images (2 mirrored): cat.png, masked.webp" in report


def test_the_contact_sheet_is_shown_on_the_node_as_it_is_handed_on(temporary):
    output = run_buckets([torch.rand(3, 80, 64, 3)], ["a"])
    (shown,) = output.ui.as_dict()["images"]
    assert shown["type"] == "temp"
    picture = np.asarray(Image.open(temporary / shown["subfolder"] / shown["filename"]))
    assert np.array_equal(picture, (output.args[1][0] * 255).round().byte().numpy())


def test_batches_of_pictures_are_taken_apart_and_a_fourth_channel_is_left_out():
    training_images, _, _ = bucket([torch.rand(3, 64, 64, 4), torch.rand(1, 64, 64, 3)], list("abcd"))
    assert [image.caption for image in training_images] == list("abcd")
    assert all(image.pixels.shape == (64, 64, 3) for image in training_images)


def test_pictures_made_under_inference_mode_can_be_bucketed():
    with torch.inference_mode():
        training_images, _, _ = bucket([torch.rand(1, 80, 70, 3)], ["a"], masks=[torch.rand(1, 80, 70)], mirroring=True)
    assert len(training_images) == 2


def test_a_frame_that_is_no_multiple_of_eight_is_named_by_the_node():
    with pytest.raises(ValueError, match="width 60 must be a multiple of 8"):
        bucket([torch.rand(1, 64, 64, 3)], ["a"], width=60)


@pytest.mark.parametrize("name", ["cats", " cats ", "./cats", "cats/../cats", "{base}/input/cats", "../input/cats"])
def test_a_name_is_looked_up_in_the_input_folder_first(base, name):
    assert find_folder(name.format(base=base)) == base / "input" / "cats"


def test_the_output_folder_and_listed_folders_may_be_read_too(base):
    (base / "output" / "made").mkdir()
    (base / "listed" / "own").mkdir()
    assert find_folder("made") == base / "output" / "made"
    assert find_folder("own") == base / "listed" / "own"
    assert find_folder(str(base / "listed")) == base / "listed"
    assert find_folder("../output/cats") == base / "output" / "cats"


OUTSIDE = ["{base}/outside/cats", "../outside/cats", "cats/../../outside", "..", "/", "link", "/etc"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_any_other_folder_is_refused_with_the_way_to_allow_it(base, name):
    (base / "input" / "link").symlink_to(base / "outside" / "cats")
    with pytest.raises(ValueError, match="may not be read.*'training_images' in extra_model_paths.yaml"):
        find_folder(name.format(base=base))


def test_a_folder_beside_input_whose_name_begins_alike_is_refused(base):
    (base / "input_private").mkdir()
    with pytest.raises(ValueError, match="may not be read"):
        find_folder("../input_private")


def test_a_missing_or_empty_name_says_so(base):
    with pytest.raises(ValueError, match=f"There is no folder 'dogs'; looked for {base}/input/dogs, "):
        find_folder("dogs")
    with pytest.raises(ValueError, match="No folder is named"):
        find_folder("  ")


def test_without_listed_folders_input_and_output_still_work(base, monkeypatch):
    remaining = {k: v for k, v in folder_paths.folder_names_and_paths.items() if k != "training_images"}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", remaining)
    assert find_folder("cats") == base / "input" / "cats"


def test_the_fingerprint_changes_with_a_caption_and_never_fails(base):
    write_cats(base / "input" / "cats")
    constants = {"folder": "cats", "include_subfolders": True, "captions": "caption file", "trigger_word": ""}
    before = LoadImageFolder.fingerprint_inputs(**constants)
    assert before == LoadImageFolder.fingerprint_inputs(**constants)
    (base / "input" / "cats" / "cat.txt").write_text("another cat")
    assert before != LoadImageFolder.fingerprint_inputs(**constants)
    for folder in (None, "", "nowhere", "/etc"):
        assert LoadImageFolder.fingerprint_inputs(**constants | {"folder": folder}) == ""


@pytest.mark.parametrize("module", sorted((ROOT / "trainer").rglob("*.py")), ids=lambda path: path.stem)
def test_the_trainer_imports_neither_host_nor_nodes(module):
    tree = ast.parse(module.read_text(encoding="utf-8"))
    imported = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    imported += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert not [name for name in imported if name.split(".")[0] in ("comfy", "comfy_api", "folder_paths", "nodes")]
