"""In every precision the gradient is that of fp32, whatever type the model is loaded in: as the host loads on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
import tiny_host
import torch
from pack.nodes import host
from pack.trainer import run
from pack.trainer.config import TrainingConfig
from pack.trainer.lora_file import LoRAWeights
from pack.trainer.run import TrainingRun
from tiny_host import TinyHost
from tiny_models import HEIGHT, WIDTH, load_family, make_prompt

FAMILIES = ["SD1", "SD2", "SDXL", "SD3", "Flux", "Z-Image"]
METHODS = ["LoRA", "iLECO", "ADDifT"]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
PRECISIONS = ["as loaded", *DTYPES]
# The short form, with the precisions of each: every family as NVIDIA cards load it, a U-Net and a DiT of these in every
# precision, and one family that is loaded in the other types.
SHORT = {(name, "fp16"): PRECISIONS if name in ("SD1", "Flux") else ["as loaded"] for name in FAMILIES}
SHORT |= {("SD1", "bf16"): ["as loaded"], ("SD1", "fp32"): ["fp16", "bf16"]}
MOST = 30  # steps
CLOSE = {"fp32": 0.999, "fp16": 0.99, "bf16": 0.99}  # cosine of a gradient to that of fp32
# The mean over a picture of 1024 pixels makes gradients this much smaller than the mean over ours.
REAL_SIZE = (WIDTH * HEIGHT) / 1024**2


class Family:
    """A tiny model of a family as a GPU has it: loaded in a type and computing in it, and the same weights in fp32."""

    def __init__(self, folder: Path, name: str, loaded: str) -> None:
        dtype = DTYPES[loaded]
        self.ours, self.true = (self._load(folder, name, dtype, kind) for kind in (dtype, torch.float32))
        if dtype != torch.float32:  # the CPU's default for what is loaded in half precision is to compute in fp32
            self.ours.model = self.ours.model.clone()
            self.ours.model.set_model_compute_dtype(dtype)
        self.loras = {
            method: without_state(self.true.train(method, steps=6, learning_rate=1e-3)[-2]) for method in METHODS
        }

    @staticmethod
    def _load(folder: Path, name: str, rounded: torch.dtype, dtype: torch.dtype) -> TinyHost:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                tiny_host, "load_family", lambda name, folder: load_family(name, folder, dtype=dtype, rounded=rounded)
            )
            patch.setattr(tiny_host, "make_prompt", prompt_of_exact_guidance)
            return TinyHost(folder, name)


def prompt_of_exact_guidance(name: str, text: str, tokens: int = 5) -> list:
    """Return a prompt whose guidance bf16 holds: the host multiplies Flux's by 1000 in bf16, which makes 3504 of 3500."""
    ((tensor, extra),) = make_prompt(name, text, tokens)
    return [[tensor, {**extra, "guidance": 4.0}]]


def without_state(lora: LoRAWeights) -> LoRAWeights:
    return LoRAWeights(dict(lora))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    rows = list(product(FAMILIES, DTYPES)) if metafunc.config.getoption("--long") else SHORT
    metafunc.parametrize("family", rows, indirect=True, ids="-".join, scope="module")


@pytest.fixture(scope="module")
def family(request, tmp_path_factory) -> Iterator[Family]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("folder_paths.output_directory", str(tmp_path_factory.mktemp("output")))
        patch.setattr("tiny_models.make_prompt", prompt_of_exact_guidance)  # of captions
        yield Family(tmp_path_factory.mktemp("model"), *request.param)
    torch.set_num_threads(before)


def gradient(job: host.Job, monkeypatch, at: int = 0) -> tuple[int, list[torch.Tensor]]:
    """Return a step and its gradients, of a training that hardly moves. at: which step; 0 is the first not skipped"""
    steps: dict[int, list[torch.Tensor]] = {}
    update = TrainingRun._step_optimizer

    def record(training: TrainingRun) -> None:
        steps[len(training.history) + 1] = [p.grad.double() for p in training._parameters]
        update(training)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "_step_optimizer", record)
        patch.setattr(run, "step_loss", lambda *a, loss=run.step_loss: loss(*a) * REAL_SIZE)
        with host.open_session(job, lambda session: None) as session:
            for step in session.steps():
                if step.number == at or (not at and not step.skipped):
                    return step.number, steps[step.number]
    raise AssertionError(f"All of {MOST} steps were skipped.")


def cosine(first: list[torch.Tensor], second: list[torch.Tensor]) -> float:
    a, b = (torch.cat([gradient.flatten() for gradient in each]) for each in (first, second))
    return (a @ b / (a.norm() * b.norm())).item()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("start", ["new", "learned"])
def test_gradients_are_those_of_fp32(family, method, start, is_long, request, monkeypatch):
    """Of `up` in a new LoRA; of `up` and `down` in one that has learned, with the model's checkpointing on and (long) off."""
    inputs = {} if start == "new" else {"lora": family.loras[method], "network": None}
    inputs |= {"learning_rate": 1e-12, "steps": MOST}
    true: dict[int, list[torch.Tensor]] = {}
    precisions = PRECISIONS if is_long else SHORT[request.node.callspec.params["family"]]
    for precision, checkpointing in product(
        precisions, sorted({False, start != "new"}) if is_long else [start != "new"]
    ):
        settings = TrainingConfig(precision=precision, gradient_checkpointing=checkpointing, max_grad_norm=0)
        step, ours = gradient(family.ours.job(method, settings=settings, **inputs), monkeypatch)
        if step not in true:  # in fp16 the first ones may overflow
            job = family.true.job(method, settings=TrainingConfig(max_grad_norm=0), **inputs)
            true[step] = gradient(job, monkeypatch, at=step)[1]
        case = f"precision {precision}, checkpointing {checkpointing}, step {step}"
        assert cosine(ours, true[step]) >= close_to(family, precision), case
        flushed = [a.any() and not b.any() for a, b in zip(true[step], ours, strict=True)]
        assert not any(flushed), f"{sum(flushed)} of {len(flushed)} gradients are all zeros: {case}"


def close_to(family: Family, precision: str) -> float:
    computed = family.ours.model.get_model_object("manual_cast_dtype") or family.ours.model.model.get_dtype()
    names = {dtype: name for name, dtype in DTYPES.items()}
    return CLOSE[names[computed] if precision == "as loaded" else precision]
