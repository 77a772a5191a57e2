"""What makes a step fast: how often the device is waited for, the model run, a prompt or picture encoded."""

from __future__ import annotations

import gc
import sys
from itertools import repeat

import pytest
import torch
from pack.nodes import host
from pack.nodes.progress import TrainingProgress
from pack.trainer.config import NetworkConfig, TrainingConfig
from pack.trainer.methods.addift import ADDifT, ExamplePair
from pack.trainer.methods.denoise import Denoise
from pack.trainer.methods.ileco import ILECO
from pack.trainer.methods.slider import Poles, Slider
from pack.trainer.run import Step
from pack.trainer.training_example import TrainingExample
from tiny_host import TinyHost
from tiny_training import make_training, train
from torch.utils._python_dispatch import TorchDispatchMode
from train_job import train_job

STEPS = 6
WAITS = ("_local_scalar_dense", "nonzero", "masked_select")  # operations whose result a GPU must hand over


class Waits(TorchDispatchMode):
    """Counts the operations that wait for the device; `tolist`, which reads the figures of a step, is none of PyTorch's."""

    def __init__(self, operations: tuple[str, ...] = WAITS) -> None:
        super().__init__()
        self.count, self._operations = 0, operations

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ in self._operations
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimizer", ["AdamW", "Adam", "SGDNesterov", "Lion"])
def test_a_step_waits_for_the_device_once_to_know_whether_it_is_finite(optimizer):
    """One copy of loss and gradient norm, with clipping and a weight for the noise level; the first step has its proof."""
    counts, copies = [], []
    for steps in (STEPS, 2 * STEPS):
        model, network, method, config = make_training(steps, optimizer=optimizer)
        method.batches = repeat([0, 1])  # drawn on the CPU, where nothing waits
        with Waits() as waits, pytest.MonkeyPatch.context() as patch:
            to_list = torch.Tensor.tolist
            patch.setattr(torch.Tensor, "tolist", lambda tensor: copies.append(tensor.shape) or to_list(tensor))
            train(model, network, method, config)
        counts.append((waits.count, len(copies)))
        copies.clear()
    assert [(second - first) / STEPS for first, second in zip(*counts)] == [0, 1]


def test_prompts_of_unequal_length_are_put_apart_without_waiting_for_the_device(shapes):
    """No numbers of Python's become a tensor: they would have to be copied to the device, as the index of a list is."""
    short, long = host.HostTextEncoder(shapes[1]).encode(["a red circle", "a red circle, " * 120])
    with host.open_model(shapes[0]) as (denoiser, _), torch.no_grad():
        x_t, sigma = torch.randn(3, 4, 8, 8), torch.ones(3)
        denoiser.predict(x_t, sigma, [short, long, short])  # the first one makes the network's inputs of the prompts
        with Waits((*WAITS, "index", "lift_fresh")) as waits:
            denoiser.predict(x_t, sigma, [short, long, short])
    assert waits.count == 0


def test_prompts_are_on_the_device_before_the_host_would_copy_them_there(shapes, monkeypatch):
    """The host keeps them in main memory. Its copy is of memory that is not pinned, and so waits for all queued work."""
    given = {}
    prompts = host.HostTextEncoder(shapes[1]).encode(["a red circle", "a blue square"])
    with host.open_model(shapes[0]) as (denoiser, _):
        denoiser.device = torch.device("meta")
        monkeypatch.setattr(shapes[0].model, "apply_model", lambda x, sigma, **inputs: given.update(inputs) or x)
        denoiser.predict(torch.zeros(2, 4, 8, 8, device="meta"), torch.ones(2, device="meta"), prompts)
    assert given["c_crossattn"].device.type == "meta" and given["c_crossattn"].shape[0] == 2


def test_a_step_is_reported_while_the_next_one_is_computed():
    model, network, method, config = make_training(STEPS)
    events = []
    predict, model.predict = model.predict, lambda *a: events.append("forward") or predict(*a)
    train(model, network, method, config, lambda step: events.append(step.number))
    assert events == ["forward", *[e for step in range(1, STEPS) for e in ("forward", step)], STEPS]


def calls_of_steps(monkeypatch, tiny: TinyHost, steps: int, starts: list[int], count: int) -> list[int]:
    """Return how many functions are called in `count` steps from each start on, in a training as in a graph."""
    calls, done, report = [0] * len(starts), [0], TrainingProgress.report

    def report_and_count(progress: TrainingProgress, step: Step) -> None:
        report(progress, step)
        done[0] += 1
        if done[0] in starts:
            number = starts.index(done[0])
            sys.setprofile(lambda _, event, __: calls.__setitem__(number, calls[number] + event.endswith("call")))
        if done[0] - count in starts:
            sys.setprofile(None)

    monkeypatch.setattr(TrainingProgress, "report", report_and_count)
    monkeypatch.setattr("pack.nodes.page_events.SECONDS_BETWEEN_EVENTS", float("inf"))  # whose time is the clock's
    tiny.train("LoRA", steps=steps, settings=TrainingConfig(snr_gamma=0))
    return calls


