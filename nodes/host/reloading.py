"""Reloads a model from its file without ComfyUI's dynamic VRAM, which offloads weights right after each layer."""

from __future__ import annotations

import weakref
from typing import Any

import comfy.model_management
import torch

from .host_denoiser import Patcher

_reloaded: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()


def without_dynamic_memory(patcher: Patcher) -> Patcher:
    """Return the model without dynamic VRAM, which breaks autograd, and with the LoRAs that are on it.

    Raises ValueError if the node that has loaded it cannot load it again.
    """
    if not patcher.is_dynamic():
        return patcher
    if patcher.cached_patcher_init is None:
        raise ValueError(
            "Training must reload the model because ComfyUI's dynamic VRAM is on, but the node that loaded it does not "
            "support that: use ComfyUI's own loaders, or start ComfyUI with --disable-dynamic-vram."
        )
    comfy.model_management.unload_all_models()  # training does it anyway, and two models may be more than the main memory
    with torch.inference_mode(False):
        plain = patcher.clone(disable_dynamic=True)
        _use_model_dtypes(plain.model)
    plain.size = 0  # counted again when it is asked for
    _reloaded.add(plain.model)
    return plain


def is_reloaded(patcher: Patcher) -> bool:
    """Return whether a model was reloaded, so that nobody has it but us."""
    return patcher.model in _reloaded


def _use_model_dtypes(model: torch.nn.Module) -> None:
    """Convert weights to the types that the host has chosen for the model, one at a time.

    Where dynamic VRAM is on, the host leaves linear layers in the type of their file until it loads them onto the device by
    dynamic VRAM, which the reloaded model does not have.
    """
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            dtype = getattr(module, f"{name}_comfy_model_dtype", None)
            if dtype not in (None, weight.dtype) and is_plain(weight.data):
                weight.data = weight.data.to(dtype)


def is_plain(tensor: Any) -> bool:
    """Return whether a tensor holds floating point numbers as they are, and is no quantized one."""
    return type(tensor) is torch.Tensor and tensor.is_floating_point()
