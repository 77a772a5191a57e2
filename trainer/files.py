"""LoRA files: written whole or not at all, with the metadata that other programs read."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any, Iterable

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .config import NetworkConfig, TrainingConfig
from .schedule import SCHEDULES
from .settings_text import read_settings
from .writing import whole_file

METHOD = "traintrain_method"  # metadata: the name of the method
PICTURE_SIZE = "traintrain_picture_size"  # metadata of what was learned from one picture, as in "512x512"
PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}

# A model family, as it is named in ss_base_model_version -> its name in modelspec.architecture.
ARCHITECTURES = {
    "sd_v1": "stable-diffusion-v1",
    "sd_v2": "stable-diffusion-v2-512",
    "sd_v2_v": "stable-diffusion-v2-768-v",
    "sdxl_base_v1-0": "stable-diffusion-xl-v1-base",
    "sdxlrefiner": "stable-diffusion-xl-v1-refiner",
    "sd3_m": "stable-diffusion-v3-medium",
    "sd3_5-medium": "stable-diffusion-v3.5-medium",
    "sd3_5-large": "stable-diffusion-v3.5-large",
    "flux1": "flux-1-dev",
    "fluxschnell": "flux-1-schnell",
    "lumina2": "lumina-2",
    "qwenimage": "qwen-image",
}

# What a key ends with: the weights that multiply one another, in the names of all programs whose files the host reads.
_END = r"(\.default)?(\.weight)?$"
_OUTER = re.compile(r"[._](lora_up|lora\.up|lora_B|lora_linear_layer\.up|hada_w1_a|lokr_w1(_a)?)" + _END)
_INNER = re.compile(r"[._](lora_down|lora\.down|lora_A|lora_linear_layer\.down|hada_w2_a|lokr_w2(_a)?)" + _END)
_WHOLE = re.compile(r"\.(diff|diff_b|w_norm|b_norm)$")
_UNSCALED = re.compile(r"\.(alpha|lora_mid\.weight|hada_w[12]_b|hada_t[12]|lokr_w[12]_b|lokr_t2|reshape_weight)$")


class LoRAWeights(dict):
    """A LoRA's tensors by their keys in a file: a plain dict to the host, with the file's metadata beside it."""

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
    """Write a LoRA in a precision of PRECISIONS, its effect multiplied by strength.

    The file appears whole under its name or not at all. Raises OSError, and NameTaken where it is not to overwrite.
    """
    scaled = {key: _scale(key, tensor, strength) for key, tensor in lora.items()}
    saved = {key: _as_saved(tensor, PRECISIONS[precision]) for key, tensor in scaled.items()}
    if not all(tensor.isfinite().all() for tensor in saved.values()):
        raise ValueError(
            f"The LoRA has values that {precision} cannot hold: save it in bf16 or fp32, or train at a lower learning rate."
        )
    with whole_file(path, overwrite) as part:
        save_file(saved, part, metadata=metadata)


def load_lora(path: Path) -> LoRAWeights:
    """Read a LoRA file. Raises ValueError for a file that is none, or that is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(
            f"{path.name} is not a whole safetensors file ({error}): download or save it again."
        ) from error
    if not tensors:
        raise ValueError(f"{path.name} holds no tensors: it is not a LoRA.")
    try:
        tensors = _with_scale_of_diffusers(tensors, metadata.pop("lora_adapter_metadata", None))
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path.name} says in lora_adapter_metadata what cannot be read ({error}): save it again where it was made."
        ) from error
    odd = next((key for key, tensor in tensors.items() if not tensor.float().isfinite().all()), None)
    if odd is not None:
        raise ValueError(f"{path.name} is damaged, for {odd} holds values that are no numbers: take another file.")
    return LoRAWeights(tensors, metadata)


def training_metadata(
    network: NetworkConfig, config: TrainingConfig, base_model: str, started: float
) -> dict[str, str]:
    """Say how a LoRA was trained, under the names of kohya's files. started: seconds since the epoch."""
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
        "ss_base_model_version": base_model,
        "ss_v2": str(base_model in ("sd_v2", "sd_v2_v")),
        "modelspec.architecture": f"{ARCHITECTURES.get(base_model, base_model)}/lora",
        "traintrain_settings": json.dumps({"network": asdict(network), "training": asdict(config)}),
    }


def tag_frequency(captions: Iterable[str]) -> str:
    """Count the tags of captions, what stands between their commas, for ss_tag_frequency: programs show them as hints.

    As in kohya's files: JSON, a folder's tags under its name, in lower case. The name stands for all folders here.
    """
    tags = (tag.strip().lower() for caption in captions for tag in caption.split(","))
    return json.dumps({"images": Counter(tag for tag in tags if tag)}, ensure_ascii=False)