def test_a_late_step_has_no_more_to_do_than_an_early_one(monkeypatch, tmp_path, is_long):
    steps, late_step = (900, 850) if is_long else (500, 450)
    early, late = calls_of_steps(monkeypatch, TinyHost(tmp_path), steps, [250, late_step], 40)
    assert early > 40_000 and late == pytest.approx(early, rel=0.005)


def bytes_in_training(pictures: int) -> int:
    """Return the bytes of all tensors that there are in the middle of a training on so many pictures."""
    examples = [TrainingExample(torch.full((2, 64, 4), float(i)), 0.1 * i) for i in range(pictures)]
    model, network, method, config = make_training(STEPS, examples)
    seen = []

    def look(_: Step) -> None:
        gc.collect()
        storages = [t.untyped_storage() for t in gc.get_objects() if type(t) in (torch.Tensor, torch.nn.Parameter)]
        seen.append(sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values()))

    train(model, network, method, config, look)
    return seen[STEPS // 2]


def test_more_images_only_take_the_memory_of_their_latents():
    few, many = bytes_in_training(8), bytes_in_training(80)
    assert many - few == 72 * 2 * 64 * 4 * torch.float32.itemsize


def method_of(name: str, model, config: TrainingConfig, examples: list[TrainingExample]):
    first, second = (example.conditioning for example in examples[:2])
    if name == "ADDifT":
        return ADDifT([ExamplePair(*examples)], repeat([0]), 1, 1.0, config)
    if name == "LoRA":
        return Denoise(examples, repeat([0, 1]), config)
    if name == "slider":
        return Slider([Poles(first, second, first)], examples[0].latent.shape, 0, 2.0, config)
    return ILECO([(first, second)], [], examples[0].latent.shape, 0, 1.0 if "guidance" in name else 0.0, config)


@pytest.mark.parametrize(
    "name, passes", [("LoRA", 1), ("iLECO", 2), ("iLECO with guidance", 3), ("slider", 4), ("ADDifT", 2)]
)
def test_a_step_runs_the_model_no_more_than_its_method_needs(shapes, monkeypatch, name, passes):
    """A batch is one pass whatever its captions; what the model makes of them is kept; the model has no gradients."""
    model, clip, _ = shapes
    conditionings = host.HostTextEncoder(clip).encode(["a red circle", "a blue square"])
    examples = [TrainingExample(torch.randn(4, 8, 8), conditioning) for conditioning in conditionings]
    config = TrainingConfig(steps=3, batch_size=2, lr_scheduler="constant")
    forwards, encoded = [], []
    inner, extra_conds = model.model, model.model.extra_conds
    handle = inner.diffusion_model.register_forward_hook(lambda *_: forwards.append(1))
    monkeypatch.setattr(inner, "extra_conds", lambda **k: encoded.append(1) or extra_conds(**k))
    with_gradients = []

    def look(_: Step) -> None:
        with_gradients.extend(p for p in inner.parameters() if p.grad is not None or p.requires_grad)

    job = host.Job(model, NetworkConfig(rank=4), config, method_of(name, model, config, examples), {})
    try:
        lora, _ = train_job(job, look)
    finally:
        handle.remove()
    assert len(forwards) == 3 * passes and len(encoded) == 2 and not with_gradients and lora


def test_images_and_captions_are_encoded_once_for_all_trainings(shapes, monkeypatch):
    model, clip, vae = shapes
    calls = []
    encode, encode_text = vae.encode, clip.encode_from_tokens_scheduled
    monkeypatch.setattr(vae, "encode", lambda *a: calls.append("picture") or encode(*a))
    monkeypatch.setattr(clip, "encode_from_tokens_scheduled", lambda *a: calls.append("caption") or encode_text(*a))
    pictures, captions = [torch.rand(64, 64, 3) for _ in range(2)], ["one", "two", "one"]

    def prepare():
        return host.encode_images(vae, model, pictures), host.HostTextEncoder(clip).encode(captions)

    first, second = prepare(), prepare()
    assert sorted(calls) == ["caption"] * 2 + ["picture"] * 2
    assert all(torch.equal(a, b) for a, b in zip(first[0], second[0])) and first[1][0] is second[1][2]
    other = host.HostTextEncoder(clip.clone()).encode(["one"])  # such as one with a LoRA on it
    assert other[0] is not first[1][0] and torch.equal(other[0][0], first[1][0][0])


def test_latents_are_freed_with_the_images(shapes):
    model, _, vae = shapes
    host.encode_images(vae, model, [torch.rand(64, 64, 3)])
    gc.collect()
    kept = len(host.encoding._latents)
    picture = torch.rand(64, 64, 3)
    host.encode_images(vae, model, [picture])
    assert len(host.encoding._latents) == kept + 1
    del picture
    gc.collect()
    assert len(host.encoding._latents) == kept
