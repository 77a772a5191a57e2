"""The bench: that all contenders train, on the same layers. Its figures are of no test."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from conftest import COMFYUI, ROOT
from diffusers import UNet2DConditionModel
from pack.tools.bench import overheads, tables
from pack.tools.bench.__main__ import PARTS
from pack.tools.bench.rounds import list_rounds
from pack.tools.bench.subjects import SD1, SDXL, load_subject
from pack.tools.bench.timing import Timed, step_clock, take_turns
from pack.tools.bench.trainers import PEFT_LAYERS, HostTrainer, Limit, Ours, Setting
from pack.tools.host_paths import module_command
from pack.trainer.blocks import choose_layers
from pack.trainer.config import NetworkConfig
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from unets import host_model


@pytest.fixture(scope="module")
def subject(shapes_checkpoint):
    return load_subject("Shapes", shapes_checkpoint.parent, 64, torch.float32)


@pytest.mark.parametrize("contender", [Ours, Limit, HostTrainer, lambda *a: HostTrainer(*a, fastest=True)])
def test_every_contender_takes_its_steps(subject, contender):
    with step_clock() as clock:
        assert contender(subject, Setting(2, rank=4)).run(3) > 0
    assert len(clock.times) == 0 if contender is Limit else len(clock.times) >= 3


def test_ileco_is_measured_beside_its_passes_alone_and_reporting_beside_a_step(subject):
    timed = overheads.measure_ileco(subject, Setting(1, rank=4), 2, 1)
    assert all(each.median > 0 for each in timed.values())
    assert 0 < overheads.measure_telemetry(1.0)[2] < 1


@pytest.mark.parametrize("family, sizes", [("SD1", SD1), ("SDXL", SDXL)])
def test_diffusers_adapts_as_many_layers_and_numbers(family, sizes):
    with torch.device("meta"):
        unet = UNet2DConditionModel(**sizes)
        unet.add_adapter(LoraConfig(r=16, target_modules=PEFT_LAYERS))
    layers = choose_layers(host_model(family).model.diffusion_model, NetworkConfig(rank=16))
    theirs = [module for module in unet.modules() if isinstance(module, LoraLayer)]
    assert len(theirs) == len(layers)
    ours = sum(16 * (layer.weight.shape[0] + layer.weight[0].numel()) for layer in layers.values())
    assert sum(p.numel() for p in unet.parameters() if p.requires_grad) == ours


def test_a_part_that_there_is_not_is_refused_with_those_that_there_are(tmp_path):
    folders = ["--comfyui", COMFYUI, "--base", tmp_path, "--folder", tmp_path]
    command = module_command(sys.executable, "tools.bench", *folders, "--only", "memroy")
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 2
    assert "--only memroy: no part has this in its name; there are trainers, memory, ileco, offload" in ran.stderr


def test_every_part_has_its_table():
    shown = {name for name in vars(tables) if name.startswith("show_")}
    assert {f"show_{part.replace(' ', '_')}" for part in PARTS} == shown


def test_contenders_take_turns_and_the_median_counts():
    order, seconds = [], iter([3.0, 1.0, 5.0, 1.0, 4.0, 2.0])
    timed = take_turns({name: lambda name=name: order.append(name) or next(seconds) for name in "ab"}, 3)
    assert order == list("ababab") and timed["a"] == Timed([3.0, 5.0, 4.0])
    assert timed["a"].median == 4.0 and timed["a"].spread == 0.5 and timed["b"].median == 1.0


def test_a_gpu_measures_every_precision_batch_and_checkpointing():
    kinds = {(r.subject, r.dtype, r.batch_size, r.checkpointing) for r in list_rounds(cuda=True, quick=False)}
    assert len(kinds) == 3 * 2 * 2 * 2
