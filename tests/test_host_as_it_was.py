"""Wherever and however a training ends, the host is as it was before it."""

from __future__ import annotations

import gc
import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import comfy.sample
import numpy as np
import pytest
import torch
from comfy.model_management import InterruptProcessingException
from pack.nodes import stopping
from pack.nodes.progress import TrainingProgress
from pack.nodes.train_lora import TrainLoRA
from pack.trainer.config import NetworkConfig, TrainingConfig
from pack.trainer.dataset.training_image import TrainingImage
from pack.trainer.run import NonFiniteLoss, Step
from tiny_host import TinyHost

METHODS = ["LoRA", "iLECO", "slider", "copy machine", "difference", "ADDifT"]
HOOKS = [name for name in vars(torch.nn.Module()) if name.endswith("_hooks")]


Error = Callable[[], BaseException]


class Broken(Exception):
    """Something of the model, or of another pack on it, fails."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Iterator[TinyHost]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # sharing work this small between threads takes longer than the work
    host = TinyHost(tmp_path_factory.mktemp("model"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("folder_paths.output_directory", str(tmp_path_factory.mktemp("output")))
        host.copied()
        yield host
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def alive(tiny) -> Iterator[list[int]]:
    """How many tensors there are, before and after each test."""
    gc.collect()
    gc.freeze()  # from now on only what is new is looked through, which is a hundred times faster
    end(tiny, "difference", "done")  # the host has new tensors for the weights that a copy machine was on
    end(tiny, "LoRA", "done")  # its pictures and captions stay encoded as long as they live
    tiny.sample()
    yield [tensors()]
    gc.unfreeze()


# Where a training ends. Each of these makes it end there, for as long as its block runs, with what the block expects.


@contextmanager
def in_step(patch: pytest.MonkeyPatch, tiny: TinyHost, step: int, error: Error) -> Iterator[None]:
    """As the page's buttons end a training: from what is told of each step."""

    def report(_: TrainingProgress, reached: Step) -> None:
        if reached.number == step:
            raise error()

    patch.setattr(TrainingProgress, "report", report)
    yield


@contextmanager
def stopped_at(patch: pytest.MonkeyPatch, tiny: TinyHost, step: int) -> Iterator[None]:
    """As Stop and keep ends a training."""
    patch.setattr(
        TrainingProgress, "report", lambda _, reached: stopping._running.update({"2": reached.number == step})
    )
    yield


@contextmanager
def in_layer(
    patch: pytest.MonkeyPatch, tiny: TinyHost, effect: Callable, nth: int = 1, when: Callable[[], bool] = lambda: True
) -> Iterator[None]:
    """At the nth time that a layer in the middle of the network has run. effect: is given its output, to return another"""
    layer = tiny.model.model.diffusion_model.joint_blocks[1].x_block.mlp.fc1
    handle = layer.register_forward_hook(_on_nth(effect, nth, when))
    try:
        yield
    finally:
        handle.remove()


