"""LoRA files of this pack in other programs: the host's own loader, diffusers with PEFT, LyCORIS."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import comfy.sd
import comfy.supported_models
import comfy.utils
import diffusers
import pytest
import torch
from comfy.model_base import ModelType
from lycoris.kohya import LycorisNetworkKohya, create_network_from_weights
from pack.nodes.host.lora_keys import lora_key_of, model_family, with_lora
from pack.nodes.host.text_keys import text_key_of
from pack.trainer.adapters import Adapter
from pack.trainer.blocks import choose_layers
from pack.trainer.config import NetworkConfig, TrainingConfig
from pack.trainer.lora_file import LoRAWeights, load_lora, save_lora
from pack.trainer.lora_metadata import file_metadata, training_metadata
from peft.tuners.lora import LoraLayer
from torch import nn
from unets import (
    FAMILIES,
    diffusers_pipeline,
    host_clip,
    host_flux,
    host_model,
    random_adapter,
    run_diffusers,
    run_host,
    small_pair,
)

# Attention layers of the U-Net as kohya's trainer counts them, and by hand the 3x3 convolutions of its blocks: two each
# of 22 (SDXL: 17) residual blocks, three (two) times down and up.
LAYERS = {("SD1", "lierla"): 192, ("SD1", "c3lier"): 192 + 50, ("SDXL", "lierla"): 722, ("SDXL", "c3lier"): 722 + 38}
TEXT_LAYERS = {"SD1": 72, "SDXL": 72 + 192}


def save_random_lora(path: Path, patcher, kind: str, clip=None, precision: str = "fp32") -> dict[str, Adapter]:
    """Write a LoRA as a training does; return its adapters by the layers' names."""
    config = NetworkConfig(network_type=kind, blocks="all" if clip is None else "all, BASE")
    layers = choose_layers(patcher.model.diffusion_model, config, clip and clip.cond_stage_model)
    adapters = {name: random_adapter(kind, layer) for name, layer in layers.items()}
    key_of, text_key = lora_key_of(patcher), clip and text_key_of(clip)
    lora = {
        f"{(text_key if name.startswith('BASE.') else key_of)(name)}.{part}": tensor
        for name, adapter in adapters.items()
        for part, tensor in adapter.tensors().items()
    }
    lora = LoRAWeights(lora, training_metadata(config, TrainingConfig(), "sd_v1", started=0.0))
    save_lora(path, lora, precision, 1.0, file_metadata(lora, path.stem, {"prompt": {"1": {}}}))
    return adapters


