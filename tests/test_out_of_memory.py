"""A training that does not fit into memory reports in one sentence what to change, and frees the memory it took."""

from __future__ import annotations

import gc
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.model_management
import psutil
import pytest
import torch
from conftest import ROOT
from pack.nodes.host.memory import is_out_of_memory
from pack.tools.errors import ToolError
from pack.tools.runner import load_workflow, run_workflow, to_api
from pack.trainer.config import TrainingConfig
from pack.trainer.lora_file import load_lora
from tiny_host import TinyHost

SHORT = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:80] . DefaultCPUAllocator: not enough memory"),
    RuntimeError("MPS backend out of memory (MPS allocated: 9.06 GB)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError(),
]
OTHERS = [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("out of memory"), KeyError("x")]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> TinyHost:
    return TinyHost(tmp_path_factory.mktemp("model"))


@contextmanager
def failing_layer(tiny: TinyHost, nth: int, fail: Callable[[torch.Tensor], object]) -> Iterator[None]:
    """Run something at the nth time that a layer has run with gradients."""
    calls = []

    def hook(_: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        calls.append(torch.is_grad_enabled())
        if sum(calls) == nth and torch.is_grad_enabled():
            fail(output)

    handle = tiny.model.model.diffusion_model.joint_blocks[1].x_block.mlp.fc1.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def really_too_large(output: torch.Tensor) -> None:
    output.new_empty(1 << 50)


def message_of(
    tiny: TinyHost, nth: int, fail: Callable = really_too_large, method: str = "iLECO", **inputs: Any
) -> str:
    with failing_layer(tiny, nth, fail), pytest.raises(torch.OutOfMemoryError) as error:
        tiny.train(method, **inputs)
    assert comfy.model_management.is_oom(error.value)  # by which the host unloads its models
    return str(error.value)


@pytest.mark.parametrize("error", SHORT, ids=lambda error: str(error)[:40])
def test_every_allocators_error_is_known(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", OTHERS, ids=repr)
def test_other_errors_are_not_taken_for_out_of_memory(error):
    assert not is_out_of_memory(error)


def test_the_error_has_the_sizes_and_what_reduces_memory(tiny):
    message = message_of(tiny, 1, batch_size=3, width=96, height=80)
    figures = r"batch_size 3 and latents of 12x10, images of 96x80 .* \(\d+\.\d GB of \d+\.\d GB are free on cpu"
    assert re.search(figures, message)
    advice = "turn on gradient_checkpointing in Training Settings, set precision to bf16 there, lower batch_size or use"
    assert f": {advice} smaller images." in message
    assert "\n" not in message and message.count(". ") == 0 and "saved" not in message


@pytest.mark.parametrize(
    "inputs, advice",
    [
        (
            {"settings": TrainingConfig(gradient_checkpointing=True)},
            "set precision to bf16 in Training Settings or set offload to all there",
        ),
        (
            {"settings": TrainingConfig(gradient_checkpointing=True, precision="bf16")},
            "set offload to all in Training Settings",
        ),
        ({"settings": TrainingConfig(precision="bf16")}, "turn on gradient_checkpointing in Training Settings"),
        (
            {"settings": TrainingConfig(gradient_checkpointing=True, precision="bf16", offload="all"), "batch_size": 2},
            "lower batch_size",
        ),
        (
            {
                "settings": TrainingConfig(gradient_checkpointing=True, precision="fp16", offload="all"),
                "width": 128,
                "height": 128,
            },
            "use smaller images",
        ),
        (
            {"settings": TrainingConfig(gradient_checkpointing=True, precision="bf16", offload="all")},
            "use a smaller model, or the same model in 8 bits",
        ),
    ],
)
def test_what_cannot_be_reduced_is_not_advised(tiny, inputs, advice):
    assert message_of(tiny, 1, **inputs).endswith(f": {advice}.")


@pytest.mark.parametrize("method", ["LoRA", "iLECO", "slider", "copy machine", "difference", "ADDifT"])
def test_the_lora_is_saved_where_the_error_says(tiny, method):
    tiny.copied()
    message = message_of(tiny, 3, method=method)
    file, step = re.search(r"the LoRA up to step (\d+) is saved as (.*\.safetensors)", message).group(2, 1)
    assert load_lora(Path(file)).metadata["traintrain_step"] == step == "2"


def test_a_saved_lora_resumes_with_smaller_images(tiny):
    message = message_of(tiny, 3, width=96, height=96)
    lora = load_lora(Path(re.search(r"saved as (.*\.safetensors)", message).group(1)))
    *_, loss = tiny.train("iLECO", width=64, height=64, lora=lora, network=None)
    assert len(loss["loss"]) == 4 == int(lora.metadata["traintrain_step"]) + 2


def test_a_model_that_does_not_fit_has_its_own_error(tiny, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with (
        monkeypatch.context() as patch,
        pytest.raises(torch.OutOfMemoryError, match=r"Out of memory: the model \(0.0 GB\) .* set offload to all"),
    ):
        patch.setattr(comfy.model_management, "load_models_gpu", refuse)
        tiny.train("iLECO")
    assert len(tiny.train("iLECO")[2]["loss"]) == 4


def test_who_holds_the_error_does_not_hold_the_training(tiny):
    """The host has the error while it unloads its models, and so have log handlers that keep what they were given."""

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) and thing.requires_grad for thing in gc.get_objects())

    before = tensors()
    with failing_layer(tiny, 4, really_too_large), pytest.raises(torch.OutOfMemoryError) as held:
        tiny.train("iLECO")
    assert tensors() == before
    chain = [held.value, held.value.__cause__, held.value.__context__]
    assert any("DefaultCPUAllocator" in str(error) for error in chain)  # the log still has what went wrong where


def test_the_lora_is_kept_in_the_memory_that_the_step_had(tiny, monkeypatch):
    """On a full device not even a copy of the LoRA could be made while the step's activations are there."""
    alive = []

    def graph() -> set[int]:
        gc.collect()
        return {id(t) for t in gc.get_objects() if issubclass(type(t), torch.Tensor) and t.grad_fn is not None}

    before = graph()  # what other tests have left

    def look(*_: object) -> str:
        alive.append(len(graph() - before))
        return "there.safetensors"

    monkeypatch.setattr("pack.nodes.run_store.RunStore.save", look)
    assert "saved as there.safetensors" in message_of(tiny, 3)
    assert alive == [0]


@contextmanager
def little_memory(room: int) -> Iterator[None]:
    """Let the server's process take no more than some bytes beside what it has."""
    (process,) = (child for child in psutil.Process().children() if "launch.py" in " ".join(child.cmdline()))
    process.rlimit(psutil.RLIMIT_AS, (process.memory_info().vms + room, psutil.RLIM_INFINITY))
    try:
        yield
    finally:
        process.rlimit(psutil.RLIMIT_AS, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))