def _on_nth(effect: Callable, nth: int, when: Callable[[], bool]) -> Callable:
    calls = []

    def hook(_: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor | None:
        calls.extend([1] * when())
        return effect(output) if when() and len(calls) == nth else None

    return hook


@contextmanager
def in_every_layer(patch: pytest.MonkeyPatch, tiny: TinyHost, effect: Callable) -> Iterator[None]:
    """Each time that the layer has run."""
    layer = tiny.model.model.diffusion_model.joint_blocks[1].x_block.mlp.fc1
    handle = layer.register_forward_hook(lambda _, inputs, output: effect(output))
    try:
        yield
    finally:
        handle.remove()


def in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


def fail(error: Error) -> Callable:
    def effect(*_: Any, **__: Any) -> None:
        raise error()  # a new one: an error has the variables of all that it went through

    return effect


class FailingBackward(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, output: torch.Tensor, error: Error) -> torch.Tensor:
        context.error = error
        return output.clone()

    @staticmethod
    def backward(context: Any, *_: torch.Tensor) -> None:
        raise context.error()


def fail_in_backward(error: Error) -> Callable:
    return lambda output: FailingBackward.apply(output, error)


@contextmanager
def in_function(patch: pytest.MonkeyPatch, tiny: TinyHost, target: Any, name: str, error: Error) -> Iterator:
    patch.setattr(target, name, fail(error), raising=True)
    yield


CHECKPOINTED = {"settings": TrainingConfig(gradient_checkpointing=True)}
STATE_FREE = {"settings": TrainingConfig(optimizer="Lion", lr_scheduler="constant", save_every=1)}
INTERRUPT, OOM = InterruptProcessingException, torch.cuda.OutOfMemoryError

# Name: what ends it, what arrives at the host, and inputs of the node. None: it ends well.
ENDINGS: dict[str, tuple[Callable, type[BaseException] | None, dict[str, Any]]] = {
    "done": (lambda p, t: in_step(p, t, 0, Broken), None, {}),
    "done, checkpointed, kept at each step": (lambda p, t: in_step(p, t, 0, Broken), None, CHECKPOINTED | STATE_FREE),
    "done, with samples": (lambda p, t: in_step(p, t, 0, Broken), None, {"preview": {}}),
    "stopped": (lambda p, t: stopped_at(p, t, 2), None, {}),
    **{
        f"cancelled after step {step}": (lambda p, t, step=step: in_step(p, t, step, INTERRUPT), INTERRUPT, {})
        for step in (1, 2, 3)
    },
    "cancelled in the first forward": (lambda p, t: in_layer(p, t, fail(INTERRUPT)), INTERRUPT, {}),
    "cancelled in a later forward": (lambda p, t: in_layer(p, t, fail(INTERRUPT), 3), INTERRUPT, {}),
    "cancelled in backward": (
        lambda p, t: in_layer(p, t, fail_in_backward(INTERRUPT), when=torch.is_grad_enabled),
        INTERRUPT,
        {},
    ),
    "cancelled in a recomputation": (
        lambda p, t: in_layer(p, t, fail(INTERRUPT), 2, in_backward),
        INTERRUPT,
        CHECKPOINTED,
    ),
    "cancelled in a sample": (
        lambda p, t: in_function(p, t, comfy.sample, "sample", INTERRUPT),
        INTERRUPT,
        {"preview": {}},
    ),
    "cancelled in a sample's network": (
        lambda p, t: in_layer(p, t, fail(INTERRUPT), 2, lambda: not torch.is_grad_enabled()),
        INTERRUPT,
        {"preview": {}},
    ),
    "cancelled in a sample's VAE": (
        lambda p, t: in_function(p, t, t.vae, "decode", INTERRUPT),
        INTERRUPT,
        {"preview": {}},
    ),
    "cancelled while saving": (lambda p, t: in_function(p, t, os, "replace", INTERRUPT), INTERRUPT, STATE_FREE),
    "cannot be saved": (
        lambda p, t: in_function(p, t, os, "replace", lambda: OSError(28, "No space left")),
        None,
        STATE_FREE,
    ),
    "failed in a forward": (lambda p, t: in_layer(p, t, fail(Broken), 3), Broken, {}),
    "failed in a recomputation": (lambda p, t: in_layer(p, t, fail(Broken), 2, in_backward), Broken, CHECKPOINTED),
    "failed in a sample": (lambda p, t: in_function(p, t, t.vae, "decode", Broken), None, {"preview": {}}),
    "out of memory in a forward": (lambda p, t: in_layer(p, t, fail(OOM), 3), OOM, {}),
    "out of memory in backward": (
        lambda p, t: in_layer(p, t, fail_in_backward(MemoryError), 2, torch.is_grad_enabled),
        OOM,
        {},
    ),
    "out of memory in loading": (
        lambda p, t: in_function(p, t, comfy.model_management, "load_models_gpu", OOM),
        OOM,
        {},
    ),
    "one step of NaN": (lambda p, t: in_layer(p, t, lambda output: output * float("nan"), 3), None, {}),
    "NaN in all steps": (lambda p, t: in_every_layer(p, t, lambda output: output * float("nan")), NonFiniteLoss, {}),
}


def bits(*roots: torch.nn.Module) -> dict[str, str]:
    """A digest of the bytes of each parameter and buffer: those that are in no file may be NaN."""
    tensors = [pair for root in roots for pair in (*root.named_parameters(), *root.named_buffers())]
    return {key: hashlib.sha1(t.detach().flatten().view(torch.uint8).numpy()).hexdigest() for key, t in tensors}


def traces(*roots: torch.nn.Module) -> dict[str, Any]:
    """What a training could leave on modules, in the host, and in the libraries."""
    modules = [module for root in roots for module in root.modules()]
    return {
        "hooks": [sum(len(vars(module)[kind]) for module in modules) for kind in HOOKS],
        "methods": [
            [name for name in vars(module) if callable(getattr(type(module), name, None))] for module in modules
        ],
        "training": [module.training for module in modules],
        "needs grad": [p.requires_grad or p.grad is not None for module in modules for p in module.parameters(False)],
        "switches": (comfy.model_management.in_training, comfy.model_management.NUM_STREAMS),
        "modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")),
        "types": (torch.get_default_dtype(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()),
        "torch's random numbers": torch.get_rng_state().tolist(),
        "Python's random numbers": random.getstate(),
        "numpy's random numbers": repr(np.random.get_state()),
    }


def everywhere(tiny: TinyHost) -> dict[str, Any]:
    options = {name: repr(value) for name, value in tiny.model.model_options.items()}
    patches = len(tiny.model.patches), len(tiny.model.object_patches), tiny.model.model.current_patcher
    return {**traces(tiny.model.model, tiny.vae.first_stage_model), "options": options, "patches": patches}


