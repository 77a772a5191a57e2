"""Weights that wait outside the device: the same LoRA, the same MODEL afterwards, and memory that is really given back."""

from __future__ import annotations

import mmap
import re
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Iterator

import comfy.model_management
import pytest
import torch
from pack.nodes import host
from pack.nodes.kept_files import kept_folder
from pack.trainer.checkpointing import checkpointed
from pack.trainer.config import NetworkConfig, TrainingConfig
from pack.trainer.in_place import InPlaceGuard
from pack.trainer.offload import offloaded
from tiny_host import TinyHost

ROOM = 4 << 20  # bytes of a block's weights
FAMILIES = ["SD1", "Flux", "Z-Image"]


class Block(torch.nn.Module):
    """A block that notes how many bytes of the weights in files are in memory while it computes."""

    def __init__(self, seen: list[int]) -> None:
        super().__init__()
        self.layer, self.seen = torch.nn.Linear(1024, 1024, bias=False), seen

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer(x)
        self.seen.append(resident())
        return x.sin()  # the recomputation ends with the last tensor that the backward pass needs


def resident() -> int:
    """Return the resident bytes of this process's mapped files that are deleted, as the kernel counts them."""
    found, total = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match("[0-9a-f]+-", line):
            found = line.endswith("(deleted)") and "offloaded" in line
        elif found and line.startswith("Rss:"):
            total += int(line.split()[1]) << 10
    return total


@pytest.fixture(scope="module", params=FAMILIES)
def tiny(request, tmp_path_factory) -> TinyHost:
    return TinyHost(tmp_path_factory.mktemp("model"), request.param)


def train(tiny: TinyHost, method: str, offload: str) -> dict[str, torch.Tensor]:
    """Return the LoRA of a training with checkpointing, which no earlier result stands in for."""
    shutil.rmtree(kept_folder(), ignore_errors=True)
    outputs = tiny.train(method, settings=TrainingConfig(gradient_checkpointing=True, offload=offload))
    return next(each for each in outputs if isinstance(each, dict) and any("lora_up" in str(key) for key in each))


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("method", ["LoRA", "ADDifT"])
@pytest.mark.parametrize("offload", ["blocks", "all"])
def test_the_lora_and_the_model_are_the_same_bit_for_bit(tiny, method, offload):
    plain, before, sample = train(tiny, method, "none"), weights(tiny.model.model), tiny.sample()
    assert same(train(tiny, method, offload), plain)
    assert same(weights(tiny.model.model), before)
    assert torch.equal(tiny.sample(), sample)