@pytest.mark.skipif(sys.platform != "linux", reason="Only Linux limits the memory of a program that runs.")
def test_on_a_server_the_page_has_the_sentence_and_the_next_prompt_runs(server):
    prompt = to_api(
        load_workflow(ROOT / "example_workflows" / "3_Replace_a_concept_iLECO.json"), server.get("/object_info")
    )
    (node,) = (node for node in prompt.values() if node["class_type"] == "TrainTrain_TrainILECO")
    prompt = {
        id: node
        for id, node in prompt.items()
        if node["class_type"] not in ("TrainTrain_CompareLoRAs", "TrainTrain_PlotLoss")
    }
    steps: list[str] = []

    def run(**inputs: int) -> None:
        node["inputs"].update(denoise_steps=0, batch_size=1, steps=2, **inputs)
        run_workflow(server, prompt, lambda event, *_: steps.append(event) if event == "traintrain.step" else None)

    run(width=64, height=64, seed=1)  # so that the model is loaded
    sentence = "latents of 160x160, images of 1280x1280 needs more memory than there is.*or use smaller images"
    with little_memory(500 * 2**20), pytest.raises(ToolError, match=sentence):
        run(width=1280, height=1280, seed=2)
    assert "Got an OOM, unloading all loaded models." in server.log.read_text(encoding="utf-8")
    steps.clear()
    run(width=64, height=64, seed=3)
    assert len(steps) == 2