@pytest.mark.parametrize("kind", ["lierla", "c3lier"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_hosts_loader_places_every_tensor(tmp_path, caplog, family, kind):
    model, clip = host_model(family), host_clip(family)
    adapters = save_random_lora(tmp_path / "a.safetensors", model, kind, clip)
    lora = comfy.utils.load_torch_file(str(tmp_path / "a.safetensors"))
    model, clip = comfy.sd.load_lora_for_models(model, clip, lora, 1.0, 1.0)
    assert not [record.message for record in caplog.records if "loaded" in record.message.lower()]
    assert (len(model.patches), len(clip.patcher.patches)) == (LAYERS[family, kind], TEXT_LAYERS[family])
    assert len(adapters) == LAYERS[family, kind] + TEXT_LAYERS[family]
    for name, adapter in adapters.items():
        is_text, text_name = name.startswith("BASE."), f"{name.removeprefix('BASE.')}.weight"
        ((_, patch, *_),) = (
            clip.patcher.patches[text_name] if is_text else model.patches[f"diffusion_model.{name}.weight"]
        )
        assert torch.equal(patch.weights[0], adapter.up) and torch.equal(patch.weights[1], adapter.down)
        assert patch.weights[2] == adapter.alpha


@pytest.mark.parametrize("kind", ["lierla", "c3lier"])
@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_places_every_tensor(tmp_path, caplog, family, kind):
    model, clip, pipeline = host_model(family), host_clip(family), diffusers_pipeline(family)
    adapters = save_random_lora(tmp_path / "a.safetensors", model, kind, clip, "fp16")
    diffusers.utils.logging.enable_propagation()
    pipeline.load_lora_weights(tmp_path, weight_name="a.safetensors", adapter_name=kind)
    assert not [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    ours = {theirs.removesuffix(".weight"): layer.removesuffix(".weight") for theirs, layer in names.items()}
    placed = {ours[name]: layer for name, layer in peft_layers(pipeline.unet, kind).items()}
    placed |= {
        f"BASE.clip_l.transformer.{name}": layer for name, layer in text_layers(pipeline.text_encoder, kind).items()
    }
    if family == "SDXL":
        second = text_layers(pipeline.text_encoder_2, kind).items()
        placed |= {f"BASE.clip_g.transformer.{name}": layer for name, layer in second}
    assert placed.keys() == adapters.keys()
    for name, adapter in adapters.items():
        assert torch.equal(placed[name].lora_A[kind].weight.half(), adapter.down.half())
        assert torch.equal(placed[name].lora_B[kind].weight.half(), adapter.up.half())
        assert placed[name].scaling[kind] == adapter.scale


def peft_layers(model: nn.Module, adapter: str) -> dict[str, LoraLayer]:
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    return {name: layer for name, layer in layers.items() if adapter in layer.lora_A}


def text_layers(model: nn.Module, adapter: str) -> dict[str, LoraLayer]:
    """transformers calls the encoder `text_model` in one class and nothing in another."""
    layers = peft_layers(model, adapter)
    return {f"text_model.{name.removeprefix('text_model.')}": layer for name, layer in layers.items()}


@pytest.mark.parametrize("kind", ["lierla", "c3lier"])
@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_predicts_with_the_lora_what_the_host_predicts(tmp_path, family, kind):
    model, unet = small_pair(family)
    bare = run_host(model)
    torch.testing.assert_close(run_diffusers(unet), bare, rtol=0, atol=1e-4)
    save_random_lora(tmp_path / "a.safetensors", model, kind)
    with_it = run_host(with_lora(model, load_lora(tmp_path / "a.safetensors")))
    diffusers_pipeline(family, unet).load_lora_weights(tmp_path, weight_name="a.safetensors")
    assert (with_it - bare).abs().mean() > 0.1
    torch.testing.assert_close(run_diffusers(unet), with_it, rtol=0, atol=1e-3)
    assert torch.equal(run_host(model), bare)


@pytest.mark.parametrize("kind", ["lierla", "c3lier", "loha", "lokr"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_host_and_lycoris_predict_what_the_training_predicted(tmp_path, monkeypatch, family, kind):
    monkeypatch.setattr(LycorisNetworkKohya, "UNET_TARGET_REPLACE_NAME", [])  # its two lists would take a layer twice
    model, theirs = small_pair(family)
    path, ours = tmp_path / "a.safetensors", model.model.diffusion_model
    adapters = save_random_lora(path, model, kind)
    trained = run_with_hooks(model, adapters)
    bare, on_host = run_host(model), run_host(with_lora(model, load_lora(path)))
    unet = theirs if family == "SD1" else ours  # kohya's own U-Net for SDXL has the host's names
    network, weights = create_network_from_weights(1.0, str(path), None, None, unet)
    network.apply_to(None, unet, apply_text_encoder=False, apply_unet=True)
    missing, unexpected = network.load_state_dict(weights, strict=False)
    assert not unexpected and not [key for key in missing if not key.endswith(".scalar")]
    assert len(network.unet_loras) == len(adapters)
    assert (trained - bare).abs().mean() > 0.1
    torch.testing.assert_close(on_host, trained, rtol=0, atol=1e-3)
    torch.testing.assert_close(run_diffusers(unet) if family == "SD1" else run_host(model), trained, rtol=0, atol=1e-3)


def run_with_hooks(model, adapters: dict[str, Adapter]) -> torch.Tensor:
    """The host's output with the adapters at work as in training."""
    unet = model.model.diffusion_model
    hooks = [unet.get_submodule(name).register_forward_hook(adding(adapter)) for name, adapter in adapters.items()]
    predicted = run_host(model)
    for hook in hooks:
        hook.remove()
    return predicted


def adding(adapter: Adapter):
    return lambda layer, inputs, output: adapter(output, inputs[0], 1.0)


def test_flux_files_have_kohyas_names(tmp_path):
    """304 layers, as kohya's trainer counts them; diffusers parts those that hold several of its own."""
    model = host_flux()
    adapters = save_random_lora(tmp_path / "a.safetensors", model, "lierla", precision="fp16")
    assert len(with_lora(model, load_lora(tmp_path / "a.safetensors")).patches) == len(adapters) == 304
    with torch.device("meta"):
        transformer = diffusers.FluxTransformer2DModel(guidance_embeds=True)
    theirs = diffusers.FluxPipeline.lora_state_dict(tmp_path, weight_name="a.safetensors")
    transformer.load_lora_adapter(theirs, adapter_name="ours", low_cpu_mem_usage=True)
    assert len(peft_layers(transformer, "ours")) == 304 + 19 * 2 * (3 - 1) + 38 * (
        4 - 1
    )  # query, key, value; and the MLP


def test_the_families_have_the_names_that_other_programs_know():
    names = {family: model_family(host_model(family)) for family in ("SD1", "SD2", "SDXL")}
    assert names == {"SD1": "sd_v1", "SD2": "sd_v2", "SDXL": "sdxl_base_v1-0"}
    assert model_family(host_flux()) == "flux1"
    velocity = host_model("SD2")
    velocity.model.model_type = ModelType.V_PREDICTION
    assert model_family(velocity) == "sd_v2_v"


@pytest.mark.parametrize(
    "depth, self_attention, name", [(24, [], "sd3_m"), (24, [0], "sd3_5-medium"), (38, [], "sd3_5-large")]
)
def test_sd3_medium_and_large_have_different_architectures(depth, self_attention, name):
    config = comfy.supported_models.SD3({"depth": depth, "x_block_self_attn_layers": self_attention})
    assert model_family(SimpleNamespace(model=SimpleNamespace(model_config=config, model_type=ModelType.FLOW))) == name


def test_sd2_files_have_the_names_of_sd1(tmp_path):
    save_random_lora(tmp_path / "a.safetensors", host_model("SD2"), "c3lier")
    save_random_lora(tmp_path / "b.safetensors", host_model("SD1"), "c3lier")
    sd2, sd1 = load_lora(tmp_path / "a.safetensors"), load_lora(tmp_path / "b.safetensors")
    assert sd2.keys() == sd1.keys()
    assert len(with_lora(host_model("SD2"), sd2).patches) == LAYERS["SD1", "c3lier"]
    with pytest.raises(RuntimeError, match="32 of the LoRA's 242 layers .*attn2.to_k"):
        with_lora(host_model("SD1"), sd2)
