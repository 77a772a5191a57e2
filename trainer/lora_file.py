"""LoRA files: safetensors, written atomically, with the metadata that other programs read."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .atomic_write import write_atomically
from .peft_settings import with_peft_scale
from .weights_digest import file_hashes, weights_digest

TRAINING = "traintrain_training"  # metadata: fingerprint of the training
STEP = "traintrain_step"  # metadata: number of steps trained
MOST_DIMENSIONS = 8  # of a tensor; a convolution over time has five, and PyTorch computes with no more than 64
METHOD = "traintrain_method"  # metadata: the name of the method
STOPPED = "traintrain_stopped"  # metadata of a kept training: Stop and keep ended it, so this is its result
WEIGHTS = "traintrain_weights"  # metadata: digest of the weights that this pack wrote
IMAGE_SIZE = "traintrain_picture_size"  # metadata of a copy machine: the size of its image, such as "512x512"
PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}

# Endings of keys, by all programs whose files the host reads: the factors of the product, whole weights, the rest.
_END = r"(\.default)?(\.weight)?$"
_OUTER = re.compile(r"[._](lora_up|lora\.up|lora_B|lora_linear_layer\.up|hada_w1_a|lokr_w1(_a)?)" + _END)
_INNER = re.compile(r"[._](lora_down|lora\.down|lora_A|lora_linear_layer\.down|hada_w2_a|lokr_w2(_a)?)" + _END)
_DELTA = re.compile(r"\.(diff|diff_b|w_norm|b_norm)$")
_UNSCALED = re.compile(r"\.(alpha|lora_mid\.weight|hada_w[12]_b|hada_t[12]|lokr_w[12]_b|lokr_t2|reshape_weight)$")


_EXACT = re.compile(r"\.dora_scale$")  # few values, whose rounding would change whole columns of a weight


class LoRAWeights(dict):
    """Holds a LoRA's tensors by their keys in a file: a plain dict for the host, plus the file's metadata."""

    def __init__(self, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
        super().__init__(tensors)
        self.metadata = metadata or {}


def save_lora(
    path: Path,
    lora: dict[str, torch.Tensor],
    precision: str,
    strength: float,
    metadata: dict[str, str],
    overwrite: bool = True,
) -> None:
    """Save a LoRA atomically in a precision of PRECISIONS (the norms of a DoRA always in fp32), with its effect multiplied by strength.

    Raises OSError if the file cannot be written, NameTaken if it exists and `overwrite` is off, ValueError if the precision
    cannot hold a value.
    """
    scaled = {key: _scale(key, tensor, strength) for key, tensor in lora.items()}
    saved = {
        key: _as_saved(tensor, torch.float32 if _EXACT.search(key) else PRECISIONS[precision])
        for key, tensor in scaled.items()
    }
    if not all(tensor.isfinite().all() for tensor in saved.values()):
        raise ValueError(
            f"The LoRA has values that are NaN, Inf or too large for {precision}: save it as bf16 or fp32, or train with "
            "a lower learning rate."
        )
    metadata = {**metadata, **file_hashes(saved, metadata)}
    if WEIGHTS in metadata:
        metadata[WEIGHTS] = weights_digest(saved)
    with write_atomically(path, overwrite) as part:
        save_file(saved, part, metadata=metadata)


def is_changed(lora: dict[str, torch.Tensor]) -> bool:
    """Return whether a LoRA's weights are known to be others than those that this pack gave out or wrote to its file."""
    known = getattr(lora, "metadata", {}).get(WEIGHTS)
    return known is not None and known != weights_digest(lora)


def load_lora(path: Path) -> LoRAWeights:
    """Load a LoRA file, with the scale that PEFT or diffusers store outside of its tensors.

    Raises ValueError if it is not a safetensors file or is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            # Copies: the file's own tensors change with it if a program overwrites it in place.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(
            f"{path.name} is not a safetensors file, or is incomplete ({error}): download or save it again."
        ) from error
    if not tensors:
        raise ValueError(f"{path.name} is not a LoRA, because it has no tensors: choose another file.")
    tensors = with_peft_scale(path, tensors, metadata.pop("lora_adapter_metadata", None))
    deep = next((key for key, tensor in tensors.items() if tensor.ndim > MOST_DIMENSIONS), None)
    if deep is not None:
        raise ValueError(
            f"{path.name} is damaged, because {deep} has {tensors[deep].ndim} dimensions: use another file."
        )
    odd = next((key for key, tensor in tensors.items() if not tensor.float().isfinite().all()), None)
    if odd is not None:
        raise ValueError(f"{path.name} is damaged, because {odd} has NaN or Inf values: use another file.")
    return LoRAWeights(tensors, metadata)


def can_scale(lora: dict[str, torch.Tensor]) -> bool:
    """Return whether a LoRA can be saved at another strength, which a DoRA cannot."""
    kinds = _UNSCALED, _OUTER, _INNER, _DELTA
    return all(any(kind.search(key) for kind in kinds) for key in lora)


def _scale(key: str, tensor: torch.Tensor, strength: float) -> torch.Tensor:
    """Multiply the two factors of the product by sqrt(strength) each, so that neither overflows; one gets the sign."""
    root = abs(strength) ** 0.5
    if strength == 1 or _UNSCALED.search(key):
        return tensor
    if _OUTER.search(key):
        return tensor.float() * (root if strength > 0 else -root)
    if _INNER.search(key):
        return tensor.float() * root
    if _DELTA.search(key):
        return tensor.float() * strength
    raise ValueError(f"The strength of {key} in this LoRA cannot be changed: save it with strength 1.")


def _as_saved(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous().cpu()  # shapes are integers
