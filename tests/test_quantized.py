"""Models in each of the host's quantized formats: every method trains on them, and leaves them as they were."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import comfy.model_management
import folder_paths
import pytest
import torch
from comfy.quant_ops import QuantizedTensor
from pack.nodes import host
from pack.trainer.config import TrainingConfig
from pack.trainer.run import TrainingRun
from tiny_host import TinyHost
from tiny_quantized import FORMATS

METHODS = ["LoRA", "iLECO", "copy machine", "difference", "ADDifT"]
MAIN_FORMATS = ["float8_e4m3fn", "int8_tensorwise", "int8_convrot", "nvfp4", "mxfp8", "convrot_w4a4"]
MODELS = [*product(["Flux"], FORMATS), *product(["Z-Image", "Qwen-Image"], MAIN_FORMATS)]
# Cosine of a gradient to that of the dequantized model. The host's int8 kernels also round what goes into a layer, as in
# sampling; a tiny Z-Image's prompts change its prediction by little more than that.
CLOSE = {"int8_tensorwise": 0.98}


class Quantized(NamedTuple):
    """A model in a format, and one with the same weights dequantized."""

    format: str
    host: TinyHost
    exact: TinyHost


@pytest.fixture(scope="module", params=MODELS, ids="-".join)
def quantized(request, tmp_path_factory) -> Iterator[Quantized]:
    family, name = request.param
    folder, before = tmp_path_factory.mktemp("model"), torch.get_num_threads()
    torch.set_num_threads(1)  # sharing work this small between threads takes longer than the work
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_paths, "output_directory", str(folder))
        yield Quantized(name, TinyHost(folder, family, quantized=name), TinyHost(folder, family, rounded=name))
    torch.set_num_threads(before)


def weights(tiny: TinyHost) -> dict[str, torch.Tensor]:
    """Return the model's weights as they are in a file."""
    return {key: tensor.clone() for key, tensor in tiny.model.model.diffusion_model.state_dict().items()}


def is_as_before(tiny: TinyHost, before: dict[str, torch.Tensor], sample: torch.Tensor) -> bool:
    """Return whether nothing of a training is left on the model, and it samples what it did."""
    functions = [layer.weight_function for layer in tiny.model.model.modules() if hasattr(layer, "weight_function")]
    same = torch.equal(tiny.sample(), sample)  # this also takes the copy machine off again
    after = weights(tiny)
    return same and not any(functions) and all(torch.equal(after[key], before[key]) for key in before | after)


def test_every_method_trains_and_leaves_the_model_as_it_was(quantized):
    tiny = quantized.host
    layers = [
        layer for layer in tiny.model.model.modules() if isinstance(getattr(layer, "weight", None), QuantizedTensor)
    ]
    assert len(layers) > 20
    before, sample = weights(tiny), tiny.sample()
    for method in METHODS:
        *_, lora, loss = tiny.train(method, steps=1)
        assert torch.tensor(loss["loss"]).isfinite().all()
        tiny.copy = lora if method == "copy machine" else tiny.copy  # of which Train Difference learns
        assert sum(tensor.any().item() for key, tensor in lora.items() if key.endswith("lora_up.weight")) > 10, method
        assert is_as_before(tiny, before, sample), method


def gradient(tiny: TinyHost, method: str, **settings: Any) -> torch.Tensor:
    """Return the gradient of the first step of a training."""
    gradients: list[torch.Tensor] = []

    def record(training: TrainingRun) -> None:
        gradients.extend(p.grad.flatten().double() for p in training._parameters if p.grad is not None)

    job = tiny.job(method, settings=TrainingConfig(max_grad_norm=0, **settings))
    with pytest.MonkeyPatch.context() as patch, host.open_session(job, lambda session: None) as session:
        patch.setattr(TrainingRun, "_step_optimizer", record)
        next(session.steps())
    return torch.cat(gradients)


@pytest.mark.parametrize("method", ["LoRA", "iLECO", "ADDifT"])
def test_gradients_are_those_of_the_dequantized_model(quantized, method):
    ours, exact = gradient(quantized.host, method), gradient(quantized.exact, method)
    assert torch.cosine_similarity(ours, exact, dim=0) >= CLOSE.get(quantized.format, 0.99)
    torch.testing.assert_close(ours.norm(), exact.norm(), rtol=0.05, atol=0)


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> TinyHost:
    """A Flux in a format whose kernel has no backward pass."""
    return TinyHost(tmp_path_factory.mktemp("model"), "Flux", quantized="convrot_w4a4")


def test_checkpointing_changes_no_gradient(packed):
    kept, recomputed = (gradient(packed, "LoRA", gradient_checkpointing=on) for on in (False, True))
    torch.testing.assert_close(recomputed, kept, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["copy machine", "difference"])
def test_a_training_goes_on_when_the_model_was_displaced_by_a_sample(packed, method, monkeypatch):
    decode, before, sample = type(packed.vae).decode, weights(packed), packed.sample()

    def decode_alone(vae: Any, latents: torch.Tensor) -> torch.Tensor:
        comfy.model_management.unload_all_models()
        return decode(vae, latents)

    monkeypatch.setattr(type(packed.vae), "decode", decode_alone)
    *_, loss = packed.train(method, steps=2, preview=packed.preview())
    assert len(loss["loss"]) == 2
    assert is_as_before(packed, before, sample)


def test_a_training_that_fails_leaves_the_model_as_it_was(packed, monkeypatch):
    before, sample = weights(packed), packed.sample()
    monkeypatch.setattr(TrainingRun, "_step_optimizer", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        packed.train("iLECO")
    assert is_as_before(packed, before, sample)
