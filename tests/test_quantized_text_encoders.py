"""Text encoders in 8 and 4 bits: they train with the gradients of their dequantized weights, and stay as they were."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from comfy.quant_ops import QuantizedTensor
from text_encoder_runs import encode, run
from tiny_models import load_model
from tiny_quantized import dequantized, quantize
from tiny_text_encoders import Weights, load_clip

pytestmark = pytest.mark.usefixtures("one_thread")

FP8 = torch.float8_e4m3fn
# Cosine of the gradient to that of the dequantized weights. The host's int8 kernels also round what goes into a layer.
CLOSE = {"int8_tensorwise": 0.98}


def cast(weights: Weights) -> Weights:
    """As in t5xxl_fp8_e4m3fn: all in 8 bits, without scales."""
    return {key: tensor.to(FP8) for key, tensor in weights.items()}


def scaled(weights: Weights) -> Weights:
    """As in t5xxl_fp8_e4m3fn_scaled and qwen_2.5_vl_7b_fp8_scaled: the layers in 8 bits with a scale each."""
    stored: Weights = {"scaled_fp8": torch.zeros(1, dtype=FP8)}
    for key, tensor in weights.items():
        if tensor.ndim == 2 and any(part.isdigit() for part in key.split(".")):
            scale = tensor.abs().max() / torch.finfo(FP8).max
            stored |= {key: (tensor / scale).to(FP8), f"{key.removesuffix('.weight')}.scale_weight": scale}
        else:
            stored[key] = tensor.half()
    return stored


def rounded(weights: Weights) -> Weights:
    """Return what `scaled` stores, dequantized."""
    stored = scaled(weights)
    scales = {key: stored.get(f"{key.removesuffix('.weight')}.scale_weight", 1.0) for key in weights}
    return {key: stored[key].float() * scales[key] for key in weights}


FORMS = {
    "cast": (cast, lambda weights: {key: tensor.to(FP8).float() for key, tensor in weights.items()}),
    "scaled": (scaled, rounded),
    **{
        name: (partial(quantize, name=name), partial(dequantized, name=name))
        for name in ("float8_e4m3fn", "nvfp4", "int8_tensorwise")
    },
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Any:
    return load_model("SD3", tmp_path_factory.mktemp("model"), False, {})


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["Qwen-Image", "Chroma"])
def test_it_trains_with_the_gradients_of_its_dequantized_weights_and_stays_as_it_was(name, form, model, tmp_path):
    stored, exact = FORMS[form]
    clip = load_clip(name, tmp_path, 64, stored)
    layers = [each for each in clip.cond_stage_model.modules() if hasattr(each, "weight_function")]
    if form != "cast":
        assert sum(isinstance(each.weight, QuantizedTensor) for each in layers) >= 15
    before = {key: tensor.clone() for key, tensor in clip.cond_stage_model.state_dict().items()}
    prompt = encode(clip)[0]
    ours, theirs = (
        torch.cat(
            [
                parameter.grad.flatten()
                for each in trained.adapters.values()
                for parameter in each.parameters()
                if parameter.grad is not None
            ]
        )
        for trained in (run(model, clip), run(model, load_clip(name, tmp_path, 64, exact)))
    )
    assert torch.cosine_similarity(ours, theirs, dim=0) > CLOSE.get(form, 0.99)
    torch.testing.assert_close(ours.norm(), theirs.norm(), rtol=0.05, atol=0)
    assert torch.equal(encode(clip)[0], prompt)
    after = clip.cond_stage_model.state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    assert not any(each.weight_function for each in layers)