@contextmanager
def a_gpu(monkeypatch) -> Iterator[list[object]]:
    """Let the host treat the CPU as a GPU; yield the states in which it loads models."""
    states, load = [], comfy.model_management.load_models_gpu

    def note(*args: object, **kwargs: object) -> None:
        states.append(comfy.model_management.vram_state)
        load(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(comfy.model_management, "is_device_cpu", lambda device: False)
        patch.setattr(comfy.model_management, "load_models_gpu", note)
        yield states


def test_on_a_gpu_every_layer_takes_its_weights_when_it_computes(tiny, monkeypatch):
    plain, before = train(tiny, "LoRA", "none"), weights(tiny.model.model)
    with a_gpu(monkeypatch) as states:
        config = TrainingConfig(gradient_checkpointing=True, offload="all")
        with host.open_model(tiny.model, config) as (_, layers):
            flags = {type(each).__name__: each.comfy_cast_weights for each in layers.modules() if hasattr(each, "bias")}
        assert flags and all(flags.values())
        assert same(train(tiny, "LoRA", "all"), plain)
    assert states[0] == comfy.model_management.VRAMState.NO_VRAM != comfy.model_management.vram_state
    assert same(weights(tiny.model.model), before)


def streamed(layers: torch.nn.Module) -> list[bool]:
    """Return of each layer whether it takes its weights when it computes."""
    return [each.comfy_cast_weights for each in layers.modules() if hasattr(each, "comfy_cast_weights")]


def test_on_a_gpu_the_weights_wait_again_after_a_sample(tiny, monkeypatch):
    with a_gpu(monkeypatch):
        job = tiny.job("LoRA", settings=TrainingConfig(gradient_checkpointing=True, offload="all"))
        with host.open_session(replace(job, preview=tiny.preview(every=2)), lambda session: None) as session:
            layers = session._model.patcher.model.diffusion_model
            for step in session.steps():
                assert all(streamed(layers))
                assert (session.sample(step) is not None) == (step.number % 2 == 0)
                assert all(streamed(layers))


@pytest.mark.parametrize(
    "method, inputs",
    [
        ("LoRA", {"network": NetworkConfig(rank=4, alpha=4, dora=True)}),
        ("iLECO", {"start": "closed form", "steps": 0, "denoise_steps": 0, "guidance": 0.0}),
    ],
)
def test_a_lora_on_the_model_counts_while_its_weights_wait(tmp_path, monkeypatch, method, inputs):
    """The norms of a DoRA and the closed form are made of the weights that the model computes with."""
    tiny = TinyHost(tmp_path, "SD1")
    tiny.model = host.with_lora(tiny.model, tiny.train("copy machine", learning_rate=0.1)[1])
    plain = learned(tiny.job(method, settings=TrainingConfig(gradient_checkpointing=True), **inputs))
    with a_gpu(monkeypatch):
        settings = TrainingConfig(gradient_checkpointing=True, offload="all")
        waiting = learned(tiny.job(method, settings=settings, **inputs))
    assert plain.keys() == waiting.keys()
    for key, tensor in plain.items():
        torch.testing.assert_close(waiting[key], tensor, rtol=1e-2, atol=1e-2 * tensor.abs().max().item())


def learned(job: Any) -> dict[str, torch.Tensor]:
    with host.open_session(job, lambda session: None) as session:
        session.load_state(None)
        for _ in session.steps():
            pass
        return session.lora()


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="This system has no madvise.")
@pytest.mark.parametrize("offload, most", [("none", 0), ("blocks", ROOM), ("all", ROOM)])
def test_the_weights_of_one_block_are_in_memory(tmp_path, offload, most):
    seen: list[int] = []
    model = torch.nn.Sequential(torch.nn.ModuleList(Block(seen) for _ in range(4))).requires_grad_(False)
    folder, guard = tmp_path / "offloaded", InPlaceGuard()
    folder.mkdir()
    y = torch.ones(1, 1024, requires_grad=True)
    with offloaded(model, offload, folder), checkpointed(model, guard), guard.forward("x"):
        for block in model[0]:
            y = block(y)
        assert seen == [most] * 4  # forward
        y.sum().backward()
        assert seen == [most] * 8  # recomputed; what the backward pass reads is of the same block
    assert resident() == 0 and list(folder.iterdir()) == []


def test_an_error_brings_the_weights_back(tmp_path):
    model = torch.nn.Sequential(torch.nn.ModuleList(torch.nn.Linear(64, 64) for _ in range(3))).requires_grad_(False)
    before = weights(model)
    with pytest.raises(KeyError), offloaded(model, "all", tmp_path):
        raise KeyError
    assert same(weights(model), before)


def test_a_full_disk_is_said_and_the_weights_stay(tmp_path, monkeypatch):
    model = torch.nn.Sequential(torch.nn.ModuleList([torch.nn.Linear(64, 64)])).requires_grad_(False)
    before = weights(model)

    def full(**_: object) -> object:
        return open("/dev/full", "wb")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(ValueError, match="No space left on device.*set offload"), offloaded(model, "all", tmp_path):
        pass
    assert same(weights(model), before)


def test_offload_without_checkpointing_is_refused():
    with pytest.raises(ValueError, match="turn on gradient_checkpointing"):
        TrainingConfig(offload="all")