def file_metadata(lora: dict[str, torch.Tensor], name: str, workflow: dict[str, Any]) -> dict[str, str]:
    """Add to a LoRA's metadata what is known when it is saved: its name, the date, and the graph that made it."""
    return {
        **getattr(lora, "metadata", {}),
        "ss_output_name": name,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": name,
        "modelspec.date": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "modelspec.implementation": "https://github.com/comfyanonymous/ComfyUI",
        **{key: json.dumps(value) for key, value in workflow.items()},
    }


def _schedule_metadata(config: TrainingConfig) -> dict[str, str]:
    defaults = SCHEDULES[config.lr_scheduler].defaults(config.steps - config.warmup_steps, config.learning_rate)
    settings = {**defaults, **read_settings("lr_scheduler_settings", config.lr_scheduler_settings)}
    return {
        "ss_lr_warmup_steps": str(config.warmup_steps),
        "ss_lr_scheduler": config.lr_scheduler,
        "ss_lr_scheduler_num_cycles": str(settings.get("num_cycles", 1)),
        "ss_lr_scheduler_power": str(settings.get("power", 1.0)),
        "ss_lr_step_rules": _step_rules(settings) if config.lr_scheduler == "piecewise_constant" else "",
    }


def _step_rules(settings: dict[str, Any]) -> str:
    """Write steps=(100, 200), factors=(1, 0.5, 0.1) as other programs do: 1:100,0.5:200,0.1."""
    steps, factors = (v if isinstance(v, (tuple, list)) else (v,) for v in (settings["steps"], settings["factors"]))
    return ",".join([*(f"{factor}:{step}" for factor, step in zip(factors, steps)), str(factors[-1])])


def _network_metadata(network: NetworkConfig) -> dict[str, str]:
    algorithm = network.network_type if network.network_type in ("loha", "lokr") else None
    arguments = {
        "conv_dim": network.conv_rank or network.rank,
        "conv_alpha": network.conv_alpha or network.alpha,
        **({"algo": algorithm} if algorithm else {}),
    }
    return {
        "ss_network_module": "networks.lora" if algorithm is None else "lycoris.kohya",
        "ss_network_dim": str(network.rank),
        "ss_network_alpha": str(network.alpha),
        "ss_network_args": json.dumps({} if network.network_type == "lierla" else arguments),
    }


def _scale(key: str, tensor: torch.Tensor, strength: float) -> torch.Tensor:
    """Spread the strength over two factors of the product, so that neither outgrows a small type; one takes the sign."""
    root = abs(strength) ** 0.5
    if strength == 1 or _UNSCALED.search(key):
        return tensor
    if _OUTER.search(key):
        return tensor.float() * (root if strength > 0 else -root)
    if _INNER.search(key):
        return tensor.float() * root
    if _WHOLE.search(key):
        return tensor.float() * strength
    raise ValueError(f"The LoRA has {key}, whose effect cannot be multiplied: save it with strength 1.")


def _as_saved(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous().cpu()  # shapes are whole numbers


def _with_scale_of_diffusers(tensors: dict[str, torch.Tensor], settings: str | None) -> dict[str, torch.Tensor]:
    """Put into the weights the scale that diffusers leaves in a file's metadata, which no other program reads.

    settings: JSON of PEFT's LoraConfig, each name after the part of the model that it is of, as in `unet.lora_alpha`
    """
    known = json.loads(settings or "{}")

    def scaled(key: str, tensor: torch.Tensor) -> torch.Tensor:
        match = _OUTER.search(key)
        part, _, layer = key[: match.start() if match else None].partition(".")
        if match is None or f"{part}.lora_alpha" not in known:
            return tensor
        of_layers = (known.get(f"{part}.alpha_pattern") or {}).items()
        alphas = [alpha for pattern, alpha in of_layers if _names(pattern, layer)]
        alpha = alphas[0] if alphas else known[f"{part}.lora_alpha"]
        rank = tensor.shape[1]
        return tensor * (alpha / (rank**0.5 if known.get(f"{part}.use_rslora") else rank))

    return {key: scaled(key, tensor) for key, tensor in tensors.items()}


def _names(pattern: str, layer: str) -> bool:
    """Tell whether a pattern is a layer's name or the end of it; after ^ all of it.

    It may be no other regular expression, as it may in PEFT: one of a stranger's making could search for ever.
    """
    name = pattern.removeprefix("^").removesuffix("$").replace(r"\.", ".")
    if not re.fullmatch(r"[\w.]+", name):
        raise ValueError(f"the pattern {pattern} is no name of a layer")
    return layer == name if pattern.startswith("^") else f".{layer}".endswith(f".{name}")
