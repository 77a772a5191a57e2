"""How the host names the layers of a model, and how it puts a LoRA on them."""

from __future__ import annotations

from typing import Callable

import comfy.sd
import comfy.supported_models
import comfy.utils
import torch

from .denoiser import Patcher


def lora_key_of(patcher: Patcher) -> Callable[[str], str]:
    """Return the function that names a layer of the network as kohya's files do, which every program reads."""
    renamed = {}
    if isinstance(patcher.model.model_config, (comfy.supported_models.SD15, comfy.supported_models.SD20)):
        names = comfy.utils.unet_to_diffusers(patcher.model.model_config.unet_config)
        renamed = {ours: theirs for theirs, ours in names.items()}
    return lambda layer: (
        "lora_unet_" + renamed.get(f"{layer}.weight", f"{layer}.weight").removesuffix(".weight").replace(".", "_")
    )


def with_lora(patcher: Patcher, lora: dict[str, torch.Tensor]) -> Patcher:
    """Return the MODEL with the LoRA on it at strength 1, as the host's own loader does.

    Raises RuntimeError if a layer of the LoRA has no place on the model.
    """
    patched, _ = comfy.sd.load_lora_for_models(patcher, None, lora, 1.0, 0.0)
    layers = sum(key.endswith(".alpha") for key in lora)
    placed = sum(len(patches) - len(patcher.patches.get(key, ())) for key, patches in patched.patches.items())
    if placed != layers:
        raise RuntimeError(
            f"The host put {placed} of the LoRA's {layers} layers on the model: the LoRA is of another model, or "
            "this ComfyUI names the model's layers differently."
        )
    return patched


def model_family(patcher: Patcher) -> str:
    """Name the model's family as kohya's files do where they have a name, else as the host does."""
    family = type(patcher.model.model_config).__name__
    return {"SD15": "sd_v1", "SD20": "sd_v2", "SDXL": "sdxl_base_v1-0"}.get(family, family.lower())


def is_large(patcher: Patcher) -> bool:
    """Tell whether a MODEL is of SDXL's size or larger, for presets."""
    return not isinstance(patcher.model.model_config, (comfy.supported_models.SD15, comfy.supported_models.SD20))
