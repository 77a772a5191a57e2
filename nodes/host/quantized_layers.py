"""Quantized layers, which need some care to train with and to hand back to ComfyUI's sampling."""

from __future__ import annotations

from typing import Any, Iterator

import torch
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

from .host_denoiser import Patcher

# Of the formats that quantize only weights, those whose kernels also compute the product of a backward pass.
_WITH_BACKWARD = {"int8_tensorwise"}
_FAST_FP8 = "fp8_ops.Linear"  # the host's layer where --fast multiplies in float8


def dequantize_in_forward(model: torch.nn.Module) -> None:
    """Make layers whose quantized format, or the host's fast product of it, has no backward pass compute with dequantized weights.

    The host dequantizes the weight of a layer that has a function to modify it; this one returns it unchanged. Loading
    the model removes such functions.
    """
    for layer in _without_backward(model):
        if _unchanged not in layer.weight_function:
            layer.weight_function = [*layer.weight_function, _unchanged]


@torch.inference_mode()
def restore_quantized(patcher: Patcher) -> None:
    """Undo `dequantize_in_forward`, and make quantized weights inference tensors again, one at a time.

    The host cannot move or exchange others in sampling. This includes the weights that it keeps of layers with a LoRA.
    """
    for layer in _without_backward(patcher.model):
        layer.weight_function = [function for function in layer.weight_function if function is not _unchanged]
    for module in patcher.model.modules():
        for name, tensor in module._parameters.items():
            if _is_for_autograd(tensor):
                module._parameters[name] = torch.nn.Parameter(tensor.clone(), False)
    for key, kept in patcher.backup.items():
        if _is_for_autograd(kept.weight):
            patcher.backup[key] = kept._replace(weight=kept.weight.clone())


def _without_backward(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    for layer in model.modules():
        name = getattr(layer, "quant_format", None)
        only_weights = not QUANT_ALGOS.get(name, {}).get("quantize_input", True)
        without = only_weights and name not in _WITH_BACKWARD or type(layer).__qualname__ == _FAST_FP8
        if without and hasattr(layer, "weight_function"):
            yield layer


def _is_for_autograd(tensor: Any) -> bool:
    """Return whether a tensor is a quantized one that was made outside of inference mode."""
    return isinstance(tensor, QuantizedTensor) and not tensor.is_inference()


def _unchanged(weight: torch.Tensor) -> torch.Tensor:
    return weight
