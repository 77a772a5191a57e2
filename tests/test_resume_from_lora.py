"""Continuing a LoRA file of any program: its layers, types, ranks, alphas and weights are kept."""

from __future__ import annotations

import logging
from dataclasses import replace
from types import SimpleNamespace

import comfy.lora
import comfy.utils
import pytest
import torch
from pack.nodes import host
from pack.nodes.train_difference import TrainDifference
from pack.nodes.train_ileco import TrainILECO
from pack.nodes.train_lora import TrainLoRA
from pack.tools.shapes.scenes import Scene
from pack.tools.shapes.train_shapes import pixels
from pack.trainer.config import NETWORK_TYPES, NetworkConfig
from pack.trainer.dataset.training_image import TrainingImage
from pack.trainer.lora_file import LoRAWeights

NETWORK = NetworkConfig(rank=3, alpha=1.5)


@pytest.fixture
def train(shapes, monkeypatch):
    for node in (TrainLoRA, TrainILECO):
        monkeypatch.setattr(node, "hidden", SimpleNamespace(unique_id="1", prompt={}), raising=False)
    picture = pixels([Scene("red", "circle", "white").draw()]).movedim(1, -1)[0]

    def run(**inputs):
        model, clip, vae = shapes
        images = [TrainingImage(picture, "red circle", None, "", (64, 64))]
        values = {"steps": 2, "batch_size": 1, "learning_rate": 1e-2, "seed": 1, "training_images": images, **inputs}
        with torch.inference_mode():
            return TrainLoRA.execute(model=model, clip=clip, vae=vae, **values).args[2]

    return run


def loose(lora) -> LoRAWeights:
    return LoRAWeights(dict(lora))  # without a word about where it comes from


def as_peft(lora, model) -> LoRAWeights:
    """Name the tensors as diffusers does, which has no alpha: the scale goes into the weights."""
    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    dotted = {
        f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}": name.removesuffix(".weight") for name in names
    }
    renamed = {}
    for key in lora:
        layer = key.partition(".")[0]
        if key.endswith("lora_up.weight"):
            renamed[f"unet.{dotted[layer]}.lora_B.weight"] = lora[key] * lora[f"{layer}.alpha"] / lora[key].shape[1]
        elif key.endswith("lora_down.weight"):
            renamed[f"unet.{dotted[layer]}.lora_A.weight"] = lora[key]
    return LoRAWeights(renamed)


def effect(model, lora) -> dict[str, torch.Tensor]:
    """What a LoRA adds to each weight, as the host computes it."""
    patched = host.with_lora(model, lora)
    zero = {key: torch.zeros_like(model.model.get_parameter(key)) for key in patched.patches}
    return {
        key: comfy.lora.calculate_weight(patches, zero[key].float(), key) for key, patches in patched.patches.items()
    }


@pytest.mark.parametrize(
    "program, network_type",
    [
        *(("kohya", kind) for kind in NETWORK_TYPES),
        *(("native", kind) for kind in NETWORK_TYPES),
        *(("diffusers", kind) for kind in ("lierla", "c3lier")),  # it has no other
    ],
)
def test_training_continues_a_lora_of_another_program(shapes, train, program, network_type):
    model = shapes[0]
    first = train(
        network=NetworkConfig(
            network_type=network_type, rank=3, alpha=1.5, conv_rank=0 if network_type == "lierla" else 2
        )
    )
    if program == "diffusers":
        given = as_peft(first, model)
    elif program == "native":
        names = {key: f"diffusion_model.{name}" for key, name in layer_names(shapes, first).items()}
        given = LoRAWeights({names[key.partition(".")[0]] + "." + key.partition(".")[2]: t for key, t in first.items()})
    else:
        given = loose(first)
    still = train(lora=given, learning_rate=1e-12)
    assert still.keys() == first.keys()
    before, after = effect(model, first), effect(model, still)
    assert before.keys() == after.keys() and len(before) == sum(key.endswith(".alpha") for key in first)
    for key in before:
        torch.testing.assert_close(after[key], before[key], rtol=1e-3, atol=1e-7)
    assert still.metadata["ss_network_dim"] == "3"
    moved = effect(model, train(lora=given))
    assert all((moved[key] - before[key]).abs().max() > 1e-5 for key in before)


def layer_names(shapes, lora) -> dict[str, str]:
    """Which module of the network each key of a LoRA is for."""
    key_of = host.lora_key_of(shapes[0])
    modules = [name for name, _ in shapes[0].model.diffusion_model.named_modules() if name]
    return {key_of(name): name for name in modules}


