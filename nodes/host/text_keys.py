"""The names of a text encoder's layers in LoRA files."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Callable

import comfy.lora
import torch

from ...trainer.blocks import TEXT_ENCODER
from ...trainer.lora_forms import Key, KeysOfParts

# How kohya's keys begin: for the encoder of a CLIP that has only one, and for those of a CLIP that has several.
_ALONE, _SEVERAL = "lora_te_", {"clip_l": "lora_te1_", "clip_g": "lora_te2_", "t5xxl": "lora_te3_"}
_GENERAL = "text_encoders."  # the host's own names, which it reads whichever encoders are loaded together
# Layers that some files of text encoders have in one, and their parts in other files and programs, in order.
_MERGED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}

Target = str | tuple  # the name of a weight, or that with the part of it, as (dimension, start, length)


def text_key_of(clip: Any) -> Callable[[str], Key]:
    """Return a function that maps the name of a text encoder's layer to its key in LoRA files, or to those of its parts.

    The keys are kohya's where the host reads them, and else the host's own.
    """
    model = clip.cond_stage_model
    known = _sorted_by_target(comfy.lora.model_lora_keys_clip(model, {}))
    encoders = {_weight_of(target).split(".")[0] for target in known}
    names = {target: _preferred(keys, _weight_of(target), len(encoders) > 1) for target, keys in known.items()}
    rows: dict[str, dict[str, slice]] = defaultdict(dict)
    for target in sorted((t for t in known if not isinstance(t, str) and t[1][0] == 0), key=lambda t: t[1][1]):
        rows[target[0]][names[target]] = slice(target[1][1], target[1][1] + target[1][2])

    def key_of(layer: str) -> Key:
        weight = f"{layer.removeprefix(f'{TEXT_ENCODER}.')}.weight"
        if _covers(rows[weight], model.get_submodule(weight.removesuffix(".weight"))):
            return KeysOfParts(names[weight], rows[weight])
        return names[weight]

    return key_of


def text_keys(clip: Any) -> dict[str, Target]:
    """Return the keys that LoRA files may use for a text encoder's layers, each with its target.

    These include the parts of merged layers, for files made where they are not merged.
    """
    model = clip.cond_stage_model
    keys = comfy.lora.model_lora_keys_clip(model, {})
    for key, target in [*keys.items()]:
        merged = next((name for name in _MERGED if key.endswith(name)), None)
        if merged and isinstance(target, str):
            lengths = _lengths(model, target.removesuffix(".weight"), merged)
            for number, (part, length) in enumerate(zip(_MERGED[merged], lengths)):
                offset = 0, sum(lengths[:number]), length
                keys.setdefault(f"{key.removesuffix(merged)}{part}", (target, offset))
    return keys


def _lengths(model: torch.nn.Module, name: str, merged: str) -> list[int]:
    """Return the numbers of rows of a merged layer's parts, or none if they are unknown: k and v have the same."""
    rows, parent = model.get_submodule(name).out_features, model.get_submodule(name.removesuffix(f".{merged}"))
    if merged == "gate_up_proj":
        return [rows // 2] * 2
    queries = getattr(getattr(parent, "o_proj", None), "in_features", None)
    return [queries, (rows - queries) // 2, (rows - queries) // 2] if queries else []


def _sorted_by_target(keys: dict[str, Target]) -> dict[Target, list[str]]:
    found: dict[Target, list[str]] = defaultdict(list)
    for key, target in keys.items():
        found[target].append(key)
    return found


def _preferred(keys: list[str], weight: str, is_one_of_several: bool) -> str:
    """Return kohya's key of those for a weight, or the host's own if it is not among them."""
    kohyas = _SEVERAL.get(weight.split(".")[0]) if is_one_of_several else _ALONE
    starts = [start for start in (kohyas, _GENERAL) if start]
    return next((key for start in starts for key in keys if key.startswith(start)), keys[0])


def _weight_of(target: Target) -> str:
    return target if isinstance(target, str) else target[0]


def _covers(rows: dict[str, slice], layer: torch.nn.Module) -> bool:
    """Return whether parts, in order, are all of a layer's rows, each once."""
    ends = [0, *(part.stop for part in rows.values())]
    return bool(rows) and [part.start for part in rows.values()] == ends[:-1] and ends[-1] == layer.out_features
