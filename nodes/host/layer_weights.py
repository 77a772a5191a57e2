"""A LoRA of any program, sorted by the layers of a model, to be trained on."""

from __future__ import annotations

from typing import Any

import comfy.lora
import comfy.lora_convert
import torch
from comfy.weight_adapter import LoHaAdapter, LoKrAdapter, LoRAAdapter

from ...trainer.blocks import TEXT_ENCODER
from ...trainer.network import LayerWeights
from .denoiser import Patcher
from .lora import SHOWN, damage_told, lora_keys

# The host's adapters hold their parts in this order; ours have the names of the files.
_PARTS = {
    LoRAAdapter: ("lora_up.weight", "lora_down.weight", "alpha", "lora_mid.weight", "dora_scale", "reshape"),
    LoHaAdapter: ("hada_w1_a", "hada_w1_b", "alpha", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "dora_scale"),
    LoKrAdapter: (
        "lokr_w1", "lokr_w2", "alpha", "lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "dora_scale",
    ),
}  # fmt: skip


def sort_by_layer(patcher: Patcher, clip: Any, lora: dict[str, torch.Tensor]) -> LayerWeights:
    """Return the weights of a LoRA by the names of the layers that they belong to. clip: None where it is not trained.

    Raises ValueError for a LoRA that is damaged or of another model, or has parts that are no LoRA, LoHa or LoKr.
    """
    keys = lora_keys(patcher)
    if clip is not None:
        keys = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, keys)
    with damage_told():
        lora = comfy.lora_convert.convert_lora(dict(lora))
        patches = comfy.lora.load_lora(lora, keys, log_missing=False)
    if not patches:
        raise ValueError("The LoRA cannot be trained on: it has no layer of this model.")
    odd = sorted(str(key) for key, patch in patches.items() if type(patch) not in _PARTS or not isinstance(key, str))
    if odd:
        raise ValueError(
            f"The LoRA cannot be trained on: what it has for {odd[0]} is no LoRA, LoHa or LoKr of one layer."
        )
    taken = set().union(*(patch.loaded_keys for patch in patches.values()))
    left = [key for key in lora if key not in taken and not key.endswith(".alpha")]
    if left:
        raise ValueError(
            f"The LoRA cannot be trained on: {left[0][:SHOWN]}{f' and {len(left) - 1} more of its tensors have' if left[1:] else ' has'} "
            f"no place on this model{'' if clip else ', of which the text encoder is trained by Train LoRA alone'}."
        )
    return {_layer_name(key): _parts(patch) for key, patch in patches.items()}


def _layer_name(key: str) -> str:
    model = "diffusion_model."
    name = key.removesuffix(".weight")
    return name.removeprefix(model) if name.startswith(model) else f"{TEXT_ENCODER}.{name}"


def _parts(patch: Any) -> dict[str, torch.Tensor]:
    parts = zip(_PARTS[type(patch)], patch.weights)
    return {name: torch.as_tensor(part).float() for name, part in parts if part is not None}
