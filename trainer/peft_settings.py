"""The settings that PEFT and diffusers store beside a LoRA's tensors: what its weights are scaled by."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from .layer_pattern import Pattern, Work

CONFIG = "adapter_config.json"  # what PEFT writes beside the tensors
_PEFT = "base_model.model."  # before the names of layers in PEFT's files
_LARGEST = 1_000_000  # bytes of a config
# The factor to scale: the output's, with the rank as its second dimension, and those of LoHa and LoKr.
_LORA = re.compile(r"[._](lora_B|lora_up|lora\.up|lora_linear_layer\.up)(\.default)?(\.weight)?$")
_OTHER = re.compile(r"\.(hada_w1_a|lokr_w1(_a)?)(\.default)?$")

Tensors = dict[str, torch.Tensor]
Settings = dict[str, dict[str, Any]]  # the start of the keys that they are for -> PEFT's config


def with_peft_scale(path: Path, tensors: Tensors, metadata: str | None) -> Tensors:
    """Multiply the weights of a LoRA file by the scale that is stored outside of its tensors, which ComfyUI does not read.

    path: the file; PEFT's adapter_config.json is looked for beside it if the file has PEFT's names
    metadata: `lora_adapter_metadata` of a file by diffusers, as JSON, or None

    Raises ValueError if the settings cannot be parsed or belong to another file.
    """
    config = path.with_name(CONFIG)
    is_peft = path.stem == "adapter_model" or any(key.startswith(_PEFT) for key in tensors)
    if metadata is None and not (is_peft and config.is_file()):
        return tensors
    is_beside = metadata is None
    source = f"{CONFIG} beside {path.name}" if is_beside else f"lora_adapter_metadata in {path.name}"
    try:
        settings = {"": _read(config)} if is_beside else _by_part(json.loads(metadata))
        return _scaled(tensors, settings, source if is_beside else None)
    except WrongFile:
        raise
    except (ArithmeticError, AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f"{source} cannot be parsed ({error}): save the LoRA again with the program that made it."
        ) from error


class WrongFile(ValueError):
    """Settings do not fit the tensors that they stand beside."""


def _by_part(flat: dict[str, Any]) -> Settings:
    """Return diffusers' settings, whose names start with a part of the model as in `unet.lora_alpha`, by part."""
    settings: Settings = defaultdict(dict)
    for name, value in flat.items():
        part, _, name = name.partition(".")
        settings[f"{part}."][name] = value
    return settings


def _read(config: Path) -> dict[str, Any]:
    if config.stat().st_size > _LARGEST:
        raise ValueError("it is too large")
    return json.loads(config.read_text(encoding="utf-8"))


def _scaled(tensors: Tensors, settings: Settings, source: str | None) -> Tensors:
    """Multiply weights by their scales. source: the name of settings in another file, whose ranks are checked, or None"""
    chosen = {start: _Scales(of, source) for start, of in settings.items()}
    scaled = dict(tensors)
    for key, tensor in tensors.items():
        found = _LORA.search(key) or _OTHER.search(key)
        start = next((start for start in chosen if key.startswith(start)), None)
        if found is None or start is None or f"{key[: found.start()]}.alpha" in tensors:
            continue
        layer = key[len(start) : found.start()].removeprefix(_PEFT)
        scaled[key] = tensor * chosen[start].scale(layer, tensor.shape[1] if _LORA.search(key) else None)
    return scaled


class _Scales:
    """Computes the scales of layers from PEFT's config."""

    def __init__(self, config: dict[str, Any], source: str | None) -> None:
        self._config, self._source = config, source
        self._work = Work()
        self._alphas, self._ranks = (
            _Pairs(config.get(name) or {}, self._work) for name in ("alpha_pattern", "rank_pattern")
        )

    def scale(self, layer: str, rank: int | None) -> float:
        """Return the scale of a layer. rank: that of its tensors, or None if they do not tell

        Raises WrongFile if the config has another rank.
        """
        config = self._config
        name = next((name for name in ("lora_alpha", "alpha") if name in config), None)  # of a LoRA, of a LoHa or LoKr
        if name is None:
            return 1.0
        known = self._ranks.get(layer, config.get("r"))
        if self._source and rank is not None and known != rank:
            raise WrongFile(
                f"{self._source} is of another LoRA: it has rank {known} for {layer[:100]}, and the file rank {rank}. Move one "
                "of them to a folder of its own."
            )
        rank = known if rank is None else rank
        return self._alphas.get(layer, config[name]) / (rank**0.5 if config.get("use_rslora") else rank)


class _Pairs:
    """Values by patterns of layer names, of which the first that matches counts, as in PEFT.

    A pattern matches a whole name, or what is left of it after a dot.
    """

    def __init__(self, values: dict[str, float], work: Work) -> None:
        self._work = work
        self._values = [(_as_plain(pattern) or Pattern(pattern), value) for pattern, value in values.items()]

    def get(self, layer: str, default: Any) -> Any:
        """Return the value for a layer, or the default."""
        starts = [0, *(found.end() for found in re.finditer(r"\.", layer))]
        return next((value for pattern, value in self._values if self._matches(pattern, layer, starts)), default)

    def _matches(self, pattern: re.Pattern | Pattern, layer: str, starts: list[int]) -> bool:
        if isinstance(pattern, re.Pattern):
            return bool(pattern.match(layer))
        return pattern.matches(layer, starts, self._work)


def _as_plain(pattern: str) -> re.Pattern | None:
    """Return a pattern that is a layer's name, maybe with ^ and $, for `re`, which is fast and safe with such."""
    if re.fullmatch(r"\^?([\w.]|\\\.)+\$?", pattern):
        return re.compile(rf"(?:.*\.)?(?:{pattern})$")
    return None
