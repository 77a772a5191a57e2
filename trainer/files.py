"""LoRA files: written whole or not at all, with the metadata that other programs read."""

from __future__ import annotations

import json
import os
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Iterator

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .config import NetworkConfig, TrainingConfig

METHOD = "traintrain_method"  # metadata: the name of the method
PICTURE_SIZE = "traintrain_picture_size"  # metadata of what was learned from one picture, as in "512x512"
PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


class LoRAWeights(dict):
    """A LoRA's tensors by their keys in a file: a plain dict to the host, with the file's metadata beside it."""

    def __init__(self, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
        super().__init__(tensors)
        self.metadata = metadata or {}


def save_lora(
    path: Path, lora: dict[str, torch.Tensor], precision: str, strength: float, metadata: dict[str, str]
) -> None:
    """Write a LoRA in a precision of PRECISIONS, its effect multiplied by strength.

    The file appears whole under its name or not at all.
    """
    dtype = PRECISIONS[precision]
    scaled = {key: _scale(key, tensor, strength).to(dtype).contiguous().cpu() for key, tensor in lora.items()}
    if not all(tensor.isfinite().all() for tensor in scaled.values()):
        raise ValueError(
            f"The LoRA has values that {precision} cannot hold: save it in bf16 or fp32, or train at a lower learning rate."
        )
    with whole_file(path) as part:
        save_file(scaled, part, metadata=metadata)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a path to write to; what is there when the block ends well becomes `path` in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load_lora(path: Path) -> LoRAWeights:
    """Read a LoRA file. Raises ValueError for a file that is none."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}
            metadata = file.metadata()
    except SafetensorError as error:
        raise ValueError(
            f"{path.name} is not a whole safetensors file ({error}): download or save it again."
        ) from error
    if not tensors:
        raise ValueError(f"{path.name} holds no tensors: it is not a LoRA.")
    return LoRAWeights(tensors, metadata)


def training_metadata(
    network: NetworkConfig, config: TrainingConfig, base_model: str, started: float
) -> dict[str, str]:
    """Say how a LoRA was trained, under the names of kohya's files. started: seconds since the epoch."""
    algorithm = network.network_type if network.network_type in ("loha", "lokr") else None
    arguments = {
        "conv_dim": network.conv_rank or network.rank,
        "conv_alpha": network.conv_alpha or network.alpha,
        **({"algo": algorithm} if algorithm else {}),
    }
    return {
        "ss_session_id": str(int(started * 1000) % 2**32),
        "ss_training_started_at": str(started),
        "ss_training_finished_at": str(time.time()),
        "ss_learning_rate": str(config.learning_rate),
        "ss_max_train_steps": str(config.steps),
        "ss_lr_warmup_steps": str(config.warmup_steps),
        "ss_lr_scheduler": config.lr_scheduler,
        "ss_optimizer": config.optimizer,
        "ss_network_module": "networks.lora" if algorithm is None else "lycoris.kohya",
        "ss_network_dim": str(network.rank),
        "ss_network_alpha": str(network.alpha),
        "ss_network_args": json.dumps({} if network.network_type == "lierla" else arguments),
        "ss_mixed_precision": config.precision,
        "ss_seed": str(config.seed),
        "ss_min_snr_gamma": str(config.snr_gamma),
        "ss_base_model_version": base_model,
        "ss_v2": str(base_model == "sd_v2"),
        "traintrain_settings": json.dumps({"network": asdict(network), "training": asdict(config)}),
    }


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


def _scale(key: str, tensor: torch.Tensor, strength: float) -> torch.Tensor:
    """Spread the strength over two factors of the product, so that neither outgrows a small type; one takes the sign."""
    root = abs(strength) ** 0.5
    if key.endswith((".lora_up.weight", ".hada_w1_a", ".lokr_w1")):
        return tensor.float() * (root if strength >= 0 else -root)
    if key.endswith((".lora_down.weight", ".hada_w2_a", ".lokr_w2", ".lokr_w2_a")):
        return tensor.float() * root
    return tensor
