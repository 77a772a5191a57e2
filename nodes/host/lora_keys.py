"""The names of a model's layers in LoRA files, and how a LoRA is applied to a MODEL."""

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

from .host_denoiser import Patcher
from .lora_kinds import SHOWN, describe_failing, describe_unapplied
from .lora_parts import fits, layer_key, name_of

_OF_TEXT_ENCODER = re.compile(r"lora_(prior_)?te\d?_|text_encoders?(_\d)?\.|bundle_emb\.")


def lora_key_of(patcher: Patcher) -> Callable[[str], str]:
    """Return a function that maps a layer's name to its key in kohya's files, which every program reads."""
    renamed = {}
    if isinstance(patcher.model.model_config, (comfy.supported_models.SD15, comfy.supported_models.SD20)):
        names = comfy.utils.unet_to_diffusers(patcher.model.model_config.unet_config)
        renamed = {ours: theirs for theirs, ours in names.items()}
    return lambda layer: (
        "lora_unet_" + renamed.get(f"{layer}.weight", f"{layer}.weight").removesuffix(".weight").replace(".", "_")
    )


def with_lora(patcher: Patcher, lora: dict[str, torch.Tensor], strength: float = 1.0) -> Patcher:
    """Return the MODEL with the LoRA at a strength, as ComfyUI's own loader applies it.

    Weights for text encoders are ignored. Raises RuntimeError if other weights do not match the model or are of a kind that
    ComfyUI cannot apply, ValueError if the LoRA is damaged.
    """
    of_model = {key: tensor for key, tensor in lora.items() if not _OF_TEXT_ENCODER.match(key)}
    patched = patcher.clone()
    with report_damage():
        tensors = _ReadTracker(comfy.lora_convert.convert_lora(of_model))
        patches = comfy.lora.load_lora(tensors, lora_keys(patcher), log_missing=False)
        placed = set(patched.add_patches(patches, strength))
        unplaced = [
            f"{name_of(key)} ({getattr(patch, 'name', 'weights')})"
            for key, patch in patches.items()
            if key not in placed or not fits(key, patch, patcher.model)
        ]
    unread = [key for key in tensors if key not in tensors.read]
    if reason := describe_unapplied(unread) or (unplaced and describe_failing(tensors)):
        raise RuntimeError(f"This LoRA cannot be applied, because {reason}")
    if unmatched := [*dict.fromkeys(layer_key(key) for key in unread), *unplaced]:
        layers = {layer_key(key) for key in tensors}
        raise RuntimeError(
            f"{len(unmatched)} of the LoRA's {len(layers)} layers do not match this model, such as "
            f"{', '.join(key[:SHOWN] for key in unmatched[:3])}: use a LoRA that was trained for this kind of model."
        )
    return patched


@contextmanager
def report_damage() -> Iterator[None]:
    """Turn any error of the host's loader into a ValueError that says that the LoRA is damaged."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"The LoRA is damaged, because its tensors do not match ({str(error)[:SHOWN]}): download or save it again."
        ) from error


def lora_keys(patcher: Patcher) -> dict[str, Any]:
    """Return the keys that LoRA files may use for the model's layers, each with the name of its weight in the model."""
    keys = comfy.lora.model_lora_keys_unet(patcher.model, {})
    # What diffusers and PEFT write today; the host only knows an older form.
    for theirs, ours in comfy.utils.unet_to_diffusers(patcher.model.model_config.unet_config).items():
        for prefix in ("", "unet.", "base_model.model.", "unet.base_model.model."):
            if theirs.endswith(".weight"):
                keys.setdefault(f"{prefix}{theirs.removesuffix('.weight')}", f"diffusion_model.{ours}")
    for theirs, ours in [*keys.items()]:
        if theirs.startswith("transformer."):  # of models other than U-Nets
            keys.setdefault(f"base_model.model.{theirs.removeprefix('transformer.')}", ours)
    return keys


class _ReadTracker(dict):
    """The tensors of a LoRA, which record which of them are read: the host's loader silently ignores unknown ones."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__(tensors)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> torch.Tensor:
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self else default


def model_family(patcher: Patcher) -> str:
    """Return the name of the model's family in kohya's files, or the host's if they have none.

    A1111 and Forge take every name that begins with "sdxl_" for SDXL.
    """
    config, kind = patcher.model.model_config, patcher.model.model_type
    family = type(config).__name__
    if isinstance(config, comfy.supported_models.SD20):
        return "sd_v2_v" if kind == comfy.model_base.ModelType.V_PREDICTION else "sd_v2"
    if family == "SDXLRefiner":
        return "sdxl_refiner"
    if family in ("SSD1B", "Segmind_Vega", "KOALA_700M", "KOALA_1B"):  # SDXL with fewer layers
        return f"sdxl_{family.lower()}"
    if family == "SD3":
        medium = "sd3_5-medium" if config.unet_config.get("x_block_self_attn_layers") else "sd3_m"
        return "sd3_5-large" if config.unet_config.get("depth") == 38 else medium
    known = {
        "SD15": "sd_v1",
        "SD15_instructpix2pix": "sd_v1",
        "SDXL": "sdxl_base_v1-0",
        "SDXL_instructpix2pix": "sdxl_base_v1-0",
        "Flux": "flux1",
    }
    return known.get(family, family.lower())


def is_large(patcher: Patcher) -> bool:
    """Return whether a MODEL is as large as SDXL or larger."""
    return not isinstance(patcher.model.model_config, (comfy.supported_models.SD15, comfy.supported_models.SD20))
