"""Which folders and files a workflow may read."""

from __future__ import annotations

import os

import folder_paths
import pytest
from pack.nodes.input_path import find_folder
from pack.nodes.load_image_folder import LoadImageFolder
from pack.nodes.load_image_pairs import LoadImagePairs


def load(node=LoadImageFolder, folder: str = "cats", **more) -> list[str]:
    return node.execute(folder, True, "caption file", "", **more).args[2]


def load_pairs() -> list[str]:
    buckets = {"width": 64, "height": 64, "buckets_step": 8, "min_length": 32, "max_ratio": 2.0}
    return load(LoadImagePairs, suffix="_target", **buckets)


@pytest.fixture
def base(base, monkeypatch):
    """Give every folder of the host, one that is listed, and the folder outside of them a subfolder `cats`."""
    for name in ("input", "output", "listed", "outside"):
        (base / name / "cats").mkdir(parents=True, exist_ok=True)
    extra = folder_paths.folder_names_and_paths | {"training_images": ([str(base / "listed")], set())}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", extra)
    return base


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
def test_any_other_folder_is_refused_and_the_error_says_how_to_allow_it(base, name):
    (base / "input" / "link").symlink_to(base / "outside" / "cats")
    with pytest.raises(ValueError, match="may not be read.*'training_images' in extra_model_paths.yaml"):
        find_folder(name.format(base=base))


def test_a_folder_next_to_input_whose_name_starts_the_same_is_refused(base):
    (base / "input_private").mkdir()
    with pytest.raises(ValueError, match="may not be read"):
        find_folder("../input_private")


def test_a_missing_folder_and_an_empty_name_are_errors(base):
    with pytest.raises(ValueError, match=f"There is no folder 'dogs'. Looked for {base}/input/dogs, "):
        find_folder("dogs")
    with pytest.raises(ValueError, match="The folder is empty"):
        find_folder("  ")


def test_without_listed_folders_input_and_output_still_work(base, monkeypatch):
    remaining = {k: v for k, v in folder_paths.folder_names_and_paths.items() if k != "training_images"}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", remaining)
    assert find_folder("cats") == base / "input" / "cats"


REMOTE = ["\\\\host\\share", "//host/share", "\\/host/share", "/\\host\\share", " \\\\?\\C:\\x", "\\\\.\\pipe\\x"]


@pytest.mark.parametrize("name", REMOTE)
def test_a_folder_of_another_computer_is_refused_without_contacting_it(base, monkeypatch, name):
    """On Windows merely looking at it sends that computer the user's password hash."""
    monkeypatch.setattr("pack.nodes.input_path._resolve", lambda name: pytest.fail("it was looked at"))
    with pytest.raises(ValueError, match="may not be read.*'training_images' in extra_model_paths.yaml"):
        find_folder(name)


def test_a_folder_of_another_computer_may_be_read_if_it_is_listed(base, monkeypatch):
    listed = folder_paths.folder_names_and_paths | {"training_images": ([f"/{base}/outside"], set())}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", listed)
    assert find_folder(f"/{base}/outside").samefile(base / "outside")


@pytest.mark.parametrize(
    "name", ["cats\0", "\ud800", "x" * 100_000, "C:\\x", "C:x", "~", "~root", "$HOME", "cats/a.png", "CON"]
)
def test_an_invalid_folder_name_is_a_short_error(base, name):
    with pytest.raises(ValueError, match=r"There is no folder|is not a valid folder name") as refused:
        find_folder(name)
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("name", ["x.png", "a.txt", "a.caption"])
def test_an_image_or_caption_that_links_out_of_the_folders_is_named_and_not_read(base, name):
    source = "b.png" if name == "x.png" else "secret.txt"
    (base / "input" / "cats" / name).symlink_to(base / "outside" / source)
    for attempt in (load, load_pairs):
        with pytest.raises(
            ValueError, match=f"{name}: is a link to a file outside the folders.*list its folder.*'training_images'"
        ):
            attempt()


def test_a_link_within_the_folders_is_followed(base):
    (base / "input" / "a.txt").write_text("a cat")
    (base / "input" / "cats" / "a.txt").symlink_to(base / "input" / "a.txt")
    assert load() == ["a cat"]


def test_a_linked_subfolder_is_skipped(base):
    (base / "input" / "cats" / "below").symlink_to(base / "outside")
    assert len(load()) == 1


@pytest.mark.parametrize("name", ["pipe.png", "a.txt"])
def test_a_pipe_is_named_and_does_not_block(base, name):
    os.mkfifo(base / "input" / "cats" / name)
    with pytest.raises(ValueError, match=f"{name}: is not a regular file"):
        load()
