"""Trainings that several processes share: one LoRA, whatever their number; and what becomes of it when one of them dies."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import folder_paths
import pytest
import torch
from conftest import COMFYUI, HOST, ROOT
from pack.nodes.kept_files import FOLDER
from pack.nodes.loss_table import read_table
from pack.nodes.progress import TrainingProgress
from pack.tools.base_folder import make_folders, share_model
from pack.tools.torchrun import trainings_alone
from pack.trainer.distributed import Peers
from pack.trainer.lora_file import LoRAWeights
from safetensors.torch import load_file
from shared_training import (
    DEAD_AT,
    METHODS,
    STEPS,
    STOPPED_AT,
    at_step,
    interrupted,
    start,
    stop,
    stopped,
    train_methods,
)
from tiny_host import TinyHost

SCRIPT = Path(__file__).with_name("shared_training.py")
WITHIN = 180  # seconds, for all that a pair of processes does

# A training of the smallest model, whose second process does something else than the first.
SMALLEST = """
import os, sys, time
import conftest
from pack.trainer.distributed import join
from pack.trainer.run import TrainingRun
from tiny_training import make_training
second = os.environ["RANK"] == "1"
{before}
run = TrainingRun(*make_training(batch_size=2, seed=seed), join(__import__("torch").device("cpu")))
try:
    for done in run.steps():
        step = done.number
        {in_step}
