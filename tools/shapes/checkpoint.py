"""The demonstration model as files: eight-bit weights in the repo, an fp16 checkpoint for the host."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

WEIGHTS = Path(__file__).parent / "weights"


def save_weights(state: dict[str, torch.Tensor], path: Path) -> None:
    """Write weights in eight bits: every matrix row (or filter) has its own scale; vectors stay in fp16."""
    packed = {}
    for name, tensor in state.items():
        tensor = tensor.detach().float().cpu()
        if tensor.ndim < 2:
            packed[name] = tensor if tensor.ndim == 0 else tensor.half()
            continue
        rows = tensor.flatten(1)
        scale = rows.abs().amax(1).clamp(min=1e-12) / 127
        packed[name] = (rows / scale[:, None]).round().to(torch.int8).view(tensor.shape)
        packed[name + ":scale"] = scale
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(packed, path)


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read what `save_weights` wrote, in float32."""
    packed = load_file(path)
    return {
        name: (tensor.float().flatten(1) * packed[name + ":scale"][:, None]).view(tensor.shape)
        if tensor.dtype == torch.int8
        else tensor.float()
        for name, tensor in packed.items()
        if not name.endswith(":scale")
    }


def assemble(path: Path) -> None:
    """Write the whole model as an fp16 checkpoint that the host's CheckpointLoaderSimple takes for SD1."""
    from .build_models import build_text_encoder

    state = {f"model.diffusion_model.{k}": v for k, v in load_weights(WEIGHTS / "unet.safetensors").items()}
    state |= {f"first_stage_model.{k}": v for k, v in load_weights(WEIGHTS / "autoencoder.safetensors").items()}
    state |= {
        f"cond_stage_model.{k.removeprefix('clip_l.')}": v
        for k, v in build_text_encoder().state_dict().items()
        if "text_projection" not in k and "logit_scale" not in k
    }
    part = path.with_suffix(".part")
    save_file({k: v.half().contiguous() for k, v in state.items()}, part)
    part.replace(path)
