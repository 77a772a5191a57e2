"""The blocks of the model in a file, known without loading it."""

from __future__ import annotations

from pathlib import Path

import comfy.model_detection
import torch
from safetensors import SafetensorError, safe_open

from ...trainer.blocks import adaptable_blocks
from ...trainer.config import NetworkConfig


def blocks_in_file(path: Path, config: NetworkConfig) -> list[str]:
    """Return the ids of the blocks that the model in a safetensors file has layers to adapt in; none if it is unknown.

    Only the header is read: ComfyUI knows a model by the names and shapes of its tensors, and builds it here without weights.
    """
    try:
        tensors, metadata = _read_header(path)
        model_config = _model_config(tensors, metadata)
        if model_config is None:
            return []
        model_config.set_inference_dtype(torch.float32, None)
        model = model_config.get_model({}, "", device=torch.device("meta"))  # what it predicts may depend on values
        return adaptable_blocks(model.diffusion_model, config)
    except (
        SafetensorError,
        OSError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ):
        return []  # not a model, or one that is known by its values


def _read_header(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the tensors of a file, without values or types, and its metadata."""
    with safe_open(path, "pt") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}
        return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}, file.metadata() or {}


def _model_config(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> object | None:
    """Return what the host knows of a model, or None. The tensors get the host's names, without a prefix."""
    prefix = comfy.model_detection.unet_prefix_from_state_dict(tensors)
    if own := {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}:
        tensors.clear()
        tensors.update(own)
    found = comfy.model_detection.model_config_from_unet(tensors, "", metadata=metadata)
    if found is None and (renamed := comfy.model_detection.convert_diffusers_mmdit(dict(tensors), "")):
        found = comfy.model_detection.model_config_from_unet(renamed, "")
    return found
