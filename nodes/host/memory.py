"""Out of memory: how to recognize it, and what to tell the user."""

from __future__ import annotations

import re
import traceback

import comfy.model_management
import torch

from ...trainer.config import TrainingConfig
from .host_denoiser import HostDenoiser, Patcher

SMALLEST_SIDE = 64  # pixels; smaller images are not worth training
# Messages of torch's allocators for the CPU and for Apple GPUs, and of CUDA libraries, which raise a plain RuntimeError.
_MESSAGES = re.compile("DefaultCPUAllocator|out of memory|ALLOC_FAILED")


class TooLittleMemory(comfy.model_management.OOM_EXCEPTION):
    """Training ran out of memory. ComfyUI recognizes this type and unloads its models."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that the device or the computer is out of memory."""
    if isinstance(error, MemoryError) or comfy.model_management.is_oom(error):
        return True
    return isinstance(error, RuntimeError) and bool(_MESSAGES.search(str(error)))


def release_frames(error: BaseException) -> None:
    """Free the local variables of the functions that an error has ended, which its traceback keeps alive."""
    traceback.clear_frames(error.__traceback__)
    if is_out_of_memory(error):  # it also keeps variables of closures, and with them whole autograd graphs
        error.__traceback__ = error.__cause__ = error.__context__ = None


def model_too_large_error(patcher: Patcher, config: TrainingConfig) -> TooLittleMemory:
    """Return the error for a MODEL that does not fit into memory for training."""
    size = _gigabytes(patcher.model_size())
    offload = "" if config.offload != "none" else "set offload to all in Training Settings, "
    return TooLittleMemory(
        f"Out of memory: the model ({size}) and the LoRA need more memory than there is ({_memory(patcher.load_device)}): "
        f"{offload}use a smaller model, the same model in 8 bits, or a lower rank in LoRA Network."
    )


def step_too_large_error(config: TrainingConfig, model: HostDenoiser, done: int, file: object) -> TooLittleMemory:
    """Return the error for a step that does not fit into memory next to the loaded model, with what reduces it.

    done: steps trained so far
    file: where the LoRA is saved, or None
    """
    advice = _advice(config, model)
    *others, last = advice or ["use a smaller model, or the same model in 8 bits"]
    what_to_do = f"{', '.join(others)} or {last}" if others else last
    kept = f"; the LoRA up to step {done} is saved as {file}: Load LoRA resumes it" if file else ""
    return TooLittleMemory(
        f"Out of memory: a step with batch_size {config.batch_size} and {_size(model)} needs more memory than there is "
        f"({_memory(model.device)} with the model loaded): {what_to_do}{kept}."
    )


def _advice(config: TrainingConfig, model: HostDenoiser) -> list[str]:
    """Return what can still be reduced, the cheapest first."""
    settings = []
    if not config.gradient_checkpointing:
        settings.append("turn on gradient_checkpointing")
    if model.dtype == torch.float32:
        settings.append("set precision to bf16")
    if config.gradient_checkpointing and config.offload != "all":
        settings.append("set offload to all")
    advice = [f"{setting} {where}" for setting, where in zip(settings, ("in Training Settings", "there"))]
    if config.batch_size > 1:
        advice.append("lower batch_size")
    if min(_pixels(model)) > SMALLEST_SIDE:
        advice.append("use smaller images")
    return advice


def _size(model: HostDenoiser) -> str:
    (height, width), pixels = model.latest_size, _pixels(model)
    return f"latents of {width}x{height}, images of {pixels[1]}x{pixels[0]}"


def _pixels(model: HostDenoiser) -> tuple[int, int]:
    """Return height and width of the latest images."""
    multiple = model.patcher.model.latent_format.spacial_downscale_ratio
    return model.latest_size[0] * multiple, model.latest_size[1] * multiple


def _memory(device: torch.device) -> str:
    free, total = (
        measure(device) for measure in (comfy.model_management.get_free_memory, comfy.model_management.get_total_memory)
    )
    return f"{_gigabytes(free)} of {_gigabytes(total)} are free on {device}"


def _gigabytes(size: float) -> str:
    return f"{size / 1024**3:.1f} GB"
