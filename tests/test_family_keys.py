"""Which families' LoRA files, as this pack names their layers, diffusers reads: the table in docs/families.md says it."""

from __future__ import annotations

import comfy.ops
import diffusers.loaders
import pytest
import torch
from pack.trainer.blocks import choose_layers
from pack.trainer.config import NetworkConfig
from tiny_families import FAMILIES

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
