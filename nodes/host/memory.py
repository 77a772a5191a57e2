"""Memory that a training does not fit into: how that shows, and what to say then."""

from __future__ import annotations

import re
import traceback

import comfy.model_management
import torch

from ...trainer.config import TrainingConfig
from .denoiser import HostDenoiser, Patcher

SMALLEST_SIDE = 64  # pixels, below which nobody trains
# Of torch's allocators for the CPU and Apple's chips, and of CUDA's libraries, which have no exception of their own for it.
_MESSAGES = re.compile("DefaultCPUAllocator|out of memory|ALLOC_FAILED")


class TooLittleMemory(comfy.model_management.OOM_EXCEPTION):
    """A training needs more memory than there is. The host knows this kind of error, and unloads its models."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that there was too little memory, of the device or of the computer."""
    if isinstance(error, MemoryError) or comfy.model_management.is_oom(error):
        return True
    return isinstance(error, RuntimeError) and bool(_MESSAGES.search(str(error)))


def let_go(error: BaseException) -> None:
    """Free what the functions that an error has ended still hold: whoever has the error has their variables, too."""
    traceback.clear_frames(error.__traceback__)
    if is_out_of_memory(error):  # even then it holds what nested functions share, and with that whole graphs
        error.__traceback__ = error.__cause__ = error.__context__ = None


def too_large_a_model(patcher: Patcher) -> TooLittleMemory:
    """Return the error for a MODEL that is too large to be trained at all."""
    size = _gigabytes(patcher.model_size())
    return TooLittleMemory(
        f"The model, of {size}, and what is trained on it need more memory than there is ({_memory(patcher.load_device)}): "
        "take a smaller model, the same in 8 bits, or a lower rank in LoRA Network."
    )


def too_large_a_step(config: TrainingConfig, model: HostDenoiser, done: int, file: object) -> TooLittleMemory:
    """Return the error for a step that did not fit beside the loaded model, with what would make it smaller.

    done, file: how many steps the LoRA has behind it, and where it is kept, if it is
    """
    advice = _advice(config, model)
    *others, last = advice or ["take a smaller model, or the same in 8 bits"]
    what_to_do = f"{', '.join(others)} or {last}" if others else last
    kept = f"; the LoRA up to step {done} is kept in {file}, to go on from by Load LoRA" if file else ""
    return TooLittleMemory(
        f"A step with batch_size {config.batch_size} and {_size(model)} needs more memory than there is "
        f"({_memory(model.device)} with the model loaded): {what_to_do}{kept}."
    )


def _advice(config: TrainingConfig, model: HostDenoiser) -> list[str]:
    """Return what can still be made smaller, what costs the least first."""
    advice = []
    if not config.gradient_checkpointing:
        advice.append("switch gradient_checkpointing on in Training Settings")
    if config.precision in ("as loaded", "fp32") and model.dtype == torch.float32:
        advice.append("set precision to bf16 there")
    if config.batch_size > 1:
        advice.append("lower batch_size")
    if min(_pixels(model)) > SMALLEST_SIDE:
        advice.append("take smaller pictures")
    return advice


def _size(model: HostDenoiser) -> str:
    (height, width), pixels = model.latest_size, _pixels(model)
    return f"latents of {width}x{height}, pictures of {pixels[1]}x{pixels[0]}"


def _pixels(model: HostDenoiser) -> tuple[int, int]:
    """Return height and width of the latest pictures."""
    multiple = model.patcher.model.latent_format.spacial_downscale_ratio
    return model.latest_size[0] * multiple, model.latest_size[1] * multiple


def _memory(device: torch.device) -> str:
    free, total = (f(device) for f in (comfy.model_management.get_free_memory, comfy.model_management.get_total_memory))
    return f"{_gigabytes(free)} of {_gigabytes(total)} are free on {device}"


def _gigabytes(size: float) -> str:
    return f"{size / 1024**3:.1f} GB"
