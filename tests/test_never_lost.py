"""What was trained is never lost: killed programs, full disks, folders that cannot be written, names that are taken."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import folder_paths
import pytest
import torch
from conftest import ROOT
from killed_training import SAVE_EVERY
from pack.nodes.loss_table import read_table
from pack.nodes.save_lora import SaveLoRA
from pack.tools.errors import ToolError
from pack.tools.runner import load_workflow, run_workflow, to_api
from pack.trainer.atomic_write import ABANDONED, write_atomically
from pack.trainer.config import TrainingConfig
from pack.trainer.lora_file import LoRAWeights, load_lora
from pack.trainer.run import Step
from pack.trainer.state import load_state
from tiny_host import TinyHost

KILLS, STEPS = 10, 100  # twice as many with --long
EVERY_STEP = {"settings": TrainingConfig(save_every=1, lr_scheduler="constant")}
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="This system cannot copy a process.")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> TinyHost:
    return TinyHost(tmp_path_factory.mktemp("model"))


class Copies:
    """Runs trainings in copies of a process that has a tiny model loaded."""

    def __init__(self) -> None:
        script, pipe = Path(__file__).with_name("killed_training.py"), subprocess.PIPE
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # a copy of a process has none of its other threads
        self._process = subprocess.Popen([sys.executable, script], stdin=pipe, stdout=pipe, env=environment)

    def start(self, *trainings: str) -> list[int]:
        """Start a copy for each training, "SEED:STEPS:FOLDER"; return their process ids."""
        self._process.stdin.write(f"{' '.join(trainings)}\n".encode())
        self._process.stdin.flush()
        return [int(self.wait_for("started")[-1]) for _ in trainings]

    def wait_for(self, word: str) -> list[str]:
        """Wait for the next report, and return it."""
        for line in self._process.stdout:
            if line.split()[0] == word.encode():
                return line.decode().split()
        raise AssertionError("The copies have ended.")

    def reports(self) -> Iterator[list[str]]:
        """Yield the reports, each split into words, until all copies are gone."""
        for line in self._process.stdout:
            words = line.decode().split()
            if words == ["gone"]:
                return
            yield words

    def steps(self) -> Iterator[int]:
        """Yield the reported steps until all copies are gone."""
        return (int(words[1]) for words in self.reports() if words[0] == "step")

    def close(self) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(60)


@pytest.fixture(scope="module")
def copies() -> Iterator[Copies]:
    running = Copies()
    yield running
    running.close()


def read_all(output: Path, known: dict[tuple[str, int], int]) -> dict[str, int]:
    """Read every file as what its ending says; return the steps of each LoRA. Raises for one that is not whole.

    known: the LoRAs that were read before, by name and time
    """
    steps = {}
    for file in output.rglob("*.*"):
        if file.suffix == ".safetensors":
            key = file.name, file.stat().st_mtime_ns
            known[key] = steps[file.name] = known.get(key) or int(load_lora(file).metadata["traintrain_step"])
        elif file.suffix == ".state":
            assert len(load_state(file)["losses"]) > 0
        elif file.suffix == ".csv":
            assert len(next(iter(read_table(file).values()))) > 0
    return steps


def listed_by_host(output: Path) -> set[str]:
    files, _ = folder_paths.recursive_search(str(output / "loras"), [".git"])
    return {
        Path(name).name for name in folder_paths.filter_files_extensions(files, folder_paths.supported_pt_extensions)
    }


@needs_fork
def test_kills_at_random_moments_lose_nothing(copies, tmp_path, is_long):
    """Each start resumes where the last one was saved, and the result is that of a training that was never killed."""
    rng, done, known, kills = random.Random(1), 0, {}, KILLS * (1 + is_long)
    for _ in range(kills):
        (process,) = copies.start(f"5:{STEPS}:{tmp_path / 'killed'}")
        lived = rng.randrange(1, 5)  # steps, and then a while
        for reached in copies.steps():
            done, lived = max(done, reached), lived - 1
            if lived == 0:
                time.sleep(rng.random() * 0.02)
                os.kill(process, signal.SIGKILL)
        kept = read_all(tmp_path / "killed", known)
        assert listed_by_host(tmp_path / "killed") == {
            name for name in kept if "steps" in name
        }  # not the kept training
        assert done - max(kept.values(), default=0) <= SAVE_EVERY
    assert kills / 2 < done < STEPS
    saved = []
    for folder in ("killed", "straight"):
        copies.start(f"5:{STEPS}:{tmp_path / folder}")
        copies.wait_for("gone")
        saved.append(load_lora(tmp_path / folder / "loras" / "mine.safetensors"))
    killed, straight = saved
    assert killed.keys() == straight.keys()
    assert all(torch.equal(killed[key], straight[key]) for key in killed)


@needs_fork
def test_two_of_the_same_training_at_once_both_end_well(copies, tmp_path):
    copies.start(f"6:12:{tmp_path}", f"6:12:{tmp_path}")
    reports = list(copies.reports())
    assert reports.count(["step", "12"]) == reports.count(["saved"]) == 2
    assert read_all(tmp_path, {})["mine.safetensors"] == 12


def save(lora: dict[str, torch.Tensor], name: str, overwrite: bool = False) -> Path:
    SaveLoRA.hidden = SimpleNamespace(prompt={}, extra_pnginfo=None)
    return Path(SaveLoRA.execute(lora, name, "fp32", 1.0, overwrite).args[0])


def test_two_programs_never_take_one_name(output_folder):
    """They look for a free name at the same time, and find the same one."""
    start, saved = threading.Barrier(2), {}

    def save_many(number: int) -> None:
        for round_ in range(30):
            lora = {"a.lora_up.weight": torch.tensor([[float(number)], [float(round_)]])}
            start.wait()
            saved[number, round_] = save(lora, "mine")

    programs = [threading.Thread(target=save_many, args=(number,)) for number in range(2)]
    for program in programs:
        program.start()
    for program in programs:
        program.join()
    assert len(saved) == len(set(saved.values())) == 60
    for (number, round_), path in saved.items():
        assert load_lora(path)["a.lora_up.weight"].flatten().tolist() == [number, round_]


# A disk that is full, in earnest where a disk can be made, and as if elsewhere.


class Disk:
    """The host's output folder on a disk whose end can be reached."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def fill(self) -> None:
        """Leave no room."""

    def empty(self) -> None:
        """Give the room back."""


