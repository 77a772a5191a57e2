"""Names of output files: what is a name on every system, and what is refused before anything is written."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from pack.nodes.output_path import LONGEST_NAME, output_path
from pack.nodes.run_store import LONGEST_NAME as LONGEST_STEM
from pack.nodes.run_store import RunStore

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
def test_a_name_that_is_invalid_on_any_system_is_refused_and_nothing_is_written(base, name, folder, ending):
    (base / "output" / folder).mkdir()
    (base / "output" / folder / "link").symlink_to(base / "outside")
    with pytest.raises(ValueError, match="is not a valid file name in .*: use a name") as refused:
        output_path(folder, name, ending, overwrite=False)
    assert len(str(refused.value)) < 1000
    assert sorted(path.name for path in base.rglob("*") if path.is_file()) == ["a.png", "b.png", "secret.txt"]


@pytest.mark.parametrize(
    "name", ["my_lora", "style/my_lora", "\u732b", "~", "~/x", "a/./b", "a/../b", "v1.5", "CONSOLE", "$HOME"]
)
def test_any_other_name_becomes_a_file_in_its_folder(base, name):
    path = output_path("loras", name, ".safetensors", overwrite=False)
    assert path.is_relative_to(base / "output" / "loras") and path.suffix == ".safetensors"


def test_the_longest_name_leaves_room_for_steps_a_number_and_a_temporary_file(base):
    path = output_path("loras", "x" * LONGEST_NAME, ".safetensors", overwrite=False)
    path.parent.mkdir()
    path.with_name(f"{path.stem}_1000000steps_99{path.suffix}").touch()


def training_node(name: str, **extra) -> SimpleNamespace:
    saving = {"class_type": "TrainTrain_SaveLoRA", "inputs": {"lora": ["1", 0], "name": name}}
    prompt = {"1": {"class_type": "X", "inputs": {}}, "2": saving}
    hidden = SimpleNamespace(unique_id="1", prompt=prompt, extra_pnginfo=extra.get("sent"))
    return SimpleNamespace(hidden=hidden, __name__="TrainX")


def test_an_invalid_name_is_reported_before_training_starts(base):
    with pytest.raises(ValueError, match="'../x' is not a valid file name"):
        RunStore(training_node("../x"), {"steps": 5})


@pytest.mark.parametrize("name", ["\u732b" * 60, "x" * 180])
def test_the_kept_files_of_a_training_have_names_that_fit(base, name):
    path = RunStore(training_node(name), {"steps": 5})._path("_000005.jpg")
    assert len(path.stem) < LONGEST_STEM + 30 and len(path.name.encode()) < 230
    path.parent.mkdir(parents=True)
    path.touch()
