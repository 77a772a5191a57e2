"""Which of the host's models can be trained, by what they predict; and those that take more than noisy latents."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import comfy.model_base
import comfy.model_sampling
import pytest
import tiny_families
import torch
from comfy.model_base import ModelType
from comfy_extras.nodes_model_advanced import LCM, ModelSamplingDiscreteDistilled
from pack.nodes import host
from pack.nodes.host.host_denoiser import _parameterization
from pack.trainer.denoiser import FlowPrediction, NoisePrediction, VPrediction
from tiny_families import FAMILIES
from tiny_host import TinyHost

TRAINED = {
    ModelType.EPS: NoisePrediction,
    ModelType.V_PREDICTION: VPrediction,
    ModelType.FLOW: FlowPrediction,
    ModelType.FLUX: FlowPrediction,
    # Pictures are a flow as any other: only sound, which they have not, has a schedule of its own.
    **({ModelType.FLOW_AV: FlowPrediction} if hasattr(ModelType, "FLOW_AV") else {}),  # not in ComfyUI 0.30
}


class Config:
    """What the host makes a schedule of."""

    sampling_settings: dict = {}


@pytest.mark.parametrize("kind", ModelType, ids=lambda kind: kind.name)
def test_each_kind_that_the_host_knows_is_trained_as_what_it_is_or_refused(kind):
    sampling = comfy.model_base.model_sampling(Config(), kind)
    if kind in TRAINED:
        assert type(_parameterization(sampling, "SDXL")) is TRAINED[kind]
    else:
        with pytest.raises(ValueError, match=r"This model \(SDXL\) .* prediction type \(\w+ and \w+\) is unknown"):
            _parameterization(sampling, "SDXL")


class ImageToImageVelocity(comfy.model_sampling.CONST):
    """As a newer host has one: below the class of flows, and no flow."""

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        return latent_image


class OtherTimes(comfy.model_sampling.ModelSamplingDiscreteFlow):
    def sigma(self, timestep):
        return super().sigma(timestep) ** 2


@pytest.mark.parametrize(
    "schedule, prediction",
    [
        (comfy.model_sampling.ModelSamplingDiscreteFlow, ImageToImageVelocity),
        (OtherTimes, comfy.model_sampling.CONST),
        (comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.X0),
        (comfy.model_sampling.ModelSamplingDiscrete, LCM),
        (ModelSamplingDiscreteDistilled, comfy.model_sampling.EPS),
    ],
)
def test_what_is_derived_from_a_known_kind_and_is_another_is_refused(schedule, prediction):
    sampling = type("ModelSampling", (schedule, prediction), {})(Config())
    with pytest.raises(ValueError, match=f"{schedule.__name__} and {prediction.__name__}"):
        _parameterization(sampling, "SDXL")


def test_a_kind_that_only_adds_to_a_known_one_is_trained():
    """As the nodes that shift a schedule make them."""
    flow = type("Advanced", (comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST), {"extra": 1})
    assert type(_parameterization(flow(Config()), "SDXL")) is FlowPrediction


CONCATENATED = {"inpainting": 9, "instruct-pix2pix": 8}


@pytest.mark.parametrize("kind", CONCATENATED)
def test_a_checkpoint_with_more_input_channels_trains_as_where_nothing_is_given(kind, monkeypatch, tmp_path: Path):
    """An inpainting model's mask is full and its image empty; what its network sees is what the host samples with."""
    family = FAMILIES["SD1"]
    sizes = {**family.sizes, "in_channels": CONCATENATED[kind]}
    config = "SD15_instructpix2pix" if kind == "instruct-pix2pix" else "SD15"
    monkeypatch.setitem(tiny_families.FAMILIES, kind, replace(family, sizes=sizes, config=config))
    tiny = TinyHost(tmp_path, kind)
    seen: list[torch.Tensor] = []
    network = tiny.model.model.diffusion_model
    handle = network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    tiny.sample()
    sampled = seen.pop()[:1]
    seen.clear()
    for method in ("LoRA", "iLECO", "slider", "ADDifT"):
        *_, lora, loss = tiny.train(method)
        assert len(loss["loss"]) == 4 and all(tensor.isfinite().all() for tensor in lora.values())
    handle.remove()
    assert {inputs.shape[1] for inputs in seen} == {CONCATENATED[kind]}
    assert all(torch.equal(inputs[:1, 4:], sampled[:, 4:]) for inputs in seen)
    assert host.with_lora(tiny.model, lora).patches