class SmallDisk(Disk):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
        if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("This user cannot make a disk.")

    def fill(self) -> None:
        with pytest.raises(OSError, match="No space"), open(self.folder / "other", "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def empty(self) -> None:
        (self.folder / "other").unlink()

    def remove(self) -> None:
        subprocess.run(["umount", "-l", str(self.folder)], check=True)


class PretendedDisk(Disk):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._patch = pytest.MonkeyPatch()

    def fill(self) -> None:
        def refuse(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        self._patch.setattr(os, "fsync", refuse)

    def empty(self) -> None:
        self._patch.undo()

    remove = empty


@pytest.fixture(params=[SmallDisk, PretendedDisk], ids=["a small disk", "a pretended one"])
def disk(request, tmp_path, monkeypatch) -> Iterator[Disk]:
    made = request.param(tmp_path / "disk")
    monkeypatch.setattr(folder_paths, "output_directory", str(made.folder))
    yield made
    made.remove()


def at_step(monkeypatch, step: int, act: Callable[[], None]) -> list[int]:
    """Do something when a step is done; return the steps as they come."""
    steps: list[int] = []

    def report(_: object, reached: Step) -> None:
        steps.append(reached.number)
        if reached.number == step:
            act()

    monkeypatch.setattr("pack.nodes.progress.TrainingProgress.report", report)
    return steps


def contents(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*.*") if file.is_file()}


def test_training_continues_while_the_disk_is_full_and_is_saved_when_there_is_space(tiny, disk, monkeypatch, caplog):
    tiny.train("copy machine", steps=1, **EVERY_STEP)
    before = contents(disk.folder)
    steps = at_step(monkeypatch, 1, disk.fill)

    def look_and_empty() -> None:
        assert contents(disk.folder) == before
        (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert "safetensors cannot be written (" in warning and "No space left" in warning
        assert "continues, and the next save_every tries again" in warning
        disk.empty()

    report = sys.modules["pack.nodes.progress"].TrainingProgress.report
    monkeypatch.setattr(
        "pack.nodes.progress.TrainingProgress.report",
        lambda self, step: (look_and_empty() if step.number == 2 else None, report(self, step)),
    )
    tiny.train("iLECO", steps=4, **EVERY_STEP)
    assert steps == [1, 2, 3, 4]
    names = sorted(file.name for file in disk.folder.rglob("ILECO_*steps.safetensors"))
    assert names == ["ILECO_2steps.safetensors", "ILECO_3steps.safetensors"]  # the last one is for Save LoRA
    assert before.items() <= contents(disk.folder).items()


def test_a_lora_that_cannot_be_saved_still_goes_into_the_graph(tiny, disk, monkeypatch, caplog):
    at_step(monkeypatch, 2, disk.fill)
    _, lora, loss = tiny.train("iLECO", steps=2)
    assert "Save LoRA can still save it" in caplog.text and len(loss["loss"]) == 2
    with pytest.raises(
        OSError, match=r"mine.safetensors cannot be written.*No space.*only in memory: queue the workflow again"
    ) as error:
        save(lora, "mine")
    assert contents(disk.folder).keys() <= {disk.folder / "other"}
    disk.empty()
    assert load_lora(save(lora, "mine")).keys() == lora.keys()
    assert "\n" not in str(error.value)


def test_a_lora_that_cannot_be_saved_is_where_the_message_says(tiny, disk, monkeypatch):
    _, lora, _ = tiny.train("iLECO", steps=2)
    save(lora, "mine")
    before = contents(disk.folder)
    disk.fill()
    with pytest.raises(
        OSError, match="No space.*The LoRA is kept in .*: queue the workflow again to save it without"
    ) as error:
        save(lora, "mine", overwrite=True)
    disk.empty()
    assert contents(disk.folder) == before
    kept = load_lora(Path(str(error.value).partition("is kept in ")[2].partition(": queue")[0]))
    assert all(torch.equal(kept[key], lora[key]) for key in lora)
    steps = at_step(monkeypatch, 0, lambda: None)
    *_, again, _ = tiny.train("iLECO", steps=2)
    assert steps == [] and all(torch.equal(again[key], lora[key]) for key in lora)


def test_samples_that_cannot_be_saved_do_not_end_training(tiny, disk, monkeypatch, caplog):
    at_step(monkeypatch, 1, disk.fill)
    *_, loss = tiny.train("iLECO", steps=3, preview=tiny.preview(every=2))
    assert len(loss["loss"]) == 3 and "The samples of step 2 could not be saved" in caplog.text


# Folders and names.


def test_a_folder_that_cannot_be_written_is_reported_before_training_starts(tiny, output_folder, monkeypatch):
    steps = at_step(monkeypatch, 0, lambda: None)
    mkdir = os.mkdir

    def refuse(path: str, *arguments: object) -> None:
        if str(path).startswith(str(output_folder / "traintrain" / ".")):
            raise PermissionError(errno.EACCES, "Permission denied")
        mkdir(path, *arguments)

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(OSError, match=r"traintrain cannot be written \(Permission denied\): free disk space"):
        tiny.train("iLECO", steps=2)
    assert steps == []


@pytest.mark.parametrize("taken, name", [("mine.safetensors/x", "mine"), ("style", "style/mine")])
def test_a_name_that_is_a_folder_or_leads_through_a_file_is_refused_and_both_stay(tiny, output_folder, taken, name):
    _, lora, _ = tiny.train("iLECO", steps=1)
    there = output_folder / "loras" / taken
    there.parent.mkdir(parents=True, exist_ok=True)
    there.write_bytes(b"the user's own")
    before = contents(output_folder)
    with pytest.raises(
        OSError, match=r"mine.safetensors cannot be written \(.*choose another name. The LoRA is kept in"
    ):
        save(lora, name, overwrite=True)
    assert contents(output_folder) == before and there.read_bytes() == b"the user's own"
    if name == "mine":
        assert save(lora, name).name == "mine_2.safetensors"


def test_a_lora_from_elsewhere_is_not_reported_as_kept(output_folder):
    (output_folder / "loras").mkdir(parents=True)
    (output_folder / "loras" / "style").write_bytes(b"")
    with pytest.raises(OSError, match="choose another name. $"):
        save(LoRAWeights({"a.lora_up.weight": torch.ones(1, 1)}), "style/mine")


# Files in the making.


@needs_fork
def test_temporary_files_of_a_killed_program_are_not_listed_and_are_deleted_later(tmp_path):
    child = os.fork()
    if child == 0:
        with write_atomically(tmp_path / "loras" / "mine.safetensors") as part:
            part.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    (tmp_path / "loras" / ".other.part").mkdir()
    left = [file for file in (tmp_path / "loras").rglob("*") if file.is_file()]
    assert [file.read_bytes() for file in left] == [b"half"] and listed_by_host(tmp_path) == set()

    def write_another() -> set[Path]:
        with write_atomically(tmp_path / "loras" / "another.safetensors") as part:
            part.write_bytes(b"whole")
        return set((tmp_path / "loras").rglob("*"))

    assert left[0] in write_another()  # it might be in the making
    for path in (left[0], left[0].parent, tmp_path / "loras" / ".other.part"):
        os.utime(path, (time.time() - ABANDONED - 60,) * 2)
    assert write_another() == {tmp_path / "loras" / ".other.part", tmp_path / "loras" / "another.safetensors"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_unfinished_write_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "a.csv"
    path.write_text("earlier")
    with pytest.raises(error), write_atomically(path) as part:
        part.write_text("half")
        raise error
    assert path.read_text() == "earlier" and list(tmp_path.iterdir()) == [path]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    path, seen = tmp_path / "a.csv", []
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda handle: (fsync(handle), seen.append((os.fstat(handle).st_size, path.exists())))
    )
    with write_atomically(path) as part:
        part.write_text("whole")
    assert seen == [(5, False)]


@pytest.mark.skipif(os.name != "posix", reason="Other systems have other rights.")
def test_a_lora_can_be_read_by_those_who_can_read_other_files(output_folder):
    path = save({"a.lora_up.weight": torch.ones(1, 1)}, "mine")
    (output_folder / "plain").touch()
    assert path.stat().st_mode == (output_folder / "plain").stat().st_mode


def test_a_lora_that_is_only_in_memory_is_saved_when_the_graph_is_queued_again(server):
    """As the message says: the host has what a node gave until another graph runs."""
    prompt = to_api(
        load_workflow(ROOT / "example_workflows" / "3_Replace_a_concept_iLECO.json"), server.get("/object_info")
    )
    prompt = {
        id: node
        for id, node in prompt.items()
        if node["class_type"] not in ("TrainTrain_CompareLoRAs", "TrainTrain_PlotLoss")
    }
    (training,) = (node for node in prompt.values() if node["class_type"] == "TrainTrain_TrainILECO")
    training["inputs"].update(steps=30, seed=987)
    folders, steps = [server.base / "output" / name for name in ("loras", "traintrain")], []
    asides = [folder.with_name(f"{folder.name} aside") for folder in folders]

    def take_folders_away(event: str, _: str, data: dict) -> None:
        if event == "traintrain.step":
            steps.append(data["step"])
            for folder, aside in zip(folders, asides):
                if folder.is_dir():
                    folder.rename(aside)
                if not folder.exists():
                    folder.touch()

    with pytest.raises(
        ToolError, match="cannot be written.*only in memory: queue the workflow again before you close ComfyUI"
    ):
        run_workflow(server, prompt, take_folders_away)
    for folder, aside in zip(folders, asides):
        folder.unlink()
        if aside.is_dir():
            aside.rename(folder)
    assert steps[-1] == 30
    steps.clear()
    saved = run_workflow(server, prompt, lambda event, *_: steps.append(event) if event == "traintrain.step" else None)
    assert steps == []
    (path,) = {text for output in saved if output.title == "Save LoRA" for text in output.texts}
    assert load_lora(Path(path)).metadata["traintrain_step"] == "30"
