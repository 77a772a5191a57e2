"""What a workflow may read and write: names and folders of every kind, links, pipes, and pictures of no end."""

from __future__ import annotations

import os
import struct
from types import SimpleNamespace

import folder_paths
import pytest
from pack.nodes.allowed import find_folder
from pack.nodes.images import LoadImageFolder
from pack.nodes.output_path import LONGEST_NAME, output_path
from pack.nodes.pairs import LoadImagePairs
from pack.nodes.results import LONGEST_NAME as LONGEST_STEM
from pack.nodes.results import TrainingResults
from pack.trainer.images import load_folder
from pack.trainer.picture import read_header, refuse_truncated
from PIL import Image


def load(node=LoadImageFolder, folder: str = "cats", **more) -> list[str]:
    return node.execute(folder, True, "caption file", "", **more).args[2]


def load_pairs() -> list[str]:
    frame = {"width": 64, "height": 64, "buckets_step": 8, "min_length": 32, "max_ratio": 2.0}
    return load(LoadImagePairs, suffix="_target", **frame)


# Names of files


RESERVED = ["CON", "con", "NUL.txt", "aux.x.y", "COM1", "lpt9.safetensors", "COM¹", "style/PRN", "CON/mine"]
FORBIDDEN = [
    "name:stream",
    "C:\\x",
    "C:x",
    "\\\\host\\share",
    "a\\b",
    "a|b",
    "a?",
    "a*",
    'a"',
    "a<b",
    "a\nb",
    "a\0b",
    "\ud800",
]
ELSEWHERE = ["", "  ", ".", "..", "../x", "a/../../x", "/etc/x", "//host/share", "a//b", "/", "link/x"]
UNEQUAL = ["x.", "x. ./y", "folder /x", "folder./x", "x" * (LONGEST_NAME + 1), "\u732b" * 70, "x/" * 3000]


@pytest.mark.parametrize("name", RESERVED + FORBIDDEN + ELSEWHERE + UNEQUAL, ids=lambda name: repr(name)[:24])
@pytest.mark.parametrize("folder, ending", [("loras", ".safetensors"), ("loss", ".csv")])
def test_a_name_that_is_none_on_some_system_is_refused_and_nothing_is_written(base, name, folder, ending):
    (base / "output" / folder).mkdir()
    (base / "output" / folder / "link").symlink_to(base / "outside")
    with pytest.raises(ValueError, match="is no name for a file in .*: give a plain name") as refused:
        output_path(folder, name, ending, overwrite=False)
    assert len(str(refused.value)) < 1000
    assert sorted(path.name for path in base.rglob("*") if path.is_file()) == ["a.png", "b.png", "secret.txt"]


@pytest.mark.parametrize(
    "name", ["my_lora", "style/my_lora", "\u732b", "~", "~/x", "a/./b", "a/../b", "v1.5", "CONSOLE", "$HOME"]
)
def test_any_other_name_is_a_file_in_its_folder(base, name):
    path = output_path("loras", name, ".safetensors", overwrite=False)
    assert path.is_relative_to(base / "output" / "loras") and path.suffix == ".safetensors"


def test_a_longest_name_has_room_for_the_steps_a_number_and_the_file_in_the_making(base):
    path = output_path("loras", "x" * LONGEST_NAME, ".safetensors", overwrite=False)
    path.parent.mkdir()
    path.with_name(f"{path.stem}_1000000steps_99{path.suffix}").touch()


def training_node(name: str, **extra) -> SimpleNamespace:
    saving = {"class_type": "TrainTrain_SaveLoRA", "inputs": {"lora": ["1", 0], "name": name}}
    prompt = {"1": {"class_type": "X", "inputs": {}}, "2": saving}
    hidden = SimpleNamespace(unique_id="1", prompt=prompt, extra_pnginfo=extra.get("sent"))
    return SimpleNamespace(hidden=hidden, __name__="TrainX")


def test_a_name_that_is_none_is_said_before_the_training(base):
    with pytest.raises(ValueError, match="'../x_5steps' is no name for a file"):
        TrainingResults(training_node("../x"), {"steps": 5})


