"""How the host names the layers of a model, and how it puts a LoRA on them."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import Any, Callable, Iterator

import comfy.lora
import comfy.lora_convert
import comfy.model_base
import comfy.supported_models
import comfy.utils
import torch
from comfy.weight_adapter import LoRAAdapter

from .denoiser import Patcher

_OF_TEXT_ENCODER = re.compile(r"lora_(prior_)?te\d?_|text_encoders?(_\d)?\.|bundle_emb\.")
SHOWN = 200  # letters of what a file says, in a message
# What follows a layer's name in a key.
_PART = re.compile(
    r"[._](lora[._]|hada_|lokr_|(alpha|diff|diff_b|dora_scale|w_norm|b_norm|set_weight|weight|on_input)$).*"
)


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

    What it has for text encoders is left out. Raises RuntimeError if a part of the LoRA has no place on the model,
    ValueError if it is damaged.
    """
    of_model = {key: tensor for key, tensor in lora.items() if not _OF_TEXT_ENCODER.match(key)}
    patched = patcher.clone()
    with damage_told():
        tensors = _WithReads(comfy.lora_convert.convert_lora(of_model))
        patches = comfy.lora.load_lora(tensors, lora_keys(patcher), log_missing=False)
        placed = set(patched.add_patches(patches))
        unplaced = [str(key) for key in patches if key not in placed or not _fits(patches[key], key, patcher.model)]
    unread = dict.fromkeys(_PART.sub("", key) for key in tensors if key not in tensors.read)
    if lost := [*unread, *unplaced]:
        layers = {_PART.sub("", key) for key in tensors}
        raise RuntimeError(
            f"{len(lost)} of the LoRA's {len(layers)} layers have no place on this model, as "
            f"{', '.join(key[:SHOWN] for key in lost[:3])}: take a LoRA that was trained for this kind of model."
        )
    return patched


@contextmanager
def damage_told() -> Iterator[None]:
    """Say of a LoRA that the host stumbles over that it is damaged."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"The LoRA is damaged, for its tensors do not go together ({str(error)[:SHOWN]}): download or save it again."
        ) from error


def lora_keys(patcher: Patcher) -> dict[str, Any]:
    """Return what the model's layers are called in LoRA files, with where each stands in the model."""
    keys = comfy.lora.model_lora_keys_unet(patcher.model, {})
    # What diffusers and PEFT write for a U-Net today; the host knows an older form of it.
    for theirs, ours in comfy.utils.unet_to_diffusers(patcher.model.model_config.unet_config).items():
        for prefix in ("", "unet.", "base_model.model.", "unet.base_model.model."):
            if theirs.endswith(".weight"):
                keys.setdefault(f"{prefix}{theirs.removesuffix('.weight')}", f"diffusion_model.{ours}")
    return keys


class _WithReads(dict):
    """The tensors of a LoRA; remembers which were read: the host's loader passes over what it does not know."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__(tensors)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> torch.Tensor:
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self else default


def _fits(patch: Any, key: Any, model: torch.nn.Module) -> bool:
    """Tell whether a LoRA's matrices make a weight of the layer's size: the host says nothing until it samples."""
    if not isinstance(patch, LoRAAdapter) or not isinstance(key, str):  # else a part of the weight, or another type
        return True
    up, down, _, middle, _, new_shape = patch.weights
    weight = comfy.utils.get_attr(model, key)
    if middle is not None or new_shape is not None or not weight.is_floating_point():  # quantized: may be packed
        return True
    return len(up) * down[0].numel() == weight.numel()


def model_family(patcher: Patcher) -> str:
    """Name the model's family as kohya's files do where they have a name, else as the host does."""
    config, kind = patcher.model.model_config, patcher.model.model_type
    family = type(config).__name__
    if family == "SD20" and kind == comfy.model_base.ModelType.V_PREDICTION:
        return "sd_v2_v"
    if family == "SD3":
        medium = "sd3_5-medium" if config.unet_config.get("x_block_self_attn_layers") else "sd3_m"
        return "sd3_5-large" if config.unet_config.get("depth") == 38 else medium
    known = {"SD15": "sd_v1", "SD20": "sd_v2", "SDXL": "sdxl_base_v1-0", "Flux": "flux1"}
    return known.get(family, family.lower())


def is_large(patcher: Patcher) -> bool:
    """Tell whether a MODEL is of SDXL's size or larger, for presets."""
    return not isinstance(patcher.model.model_config, (comfy.supported_models.SD15, comfy.supported_models.SD20))
