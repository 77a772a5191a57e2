"""Weights in the host's quantized formats, as its own quantizers and layers write them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from comfy.ops import mixed_precision_ops
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

GROUP = 64  # inputs that a format rotates together; the real files' 256 are more than a tiny layer has


@dataclass(frozen=True)
class Format:
    """How the host quantizes a weight.

    name: of the format in the file
    options: of the quantizer
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)


_ROTATED = {"per_channel": True, "convrot": True, "convrot_groupsize": GROUP}
FORMATS = {
    "float8_e4m3fn": Format("float8_e4m3fn", {"scale": "recalculate"}),
    "float8_e5m2": Format("float8_e5m2", {"scale": "recalculate"}),
    "int8_tensorwise": Format("int8_tensorwise"),
    "int8_rowwise": Format("int8_tensorwise", {"per_channel": True}),
    "int8_convrot": Format("int8_tensorwise", _ROTATED),
    "nvfp4": Format("nvfp4"),
    "mxfp8": Format("mxfp8"),
    "convrot_w4a4": Format("convrot_w4a4", {"convrot_groupsize": GROUP}),
    "convrot_w4a4_int8": Format("convrot_w4a4", {"convrot_groupsize": GROUP, "linear_dtype": "int8"}),
    "asym_w4a8_int8": Format("asym_w4a8_int8", {"convrot_groupsize": GROUP}),  # not in ComfyUI 0.30
}
FORMATS = {name: wanted for name, wanted in FORMATS.items() if wanted.name in QUANT_ALGOS}


def quantize(weights: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """Return a network's weights with those of its blocks' linear layers quantized, the others in half precision."""
    stored: dict[str, torch.Tensor] = {}
    for key, tensor in weights.items():
        if _is_quantized(key, tensor):
            stored |= _layer(tensor, FORMATS[name]).state_dict(prefix=key.removesuffix("weight"))
        else:
            stored[key] = tensor.half()
    return stored


def dequantized(weights: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """Return a network's weights with those that `quantize` quantizes as a format rounds them, float32."""
    return {
        key: _layer(tensor, FORMATS[name]).weight.dequantize() if _is_quantized(key, tensor) else tensor
        for key, tensor in weights.items()
    }


def _layer(weight: torch.Tensor, wanted: Format) -> torch.nn.Module:
    """Return a layer of the host with a quantized weight."""
    layer = mixed_precision_ops(compute_dtype=torch.float32).Linear(*weight.shape[::-1], bias=False)
    layout = QUANT_ALGOS[wanted.name]["comfy_tensor_layout"]
    layer.quant_format = wanted.name
    layer.weight = torch.nn.Parameter(QuantizedTensor.from_float(weight, layout, **wanted.options), False)
    return layer


def _is_quantized(key: str, weight: torch.Tensor) -> bool:
    in_block = any(part.isdigit() for part in key.split("."))
    return in_block and key.endswith(".weight") and weight.ndim == 2 and weight.shape[1] % GROUP == 0
