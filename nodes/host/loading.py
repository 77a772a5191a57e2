"""A MODEL, and a CLIP with it, loaded so that autograd takes it, and left as it was."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import Iterator

import comfy.model_management
import torch

from ...trainer.checkpointing import checkpointed
from .denoiser import HostDenoiser, Patcher
from .text_encoder import Clip, copied_residuals


@contextmanager
def open_training(
    patcher: Patcher, gradient_checkpointing: bool, clip: Clip | None = None
) -> Iterator[tuple[HostDenoiser, torch.nn.Module]]:
    """Load a MODEL for training and give its Denoiser and the network inside it until the block ends.

    Whatever ends the block, the model is as it was: weights, flags, layers. A CLIP is loaded and left likewise.
    """
    with torch.inference_mode(False), torch.enable_grad():
        if patcher.is_dynamic():  # its weights leave the device right after each layer, which autograd must not see
            patcher = _load_plain(patcher)
        patchers = [patcher] if clip is None else [patcher, clip.patcher]
        layers = patcher.model.diffusion_model
        try:
            load(patchers)
            with ExitStack() as stack:
                stack.enter_context(_training_flag())
                stack.enter_context(_frozen([each.model for each in patchers]))
                if gradient_checkpointing:
                    stack.enter_context(checkpointed(layers))
                if clip is not None:
                    stack.enter_context(copied_residuals(clip))
                yield HostDenoiser(patcher), layers
        finally:
            torch.zeros((), requires_grad=True).backward()  # lets torch drop what a broken backward pass had left to do
            patcher.cleanup()
            for each in patchers:
                _give_back_quantized(each.model)


def load(patchers: list[Patcher]) -> None:
    """Bring models whole to the device, and make them such that autograd takes them."""
    # More memory than there is: every other model leaves the device.
    comfy.model_management.load_models_gpu(patchers, memory_required=1e20, force_full_load=True)
    for each in patchers:
        _make_normal(each.model)
    patchers[0].pre_run()


def _load_plain(patcher: Patcher) -> Patcher:
    """Load the model's file again without the host's dynamic memory, the LoRAs of the MODEL on it."""
    if patcher.cached_patcher_init is None:
        raise ValueError(
            "This MODEL comes from a node that cannot load it again, as training needs with ComfyUI's dynamic memory: "
            "load it with Load Checkpoint or Load Diffusion Model, or start ComfyUI with --disable-dynamic-vram."
        )
    return patcher.clone(disable_dynamic=True)


@torch.no_grad()
def _make_normal(model: torch.nn.Module) -> None:
    """Exchange the parameters and buffers that were made in inference mode for copies, one at a time.

    Autograd refuses inference tensors. The values stay the same, and no more than one tensor is held twice.
    """
    copies: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and tensor.is_inference():
                    if id(tensor) not in copies:
                        copy, kept = tensor.clone(), tensor.requires_grad
                        copies[id(tensor)] = torch.nn.Parameter(copy, kept) if tensors is module._parameters else copy
                    tensors[name] = copies[id(tensor)]


@torch.inference_mode()
def _give_back_quantized(model: torch.nn.Module) -> None:
    """Exchange quantized parameters for inference tensors again, one at a time: the host cannot move others in sampling."""
    for module in model.modules():
        for name, tensor in module._parameters.items():
            if tensor is not None and type(tensor.data) is not torch.Tensor and not tensor.is_inference():
                module._parameters[name] = torch.nn.Parameter(tensor.clone(), False)


@contextmanager
def _frozen(models: list[torch.nn.Module]) -> Iterator[None]:
    """Let the models' own weights have no gradients, which some loaders ask for, until the block ends."""
    learning = [parameter for model in models for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


@contextmanager
def _training_flag() -> Iterator[None]:
    """Keep the host from fused kernels that go past the layers, and with them past the adapters."""
    before = comfy.model_management.in_training
    comfy.model_management.in_training = True
    try:
        yield
    finally:
        comfy.model_management.in_training = before
