"""The metadata of a LoRA file: how it was trained, under the names that other programs read."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from dataclasses import asdict
from typing import Any, Iterable

import torch

from .config import NetworkConfig, TrainingConfig
from .schedule import default_settings
from .settings_text import read_settings

# The model family in ss_base_model_version -> its name in modelspec.architecture.
ARCHITECTURES = {
    "sd_v1": "stable-diffusion-v1",
    "sd_v2": "stable-diffusion-v2-512",
    "sd_v2_v": "stable-diffusion-v2-768-v",
    "sdxl_base_v1-0": "stable-diffusion-xl-v1-base",
    "sdxl_refiner": "stable-diffusion-xl-v1-refiner",
    "sd3_m": "stable-diffusion-v3-medium",
    "sd3_5-medium": "stable-diffusion-v3.5-medium",
    "sd3_5-large": "stable-diffusion-v3.5-large",
    "flux1": "flux-1-dev",
    "fluxschnell": "flux-1-schnell",
    "lumina2": "lumina-2",
    "qwenimage": "qwen-image",
}

# Metadata that says nothing about whoever trained the LoRA, and on what.
_PUBLIC = re.compile(
    r"ss_(v2|base_model_version|network_(module|dim|alpha|args)|output_name|max_train_steps|mixed_precision|seed|optimizer"
    r"|learning_rate|unet_lr|text_encoder_lr|min_snr_gamma|noise_offset|lr_\w+)"
    r"|modelspec\.(sai_model_spec|architecture|implementation|title|date|author|license|description|usage_hint|resolution"
    r"|prediction_type)|traintrain_\w+"
)


def training_metadata(
    network: NetworkConfig, config: TrainingConfig, base_model: str, started: float
) -> dict[str, str]:
    """Return metadata on how a LoRA was trained, under the names in kohya's files. started: Unix time in seconds"""
    return {
        "ss_session_id": str(int(started * 1000) % 2**32),
        "ss_training_started_at": str(started),
        "ss_training_finished_at": str(time.time()),
        "ss_learning_rate": str(config.learning_rate),
        "ss_max_train_steps": str(config.steps),
        **_schedule_metadata(config),
        "ss_optimizer": config.optimizer,
        **_network_metadata(network),
        "ss_mixed_precision": config.precision,
        "ss_seed": str(config.seed),
        "ss_min_snr_gamma": str(config.snr_gamma),
        "ss_noise_offset": str(config.noise_offset or None),
        "ss_base_model_version": base_model,
        "ss_v2": str(base_model.startswith("sd_v2")),
        "modelspec.architecture": f"{ARCHITECTURES.get(base_model, base_model)}/lora",
        "traintrain_settings": json.dumps({"network": asdict(network), "training": asdict(config)}),
    }


def tag_frequency(captions: Iterable[str]) -> str:
    """Count the comma-separated tags of captions for ss_tag_frequency, which programs show as hints.

    The format is kohya's: JSON, lower case, grouped by folders named <repeats>_<trigger word>. All images are one group here,
    named after the tag that all captions begin with, or else the most frequent one: programs take it as the trigger word.
    """
    tags = [[tag.strip() for tag in caption.split(",") if tag.strip()] for caption in captions]
    counts = Counter(tag.lower() for of_caption in tags for tag in of_caption)
    first = [of_caption[0] for of_caption in tags if of_caption]
    if not counts:
        return "{}"
    is_shared = all(tag.lower() == first[0].lower() for tag in first)
    trigger = first[0] if is_shared else counts.most_common(1)[0][0]
    return json.dumps({f"1_{trigger}": dict(counts.most_common())}, ensure_ascii=False)


def file_metadata(
    lora: dict[str, torch.Tensor], name: str, workflow: dict[str, Any], is_private: bool = True
) -> dict[str, str]:
    """Return a LoRA's metadata with what is known when it is saved: its name, the date, and the workflow that made it.

    is_private: off leaves out the workflow, captions, names of folders, and whatever else other programs may have stored
    """
    metadata = {
        **getattr(lora, "metadata", {}),
        "ss_output_name": name,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": name,
        "modelspec.date": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "modelspec.implementation": "https://github.com/comfyanonymous/ComfyUI",
        **{key: json.dumps(value) for key, value in workflow.items()},
    }
    return {key: value for key, value in metadata.items() if is_private or _is_public(key, value)}


def _is_public(key: str, value: str) -> bool:
    """Return whether metadata may be published: numbers and names of training, and what its author wrote to be read."""
    has_path = key.startswith("ss_") and re.search(r"[/\\]", value)
    return bool(_PUBLIC.fullmatch(key)) and not has_path


def _schedule_metadata(config: TrainingConfig) -> dict[str, str]:
    settings = {**default_settings(config), **read_settings("lr_scheduler_settings", config.lr_scheduler_settings)}
    return {
        "ss_lr_warmup_steps": str(config.warmup_steps),
        "ss_lr_scheduler": config.lr_scheduler,
        "ss_lr_scheduler_num_cycles": str(settings.get("num_cycles", 1)),
        "ss_lr_scheduler_power": str(settings.get("power", 1.0)),
        "ss_lr_step_rules": _step_rules(settings) if config.lr_scheduler == "piecewise_constant" else "",
    }


def _step_rules(settings: dict[str, Any]) -> str:
    """Format steps=(100, 200), factors=(1, 0.5, 0.1) as kohya does: 1:100,0.5:200,0.1."""
    values = settings["steps"], settings["factors"]
    steps, factors = (value if isinstance(value, (tuple, list)) else (value,) for value in values)
    return ",".join([*(f"{factor}:{step}" for factor, step in zip(factors, steps)), str(factors[-1])])


def _network_metadata(network: NetworkConfig) -> dict[str, str]:
    algorithm = network.network_type if network.network_type in ("loha", "lokr") else None
    conv = {"conv_dim": network.conv_rank or network.rank, "conv_alpha": network.alpha_in_file(is_convolution=True)}
    arguments = {
        **({} if network.network_type == "lierla" else conv),
        **({"algo": algorithm} if algorithm else {}),
        **({"dora_wd": True} if network.dora else {}),
    }
    return {
        "ss_network_module": "networks.lora" if algorithm is None else "lycoris.kohya",
        "ss_network_dim": str(network.rank),
        "ss_network_alpha": str(network.alpha_in_file(is_convolution=False)),
        "ss_network_args": json.dumps(arguments),
    }
