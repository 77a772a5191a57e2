"""Which families' LoRA files, as this pack names their layers, other programs read: docs/families.md says it."""

from __future__ import annotations

import comfy.lora
import comfy.ops
import comfy.utils
import diffusers.loaders
import folder_paths
import pytest
import torch
from lycoris.kohya import LycorisNetworkKohya, create_network_from_weights
from pack.nodes.host.lora_import import create_network
from pack.trainer.blocks import choose_layers
from pack.trainer.config import NetworkConfig
from pack.trainer.lora_file import save_lora
from tiny_families import FAMILIES
from tiny_models import load_family

import nodes as host_nodes

LOADERS = {"Flux": "Flux", "Flux2": "Flux2", "Z-Image": "ZImage", "Qwen-Image": "QwenImage", "Wan": "Wan"}
# Flux at its real size, as diffusers assumes it.
SIZES = {"Flux": {"depth": 19, "depth_single_blocks": 38, "hidden_size": 3072, "num_heads": 24}}
# Layers of diffusers for one of ours: q, k and v, and in Flux's single blocks the first layer of the MLP with them.
FUSED = {"img_attn.qkv": 3, "txt_attn.qkv": 3, "attention.qkv": 3}
FUSED_IN_FLUX = {**FUSED, "linear1": 4}


def random_lora(layers: dict[str, torch.nn.Module]) -> dict[str, torch.Tensor]:
    lora = {}
    for name, layer in layers.items():
        key = f"lora_unet_{name.replace('.', '_')}"
        lora[f"{key}.lora_down.weight"] = torch.randn(2, layer.in_features)
        lora[f"{key}.lora_up.weight"] = torch.randn(layer.out_features, 2)
        lora[f"{key}.alpha"] = torch.tensor(2.0)
    return lora


@pytest.mark.parametrize("name", LOADERS)
def test_diffusers_reads_the_key_of_every_layer(name):
    family = FAMILIES[name]
    sizes = {**family.sizes, **SIZES.get(name, {})}
    with torch.device("meta"):
        network = family.network(**sizes, dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    layers = choose_layers(network, NetworkConfig())
    loader = getattr(diffusers.loaders, f"{LOADERS[name]}LoraLoaderMixin")
    read = loader.lora_state_dict(random_lora(layers))
    fused = FUSED_IN_FLUX if name == "Flux" else FUSED
    expected = sum(next((n for part, n in fused.items() if layer.endswith(part)), 1) for layer in layers)
    for part in ("lora_A", "lora_B"):
        assert sum(key.startswith("transformer.") and f".{part}." in key for key in read) == expected


@pytest.fixture(params=["Flux", "Flux2", "Chroma", "Z-Image", "Lumina2", "SD3"])
def lokr_on_fused_layers(request, tmp_path, monkeypatch):
    """A MODEL that has q, k and v in one matrix, and a LoKr of this pack for it in ComfyUI's folder; one side of it has a rank."""
    model = load_family(request.param, tmp_path).model
    config = NetworkConfig(network_type="lokr", rank=2, alpha=4)
    network = create_network(config, None, 0, model, None, model.model.diffusion_model)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=rng))
    save_lora(tmp_path / "a.safetensors", network.weights(), "fp32", 1.0, {})
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    return model, network, tmp_path / "a.safetensors"


def delta(lora: dict[str, torch.Tensor], key: str) -> torch.Tensor:
    """What a LoKr adds to a weight, as its paper defines it."""
    second = lora.get(f"{key}.lokr_w2")
    if second is None:
        second = lora[f"{key}.lokr_w2_a"] @ lora[f"{key}.lokr_w2_b"] * (lora[f"{key}.alpha"] / 2)
    return torch.kron(lora[f"{key}.lokr_w1"], second)


def test_the_hosts_load_lora_adds_a_lokr_to_fused_layers(lokr_on_fused_layers):
    model, network, path = lokr_on_fused_layers
    with torch.inference_mode():
        patched, _ = host_nodes.LoraLoader().load_lora(model, None, path.name, 1.0, 0.0)
    lora, layers = network.weights(), network.layer_names()
    assert set(patched.patches) == {f"diffusion_model.{name}.weight" for name in layers}
    assert [name for name in layers if name.endswith(("qkv", "linear1"))]
    assert any(key.endswith("lokr_w2_a") for key in lora)
    for name in layers:
        key = f"diffusion_model.{name}.weight"
        nothing = torch.zeros(comfy.utils.get_attr(model.model, key).shape)
        expected = delta(lora, f"lora_unet_{name.replace('.', '_')}")
        added = comfy.lora.calculate_weight(patched.patches[key], nothing, key)
        torch.testing.assert_close(added, expected, rtol=1e-4, atol=1e-5)


def test_lycoris_adds_a_lokr_to_fused_layers(lokr_on_fused_layers, monkeypatch):
    monkeypatch.setattr(LycorisNetworkKohya, "UNET_TARGET_REPLACE_MODULE", [])  # the file says which layers
    model, network, path = lokr_on_fused_layers
    theirs, weights = create_network_from_weights(1.0, str(path), None, None, model.model.diffusion_model)
    theirs.apply_to(None, model.model.diffusion_model, apply_text_encoder=False, apply_unet=True)
    assert not theirs.load_state_dict(weights, strict=False).unexpected_keys
    assert len(theirs.unet_loras) == network.size()[0]
    for module in theirs.unet_loras:
        expected = delta(network.weights(), module.lora_name)
        torch.testing.assert_close(module.get_weight(expected.shape).detach(), expected, rtol=1e-4, atol=1e-5)