except Exception as error:
    print(type(error).__name__, error, flush=True)
    os._exit(1)
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> TinyHost:
    return TinyHost(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def alone(tiny, tmp_path_factory) -> dict[str, LoRAWeights]:
    """The LoRA of each method, trained by one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_paths, "output_directory", str(tmp_path_factory.mktemp("alone")))
        return train_methods(tiny)


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    """The folder of two processes that have trained all that shared_training.py has to train."""
    folder = tmp_path_factory.mktemp("shared")
    assert finish(start(folder, [SCRIPT, folder]), folder) == [0, 9]
    return folder


@contextmanager
def two_machines(name: str) -> Iterator[list[list[str]]]:
    """Make two network namespaces with a link between them; give what runs a program in each. Skips where none can be made."""
    names = [f"{name}{side}" for side in "ab"]
    lines = [f"netns add {each}" for each in names] + [f"link add {names[0]} type veth peer name {names[1]}"]
    for number, each in enumerate(names, 1):
        lines += [f"link set {each} netns {each}", f"-n {each} addr add 10.99.0.{number}/24 dev {each}"]
        lines += [f"-n {each} link set {each} up", f"-n {each} link set lo up"]
    try:
        for line in lines:
            subprocess.run(["ip", *line.split()], check=True, capture_output=True)
        yield [["ip", "netns", "exec", each, "env", f"GLOO_SOCKET_IFNAME={each}"] for each in names]
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"No network namespaces can be made here: {error}")
    finally:
        for each in names if shutil.which("ip") else ():
            subprocess.run(["ip", "netns", "del", each], capture_output=True)


def finish(processes: list[subprocess.Popen], folder: Path) -> list[int]:
    """Wait for processes to end; return their exit statuses."""
    end = time.monotonic() + WITHIN
    try:
        return [process.wait(max(0.1, end - time.monotonic())) for process in processes]
    except subprocess.TimeoutExpired:
        raise AssertionError("\n".join(log.read_text() for log in sorted(folder.glob("*.log")))) from None
    finally:
        for process in processes:
            process.kill()


def start_smallest(folder: Path, before: str = "seed = 7", in_step: str = "pass", **environment: str):
    (folder / "smallest.py").write_text(SMALLEST.format(before=before, in_step=in_step))
    return start(folder, [folder / "smallest.py"], PYTHONPATH=str(SCRIPT.parent), **environment)


def load(folder: Path, name: str) -> list[dict[str, torch.Tensor]]:
    """Return a LoRA as each of two processes has it."""
    return [load_file(folder / f"{name}_{rank}.safetensors") for rank in range(2)]


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[key] - other[key]).abs().max().item() for key in one)


def assert_trained_as_one(folder: Path, alone: dict[str, LoRAWeights], method: str) -> None:
    first, second = load(folder, method)
    assert distance(first, alone[method]) < 1e-5
    assert distance(first, second) == 0
    assert max(first[key].abs().max() for key in first if "lora_up" in key) > 1e-2, "it has learned what could differ"


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_train_the_lora_of_one(shared, alone, method):
    assert_trained_as_one(shared, alone, method)


def test_two_machines_train_the_lora_of_one(alone, tmp_path, is_long):
    methods = METHODS if is_long else METHODS[:1]
    with two_machines(f"tt{os.getpid()}") as prefixes:
        processes = start(tmp_path, [SCRIPT, tmp_path, *methods], prefixes, MASTER_ADDR="10.99.0.1")
        assert finish(processes, tmp_path) == [0, 0], (tmp_path / "0.log").read_text()
    for method in methods:
        assert_trained_as_one(tmp_path, alone, method)


def test_a_step_sends_the_gradients_of_the_lora_and_three_metrics(shared, alone):
    sizes = [sum(t.numel() for key, t in alone[method].items() if not key.endswith("alpha")) for method in METHODS]
    expected = [4 * (size + 3) for size in sizes for _ in range(STEPS)]
    for rank in range(2):
        assert [int(size) for size in (shared / f"sent_{rank}").read_text().split()] == expected


def test_stop_and_keep_ends_all_processes_with_one_lora(shared, tiny, monkeypatch):
    monkeypatch.setattr(TrainingProgress, "report", at_step(STOPPED_AT, stop))
    first, second = load(shared, "stopped")
    assert distance(first, second) == 0
    assert distance(first, stopped(tiny)) < 1e-5


def test_when_a_process_dies_the_other_reports_it_and_training_resumes_from_there(
    shared, tiny, output_folder, monkeypatch
):
    assert (
        (shared / "ended")
        .read_text()
        .startswith("Another process of the training has failed, or has not responded for")
    )
    whole = interrupted(tiny)
    shutil.rmtree(output_folder)
    shutil.copytree(shared / FOLDER, output_folder / FOLDER)
    steps = []
    monkeypatch.setattr(TrainingProgress, "report", lambda _, step: steps.append(step.number))
    assert distance(interrupted(tiny), whole) < 1e-5
    assert DEAD_AT < steps[0] <= DEAD_AT + 3 and steps[-1] == STEPS


def test_a_process_that_does_not_respond_is_a_timeout(tmp_path):
    processes = start_smallest(tmp_path, in_step="second and time.sleep(600)", TRAINTRAIN_TIMEOUT="2")
    try:
        assert finish(processes[:1], tmp_path) == [1]
        assert processes[1].poll() is None, "it still sleeps"
    finally:
        processes[1].kill()
    assert (
        "PeerLost Another process of the training has failed, or has not responded for 2 seconds"
        in (tmp_path / "0.log").read_text()
    )


# The second process's model fails in its fourth step.
FAILING = """
seed, calls = 7, []
from tiny_training import TinyModel
def failing(self, *inputs, predict=TinyModel.predict):
    calls.append(1)
    assert len(calls) < 4 or not second
    return predict(self, *inputs)
TinyModel.predict = failing
"""


def test_an_error_in_one_process_ends_the_other_at_once(tmp_path):
    assert finish(start_smallest(tmp_path, before=FAILING), tmp_path) == [1, 1]
    logs = [(tmp_path / f"{rank}.log").read_text() for rank in range(2)]
    assert "PeerLost" in logs[0] and "AssertionError" in logs[1]


def test_a_process_with_a_different_training_is_refused(tmp_path):
    assert finish(start_smallest(tmp_path, before="seed = 7 + second"), tmp_path) == [1, 1]
    assert "ValueError Process 1 has a different training than process 0" in (tmp_path / "1.log").read_text()


def ileco(number: str, original: str, target: str, **inputs: object) -> dict[str, dict]:
    """Return a training node and its Save LoRA."""
    wired = {"model": ["1", 0], "original": [original, 0], "target": [target, 0]}
    plain = {"width": 64, "height": 64, "steps": 2, "batch_size": 2, "learning_rate": 1e-3, "seed": 1}
    instant = {"denoise_steps": 0, "guidance": 0.0}
    saved = {"lora": [number, 1], "name": f"of_{number}", "save_precision": "fp32", "strength": 1.0, "overwrite": False}
    return {
        number: {"class_type": "TrainTrain_TrainILECO", "inputs": {**wired, **plain, **instant, **inputs}},
        f"{number}0": {"class_type": "TrainTrain_SaveLoRA", "inputs": saved},
    }


def prompt(text: str) -> dict:
    return {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": text}}


GRAPH = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "shapes.safetensors"}},
    "2": prompt("red"),
    "3": prompt("blue"),
    **ileco("4", "2", "3"),
    **ileco("5", "3", "2"),
}


def test_the_other_processes_run_only_the_training_nodes():
    info = {node["class_type"]: {"output": ["MODEL", "LORA_MODEL", "LOSS_MAP"]} for node in GRAPH.values()}
    alone = trainings_alone(GRAPH | ileco("6", "2", "3", lora=["4", 1]), ["6"], info)
    assert alone.keys() == {"1", "2", "3", "4", "6", "end of 6"}
    assert alone["end of 6"] == {"class_type": "PreviewAny", "inputs": {"source": ["6", 2]}}


def test_torchrun_runs_a_workflow_of_two_trainings_that_do_not_depend_on_one_another(tmp_path):
    base = tmp_path / "base"
    make_folders(base)
    share_model(HOST / "base", base)
    (tmp_path / "graph.json").write_text(json.dumps(GRAPH))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = ["dev.py", "run", "--comfyui", COMFYUI, "--python", sys.executable, "--set", "4.steps=3"]
    with open(tmp_path / "0.log", "wb") as log:
        process = subprocess.Popen(
            [*torchrun, *run, tmp_path / "graph.json"],
            cwd=ROOT,
            env={**os.environ, "TRAINTRAIN_HOST": str(tmp_path), "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
        )
    assert finish([process], tmp_path) == [0], (tmp_path / "0.log").read_text()
    said, trained = (tmp_path / "0.log").read_text(), base / "output" / "traintrain"
    for number, steps in (("4", 3), ("5", 2)):
        path = base / "output" / "loras" / f"of_{number}.safetensors"
        assert said.count(str(path)) == 1
        [table] = read_table(next(trained.glob(f"of_{number}_*.csv"))).values()
        assert path.is_file() and len(table) == steps
    others = (base / "server_1.log").read_text()
    assert others.count("The LoRA has") == 2 and others.count("Prompt executed") == 2


@pytest.mark.parametrize("count", range(1, 6))
@pytest.mark.parametrize("batch", range(1, 9))
def test_each_example_has_one_process_and_no_process_is_without(batch, count):
    parts = [Peers(rank, count).own_slice(batch) for rank in range(count)]
    counted = [place for own, share in parts if share for place in range(batch)[own]]
    assert counted == list(range(batch))
    assert all(len(range(batch)[own]) >= 1 for own, _ in parts)
    assert sum(share for _, share in parts) == pytest.approx(1)
