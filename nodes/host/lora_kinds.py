"""Names the kinds of LoRA files that the pack cannot train on, or that ComfyUI cannot apply, by the ends of their keys."""

from __future__ import annotations

import re
from typing import Iterable

import torch

# What ComfyUI applies, and the pack cannot train: they are not sums of a layer's weight and a product of matrices.
_NOT_TRAINED = {
    r"\.dora_scale$": "a DoRA",
    r"\.(diff|diff_b|set_weight)$": "a LoRA with whole weights or biases",
    r"\.(w_norm|b_norm)$": "a LoRA with norms",
    r"\.[ab][12]\.weight$": "a GLoRA",
    r"\.(oft_blocks|rescale)$": "an OFT or BOFT",
    r"\.reshape_weight$": "a LoRA that makes a layer wider",
}
# What ComfyUI cannot apply either.
_NOT_APPLIED = {
    r"\.lora_magnitude_vector(\.\w+)*$": "a DoRA in PEFT's names",
    r"\.lora_(up|down|A|B)(\.default)?\.bias$": "a LoRA with biases",
    r"\.(on_input|ia3_l)(\.\w+)*$": "an (IA)3",
    r"\.(lambda_layer|[pq]_layer\.weight)$": "a T-LoRA",
    r"\.(oft_R|boft_R|boft_s)(\.\w+)*$": "an OFT or BOFT in PEFT's names",
    r"\.lora_embedding_[AB](\.\w+)*$": "a LoRA of embeddings",
    r"^bundle_emb\.": "a LoRA with embeddings",
    r"\.vera_lambda_[bd](\.\w+)*$": "a VeRA",
    r"\.(lora_E|ranknum)(\.\w+)*$": "an AdaLoRA",
    r"\.hra_u(\.\w+)*$": "an HRA",
    r"\.fourierft_spectrum(\.\w+)*$": "a FourierFT",
    r"\.shira_weight(\.\w+)*$": "a SHiRA",
}
# What ComfyUI reads, and may fail to compute while it samples.
_FAILING = {r"\.lokr_t2$": "a LoKr with Tucker decomposition"}
SHOWN = 200  # characters from a file in a message


def check_trainable(lora: dict[str, torch.Tensor]) -> None:
    """Raise ValueError if a LoRA is of a kind that cannot be trained on, named by its keys.

    A DoRA with a norm per input can be: `dora_scale` (1, in) beside a LoRA's matrices.
    """
    keys = [key for key in lora if not _is_norm_per_input(key, lora)]
    if reason := describe_unapplied(keys):
        raise ValueError(f"Training cannot start from this LoRA, because {reason}")
    if kind := _kind_of(keys, _NOT_TRAINED):
        raise ValueError(
            f"Training cannot start from this LoRA, because it is {kind}: put it on the model with Load LoRA and train a "
            "new one."
        )


def _is_norm_per_input(key: str, lora: dict[str, torch.Tensor]) -> bool:
    layer = key.removesuffix(".dora_scale")
    return layer != key and f"{layer}.lora_up.weight" in lora and len(lora[key]) == 1 and lora[key].ndim > 1


def describe_unapplied(keys: Iterable[str]) -> str:
    """Return what to do with a LoRA of a kind that ComfyUI cannot apply, named by its keys; empty for all others."""
    kind = _kind_of(keys, _NOT_APPLIED)
    return kind and (
        f"it is {kind}, which ComfyUI's Load LoRA cannot apply either. Merge it into the model with the program that made "
        "it, and train a new one."
    )


def describe_failing(keys: Iterable[str]) -> str:
    """Return what to do with a LoRA of a kind that ComfyUI reads but fails to compute; empty for all others."""
    kind = _kind_of(keys, _FAILING)
    return kind and (
        f"it is {kind}, which ComfyUI fails to compute. Train on it for a step: the result is the same without the "
        "decomposition."
    )


def _kind_of(keys: Iterable[str], kinds: dict[str, str]) -> str:
    for pattern, kind in kinds.items():
        if key := next((key for key in keys if re.search(pattern, key)), None):
            return f"{kind} ({key[:SHOWN]})"
    return ""
