"""Kept trainings: how much disk space they take, who lists them, and that a stopped one is a result."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace

import folder_paths
import pytest
import torch
from pack.nodes import kept_files, stopping
from pack.nodes.load_lora import LoadLoRA
from pack.nodes.train_ileco import TrainILECO
from pack.trainer.config import TrainingConfig
from pack.trainer.lora_file import load_lora
from tiny_host import TinyHost

FINGERPRINT = "0123456789abcde"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> TinyHost:
    return TinyHost(tmp_path_factory.mktemp("model"))


def keep(folder: Path, number: int, age: float, size: int = 1000, kinds=("safetensors", "state", "csv")) -> str:
    """Write the files of a kept training, each of a size; return what their names begin with."""
    name = f"mine_{FINGERPRINT}{number:x}"
    folder.mkdir(parents=True, exist_ok=True)
    for file in (*(f"{name}.{kind}" for kind in kinds), f"{name}_000010.jpg"):
        (folder / file).write_bytes(bytes(size))
        os.utime(folder / file, (time.time() - age,) * 2)
    return name


def kept(output: Path) -> list[str]:
    return sorted({path.name[: len("mine_") + 16] for path in output.rglob("*.*") if path.is_file()})


def test_the_oldest_trainings_are_deleted_with_all_of_their_files_until_the_rest_fits(output_folder):
    folder = output_folder / "traintrain"
    names = [keep(folder, number, age=100 * (5 - number)) for number in range(5)]  # 4000 bytes each
    kept_files.clean_up(12_500e-9, names[4])
    assert kept(folder) == names[2:]
    assert len(list(folder.iterdir())) == 3 * 4


def test_what_is_saved_last_stays_however_large_it_is(output_folder):
    folder = output_folder / "traintrain"
    old, new = keep(folder, 0, age=0), keep(folder, 1, age=50, size=5000)  # clocks differ
    kept_files.clean_up(0, new)
    assert kept(folder) == [new] and old not in kept(folder)


def test_trainings_that_the_first_version_kept_count_and_other_files_do_not(output_folder):
    old = keep(output_folder / "loras" / "trained", 0, age=100)
    new = keep(output_folder / "traintrain", 1, age=0)
    others = [output_folder / "loras" / "trained" / "my own.safetensors", output_folder / "traintrain" / "notes.csv"]
    for other in others:
        other.write_bytes(bytes(9000))
    kept_files.clean_up(8000e-9, new)
    assert {old, new} < set(kept(output_folder))
    kept_files.clean_up(7000e-9, new)
    assert old not in kept(output_folder) and all(other.is_file() for other in others)


def test_a_training_deletes_what_keep_gb_has_no_room_for(tiny, output_folder):
    old = keep(output_folder / "traintrain", 0, age=100)
    tiny.train("iLECO", steps=1)
    assert old in kept(output_folder)
    tiny.train("iLECO", steps=2, settings=TrainingConfig(keep_gb=0))
    files = [path.suffix for path in (output_folder / "traintrain").iterdir()]
    assert sorted(files) == [".csv", ".safetensors", ".state"]


def test_kept_trainings_are_in_no_list_but_that_of_load_lora(tiny, output_folder, monkeypatch):
    monkeypatch.setitem(
        folder_paths.folder_names_and_paths, "loras", ([str(output_folder / "loras")], {".safetensors"})
    )
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    _, lora, _ = tiny.train("iLECO", steps=1)
    assert folder_paths.get_filename_list("loras") == []
    (listed,) = LoadLoRA.define_schema().inputs[0].options
    assert listed.startswith("trained/ILECO_")
    (loaded,) = LoadLoRA.execute(listed).args
    assert all(torch.equal(loaded[key], lora[key]) for key in lora)
    assert LoadLoRA.fingerprint_inputs(listed).startswith(listed)
    with pytest.raises(ValueError, match="There is no LoRA 'trained/../x'"):
        LoadLoRA.execute("trained/../x")


def stop_at(monkeypatch, step: int) -> list[int]:
    """Press Stop and keep after a step; return the steps as they come."""
    done: list[int] = []

    def report(_: object, reached) -> None:
        done.append(reached.number)
        if len(done) == step:
            stopping._running["2"] = True  # as the page's button does

    monkeypatch.setattr("pack.nodes.progress.TrainingProgress.report", report)
    return done


def test_a_stopped_training_is_a_result_until_resume_stopped_asks_for_the_rest(tiny, output_folder, monkeypatch):
    done = stop_at(monkeypatch, 2)
    settings = TrainingConfig(lr_scheduler="constant")
    _, stopped, loss = tiny.train("iLECO", steps=5, settings=settings)
    assert len(loss["loss"]) == 2
    for _ in range(2):  # also after a restart: nothing in memory knows of it
        _, again, loss = tiny.train("iLECO", steps=5, settings=settings)
        assert len(loss["loss"]) == 2 and all(torch.equal(again[key], stopped[key]) for key in stopped)
    assert done == [1, 2] and "traintrain_stopped" not in again.metadata
    _, rest, _ = tiny.train("iLECO", steps=5, settings=settings, resume_stopped=True)
    assert done == [1, 2, 3, 4, 5]
    _, finished, _ = tiny.train("iLECO", steps=5, settings=settings)
    assert done == [1, 2, 3, 4, 5] and all(torch.equal(finished[key], rest[key]) for key in rest)


def test_a_training_that_is_stopped_again_after_it_was_resumed_is_a_result_again(tiny, output_folder, monkeypatch):
    done = stop_at(monkeypatch, 2)
    tiny.train("iLECO", steps=6)
    done = stop_at(monkeypatch, 2)
    tiny.train("iLECO", steps=6, resume_stopped=True)
    assert done == [3, 4]
    *_, loss = tiny.train("iLECO", steps=6)
    assert done == [3, 4] and len(loss["loss"]) == 4


def test_only_a_node_that_resumes_runs_again_after_a_stop(monkeypatch):
    monkeypatch.setattr(TrainILECO, "hidden", SimpleNamespace(unique_id="2"), raising=False)
    before = [TrainILECO.fingerprint_inputs(steps=3, **values) for values in ({}, {"resume_stopped": True})]
    monkeypatch.setitem(stopping._stops, "2", stopping.stop_count("2") + 1)
    after = [TrainILECO.fingerprint_inputs(steps=3, **values) for values in ({}, {"resume_stopped": True})]
    assert before[0] == after[0] and before[1] != after[1]


def test_the_kept_file_of_a_stopped_training_says_so(tiny, output_folder, monkeypatch):
    stop_at(monkeypatch, 1)
    tiny.train("iLECO", steps=3)
    (path,) = (output_folder / "traintrain").glob("*.safetensors")
    assert load_lora(path).metadata["traintrain_stopped"] == "True"