@pytest.mark.parametrize("name", ["\u732b" * 60, "x" * 180])
def test_what_a_training_keeps_has_a_name_that_fits(base, name):
    path = TrainingResults(training_node(name), {"steps": 5})._path("_000005.jpg")
    assert len(path.stem) < LONGEST_STEM + 30 and len(path.name.encode()) < 230
    path.parent.mkdir(parents=True)
    path.touch()


# Folders


REMOTE = ["\\\\host\\share", "//host/share", "\\/host/share", "/\\host\\share", " \\\\?\\C:\\x", "\\\\.\\pipe\\x"]


@pytest.mark.parametrize("name", REMOTE)
def test_another_computers_folder_is_refused_before_it_is_asked(base, monkeypatch, name):
    """On Windows the mere look at it would send that computer the user's password, scrambled."""
    monkeypatch.setattr("pack.nodes.allowed._resolve", lambda name: pytest.fail("it was looked at"))
    with pytest.raises(ValueError, match="may not be read.*'training_images' in extra_model_paths.yaml"):
        find_folder(name)


def test_another_computers_folder_may_be_read_where_its_owner_lists_it(base, monkeypatch):
    listed = folder_paths.folder_names_and_paths | {"training_images": ([f"/{base}/outside"], set())}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", listed)
    assert find_folder(f"/{base}/outside").samefile(base / "outside")


@pytest.mark.parametrize(
    "name", ["cats\0", "\ud800", "x" * 100_000, "C:\\x", "C:x", "~", "~root", "$HOME", "cats/a.png", "CON"]
)
def test_what_is_no_folder_is_refused_in_a_sentence(base, name):
    with pytest.raises(ValueError, match=r"There is no folder|is no name of a folder") as refused:
        find_folder(name)
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("name", ["x.png", "a.txt", "a.caption"])
def test_a_picture_or_caption_that_is_a_link_out_is_named_and_not_read(base, name):
    source = "b.png" if name == "x.png" else "secret.txt"
    (base / "input" / "cats" / name).symlink_to(base / "outside" / source)
    for attempt in (load, load_pairs):
        with pytest.raises(
            ValueError, match=f"{name}: is a link out of the folders.*list the folder.*'training_images'"
        ):
            attempt()


def test_a_link_within_the_folders_is_followed(base):
    (base / "input" / "a.txt").write_text("a cat")
    (base / "input" / "cats" / "a.txt").symlink_to(base / "input" / "a.txt")
    assert load() == ["a cat"]


def test_a_linked_folder_below_is_passed_over(base):
    (base / "input" / "cats" / "below").symlink_to(base / "outside")
    assert len(load()) == 1


@pytest.mark.parametrize("name", ["pipe.png", "a.txt"])
def test_a_pipe_is_named_and_not_waited_for(base, name):
    os.mkfifo(base / "input" / "cats" / name)
    with pytest.raises(ValueError, match=f"{name}: is no file"):
        load()


def test_a_caption_without_end_is_named(base):
    (base / "input" / "cats" / "a.txt").write_bytes(b"a cat " * 1_000_000)
    with pytest.raises(ValueError, match="a.txt: is longer than 100000 bytes"):
        load()


# Pictures


def test_a_picture_of_too_many_pixels_is_named_whatever_others_allow(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    Image.new("1", (20_000, 9_000)).save(tmp_path / "bomb.png")
    with pytest.raises(ValueError, match="bomb.png: .*exceeds limit"):
        load_folder(tmp_path, True, "caption file", "")
    with pytest.raises(ValueError, match="has 20000x9000 pixels, and 178956970 are the most: scale it down"):
        read_header(tmp_path / "bomb.png")
    assert Image.MAX_IMAGE_PIXELS is None


def test_a_picture_of_too_many_pixels_inside_an_icon_is_not_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    Image.new("1", (20_000, 9_000)).save(tmp_path / "bomb.png")
    png = (tmp_path / "bomb.png").read_bytes()
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(png), 22)
    (tmp_path / "bomb.ico").write_bytes(struct.pack("<HHH", 0, 1, 1) + entry + png)
    with refuse_truncated(), pytest.raises(Image.DecompressionBombError):
        read_header(tmp_path / "bomb.ico")