def tensors() -> int:
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def end(tiny: TinyHost, method: str, ending: str) -> tuple[str, bool]:
    """Let a training end somewhere; return what arrived at the host, and whether it is what was expected."""
    arm, _, inputs = ENDINGS[ending]
    inputs = {**inputs, **({"preview": tiny.preview()} if "preview" in inputs else {})}
    with pytest.MonkeyPatch.context() as patch, arm(patch, tiny), torch.inference_mode():
        try:
            tiny.train(method, steps=3, **inputs)
        except BaseException as error:
            return error.__class__.__mro__[0].__name__, isinstance(error, ENDINGS[ending][1] or ())
        finally:
            assert torch.is_inference_mode_enabled()
    return "", ENDINGS[ending][1] is None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ending", ENDINGS)
def test_the_host_is_as_it_was(tiny, alive, ending, method):
    modules = tiny.model.model, tiny.vae.first_stage_model
    sample, before, values = tiny.sample(), everywhere(tiny), bits(*modules)
    assert not before["switches"][0] and not any(before["hooks"])  # an earlier training would have left it, too
    arrived, as_expected = end(tiny, method, ending)
    assert as_expected, arrived
    now = everywhere(tiny)
    assert {name for name in before if now[name] != before[name]} == set()
    assert torch.equal(tiny.sample(), sample)  # without a copy machine, that a training may have been on
    assert bits(*modules) == values
    del sample
    alive.append(tensors())
    assert alive[-1] == alive[-2]


def test_weights_that_a_loader_left_trainable_are_not_trained_and_left_so(tiny):
    weights = list(tiny.model.model.parameters())
    learning = [weight for weight in weights if weight.is_floating_point() and not weight.is_inference()]
    for weight in learning:
        weight.requires_grad_(True)
    seen = []
    with in_layer(None, tiny, lambda _: seen.append(any(weight.requires_grad for weight in learning))):
        tiny.train("iLECO", steps=2)
    assert learning and seen == [False]
    assert all(weight.requires_grad and weight.grad is None for weight in learning)
    for weight in learning:
        weight.requires_grad_(False)


SEVERAL = """
import gc, sys
from pathlib import Path
import conftest, folder_paths, torch
from pack.tools.endurance import memory
from test_host_as_it_was import METHODS, tensors
from tiny_host import TinyHost

torch.set_num_threads(1)
folder_paths.output_directory = sys.argv[1]
tiny = TinyHost(Path(sys.argv[1]))
for training in range(10 + int(sys.argv[2])):
    if training == 10:
        before = memory(), tensors()
    tiny.train(METHODS[training % 5], seed=training, preview=tiny.preview())
after = memory(), tensors()
print(*before, *after)
"""


def test_trainings_in_a_row_leave_no_more_memory_than_none(tmp_path, is_long):
    """After ten others, in which the host and torch build up what they keep for good."""
    code = [sys.executable, "-c", SEVERAL, str(tmp_path), str(20 if is_long else 10)]
    done = subprocess.run(code, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    memory, tensors, memory_after, tensors_after = map(int, done.stdout.split()[-4:])
    assert tensors_after == tensors
    assert memory_after <= 1.01 * memory, f"{memory / 1e6:.1f} MB, and {memory_after / 1e6:.1f} MB after"


# The text encoder, which is trained too, is large: these are on the demonstration model.


@contextmanager
def in_text_encoder(shapes: tuple, hook: Callable) -> Iterator[None]:
    layer = shapes[1].cond_stage_model.clip_l.transformer.text_model.encoder.layers[6].mlp.fc1
    handle = layer.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize(
    "ending",
    [
        lambda: _on_nth(fail(INTERRUPT), 1, lambda: True),
        lambda: _on_nth(fail(INTERRUPT), 3, lambda: True),
        lambda: lambda _, inputs, output: fail_in_backward(INTERRUPT)(output),
    ],
    ids=["the first forward", "a later forward", "backward"],
)
def test_a_text_encoder_in_training_is_as_it_was(shapes, monkeypatch, ending):
    model, clip, vae = shapes
    roots = model.model, clip.cond_stage_model, vae.first_stage_model
    picture = TrainingImage(torch.rand(64, 64, 3), "a red circle", None, "a", (64, 64))
    network = NetworkConfig(rank=2, blocks="M00, BASE")
    values = {"steps": 3, "batch_size": 1, "learning_rate": 1e-2, "seed": 1, "training_images": [picture]}
    monkeypatch.setattr(TrainLoRA, "hidden", SimpleNamespace(unique_id="1", prompt={}), raising=False)
    comfy.model_management.load_models_gpu([model, clip.patcher, vae.patcher])
    prompt = encode(clip)
    before, values_before = traces(*roots), bits(*roots)
    with in_text_encoder(shapes, ending()), pytest.raises(InterruptProcessingException), torch.inference_mode():
        TrainLoRA.execute(model=model, clip=clip, vae=vae, network=network, **values)
    now = traces(*roots)
    assert {name for name in before if now[name] != before[name]} == set()
    assert bits(*roots) == values_before and torch.equal(encode(clip), prompt)


def encode(clip: Any) -> torch.Tensor:
    with torch.inference_mode():
        return clip.encode_from_tokens_scheduled(clip.tokenize("a red circle"))[0][0].clone()
