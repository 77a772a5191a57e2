"""The patches that ComfyUI's loader makes of a LoRA file: their weights, and whether ComfyUI can apply them."""

from __future__ import annotations

import re
from typing import Any

import comfy.lora
import comfy.utils
import torch
from comfy.weight_adapter import BOFTAdapter, LoHaAdapter, LoKrAdapter, LoRAAdapter, OFTAdapter

from ...trainer.lora_forms import Part, rows_of, without_tucker

# The host's adapters hold their weights in this order; ours use the names in LoRA files. None is what is not trained.
_WEIGHT_NAMES = {
    LoRAAdapter: ("lora_up.weight", "lora_down.weight", "alpha", "lora_mid.weight", "dora_scale", None),
    LoHaAdapter: ("hada_w1_a", "hada_w1_b", "alpha", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", None),
    LoKrAdapter: (
        "lokr_w1", "lokr_w2", "alpha", "lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b", "lokr_t2", None,
    ),
}  # fmt: skip
# What follows the layer's name in a key of a LoRA file.
_WEIGHT = re.compile(
    r"[._](lora[._]|hada_|lokr_|(alpha|diff|diff_b|dora_scale|w_norm|b_norm|set_weight|weight|on_input)$).*"
)
# A patch's key: the name of a weight, or that with the part of the weight, and maybe a function that reorders its rows.
Key = str | tuple


def is_product(patch: Any) -> bool:
    """Return whether a patch is a LoRA, LoHa or LoKr."""
    return type(patch) in _WEIGHT_NAMES


def part_of(layer: str, key: Key, patch: Any, key_in_file: str) -> Part:
    """Return the plain float32 weights of a LoRA, LoHa or LoKr for a layer, and where in its weight they belong."""
    named = zip(_WEIGHT_NAMES[type(patch)], patch.weights)
    weights = {name: torch.as_tensor(value).float() for name, value in named if name and value is not None}
    _, offset, function = _split(key)
    return Part(without_tucker(weights), *(offset or (0, 0, None)), function, layer, key_in_file)


def layer_key(key: str) -> str:
    """Return the key of a layer in a LoRA file, given that of one of its tensors."""
    return _WEIGHT.sub("", key)


def name_of(key: Key) -> str:
    """Return the name of the weight that a patch is for."""
    return _split(key)[0]


def fits(key: Key, patch: Any, model: torch.nn.Module) -> bool:
    """Return whether the host can apply a patch. While it samples, it only logs what it cannot apply, and leaves it out.

    The host's own code computes the patch, where it can on tensors without memory. Raises many errors if the tensors do not go together.
    """
    name, offset, _ = _split(key)
    weight = comfy.utils.get_attr(model, name)
    if not weight.is_floating_point():  # quantized weights may be packed
        return True
    has_values = isinstance(patch, (OFTAdapter, BOFTAdapter))  # which the host looks at
    return _changes(patch, name, offset, torch.zeros(weight.shape, device="cpu" if has_values else "meta"))


def _changes(patch: Any, name: str, offset: tuple | None, weight: torch.Tensor) -> bool:
    """Return whether a patch changes a weight when the host computes it."""
    if isinstance(patch, tuple) and patch[0] == "set":
        return patch[1][0].shape == weight.shape
    if is_product(patch) and patch.calculate_shape(name) is None:
        rows = weight.narrow(*offset).shape[0] if offset else weight.shape[0]
        if _rows(patch) != rows:  # the host would reshape it
            return False
    changes: list[torch.Tensor] = []
    comfy.lora.calculate_weight([(1.0, patch, 1.0, offset, lambda it: changes.append(it) or it)], weight, name)
    return bool(changes)


def _rows(patch: Any) -> int:
    named = zip(_WEIGHT_NAMES[type(patch)], patch.weights)
    return rows_of(without_tucker({name: value.to("meta") for name, value in named if torch.is_tensor(value)}))


def _split(key: Key) -> tuple:
    """Return the name of the weight, the part as (dimension, start, length) or None, and the function or None."""
    return (key, None, None) if isinstance(key, str) else (*key, None, None)[:3]