def test_each_layer_keeps_its_own_rank_and_alpha(train):
    first = dict(train(network=NETWORK))
    layer = next(iter(first)).partition(".")[0]
    up, down = first[f"{layer}.lora_up.weight"], first[f"{layer}.lora_down.weight"]
    first[f"{layer}.lora_up.weight"], first[f"{layer}.lora_down.weight"] = (
        torch.cat([up, up], 1),
        torch.cat([down, down]),
    )
    first[f"{layer}.alpha"] = torch.tensor(7.0)
    second = train(lora=LoRAWeights(first))
    assert second[f"{layer}.lora_up.weight"].shape[1] == 6 and second[f"{layer}.alpha"] == 7
    assert second.metadata["ss_network_dim"] == "3" and second.metadata["ss_network_alpha"] == "1.5"


def test_a_lora_that_cannot_be_continued_is_refused_in_a_sentence(shapes, train):
    lora = dict(train(network=NETWORK))
    layer = next(iter(lora)).partition(".")[0]
    dora = {**lora, f"{layer}.dora_scale": torch.ones(320, 1)}
    with pytest.raises(
        ValueError, match=r"because it is a DoRA \(.*dora_scale\): put it on the model with Load LoRA and train"
    ):
        train(lora=LoRAWeights(dora))
    strange = {**lora, "lora_unet_nowhere.lora_up.weight": torch.ones(2, 2)}
    with pytest.raises(ValueError, match="lora_unet_nowhere.lora_up.weight does not match any layer of this model"):
        train(lora=LoRAWeights(strange))
    norm = {**lora, f"{layer}.diff": torch.zeros(320, 320, 1, 1)}
    with pytest.raises(ValueError, match="because it is a LoRA with whole weights or biases"):
        train(lora=LoRAWeights(norm))
    with pytest.raises(ValueError, match="up.weight 320x3x1x1.* instead of .*320x4x1x1"):
        train(lora=LoRAWeights(lora), network=NetworkConfig(rank=4))


@pytest.mark.parametrize("alpha", [0.5, 6.0])
@pytest.mark.parametrize("is_ours", [True, False])
def test_another_alpha_in_lora_network_leaves_the_effect(shapes, train, caplog, alpha, is_ours):
    """Of our own LoRA, too, whose state on disk has weights for its own alpha."""
    first = train(network=NETWORK)
    with caplog.at_level(logging.INFO):
        still = train(
            lora=first if is_ours else loose(first), network=replace(NETWORK, alpha=alpha), learning_rate=1e-12, steps=3
        )
    assert {still[key].item() for key in still if key.endswith(".alpha")} == {alpha}
    assert still.metadata["traintrain_step"] == "3"
    assert ("of other layers, ranks, alphas, learning rates or optimizer_settings" in caplog.text) == is_ours
    before, after = effect(shapes[0], first), effect(shapes[0], still)
    for key in before:
        torch.testing.assert_close(after[key], before[key], rtol=1e-3, atol=1e-7)


def test_a_loha_copy_machine_of_another_model_is_refused(shapes, train):
    """The host leaves out what does not fit, and training would learn the whole image."""
    lora = dict(train(network=NetworkConfig("loha", 3, 1.5)))
    for key in [key for key in lora if key.endswith(("attn2_to_k.hada_w1_b", "attn2_to_k.hada_w2_b"))]:
        lora[key] = torch.cat([lora[key], lora[key]], 1)
    inputs = {"image": torch.rand(1, 64, 64, 3), "conditioning": None, "copy_machine": lora}
    training = {"steps": 1, "batch_size": 1, "learning_rate": 1e-3, "seed": 0}
    refused = pytest.raises(RuntimeError, match=r"layers do not match this model.*attn2.to_k.*\(loha\)")
    with torch.inference_mode(), refused:
        TrainDifference.prepare(model=shapes[0], vae=shapes[2], **inputs, **training)


def test_only_train_lora_continues_a_text_encoder(shapes, train):
    first = loose(train(network=NetworkConfig(rank=2, blocks="M00, BASE")))
    second = train(lora=first)
    assert second.keys() == first.keys()
    changed = [key for key in first if key.startswith("lora_te") and not torch.equal(first[key], second[key])]
    assert changed
    with torch.inference_mode():
        prompt = shapes[1].encode_from_tokens_scheduled(shapes[1].tokenize("red"))
        values = {"width": 64, "height": 64, "denoise_steps": 0, "guidance": 0.0, "steps": 1, "batch_size": 1}
        with pytest.raises(ValueError, match="only Train LoRA trains the text encoder"):
            TrainILECO.execute(
                model=shapes[0], original=prompt, target=prompt, lora=first, learning_rate=1e-3, seed=0, **values
            )
