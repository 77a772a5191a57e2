"""Loads a MODEL, and maybe a CLIP, for training, and restores it afterwards."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Iterator

import comfy.model_management
import folder_paths
import torch

from ...trainer.checkpointing import checkpointed
from ...trainer.config import TrainingConfig
from ...trainer.in_place import InPlaceGuard
from ...trainer.offload import offloaded
from .fused_kernels import differentiable_kernels
from .host_denoiser import HostDenoiser, Patcher
from .quantized_layers import dequantize_in_forward, restore_quantized
from .reloading import is_reloaded, without_dynamic_memory
from .switches import switched
from .text_encoder import Clip

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@contextmanager
def open_model(
    patcher: Patcher, config: TrainingConfig = TrainingConfig(), clip: Clip | None = None
) -> Iterator[tuple[HostDenoiser, torch.nn.Module]]:
    """Load a MODEL for training, and yield its Denoiser and the network inside it until the block ends.

    However the block ends, the model is as it was before: weights, flags, layers. The same applies to a CLIP.
    """
    guard = InPlaceGuard()
    with torch.inference_mode(False), torch.enable_grad():
        patcher = _on_one_gpu(_with_compute_dtype(config.precision, without_dynamic_memory(patcher)))
        patchers = patchers_of(patcher, clip)
        layers = patcher.model.diffusion_model
        try:
            load(patchers, config.offload)
            with ExitStack() as stack:
                stack.enter_context(_current_device(patcher.load_device))
                stack.enter_context(_full_accumulation())
                stack.enter_context(switched("in_training", True))  # no fused kernels, that go past the adapters
                # No buffers for streamed weights (--novram): they are used again before the backward pass needs them.
                stack.enter_context(switched("NUM_STREAMS", 0))
                stack.enter_context(differentiable_kernels())
                stack.enter_context(_frozen([each.model for each in patchers]))
                stack.enter_context(_offloaded_to_file(patcher, config.offload))
                if config.gradient_checkpointing:
                    stack.enter_context(checkpointed(layers, guard))
                yield HostDenoiser(patcher, guard), layers
        finally:
            torch.zeros((), requires_grad=True).backward()  # makes torch free the rest of an interrupted backward pass
            patcher.cleanup()
            patcher.unpatch_model(device_to=None, unpatch_weights=False)  # restores the compute dtype
            for each in patchers:
                if not is_reloaded(each):
                    restore_quantized(each)


def load(patchers: list[Patcher], offload: str = "none") -> None:
    """Load models onto the device, and make their tensors usable for autograd.

    offload: "none" loads all weights; else those of a GPU wait in main memory, and each layer takes its own when it computes
    """
    streamed = offload != "none" and not is_on_cpu(patchers[0])
    if streamed:  # the host moves no weight away from the device when it loads a model that is there already
        comfy.model_management.unload_all_models()
    for each in patchers:
        each.unpin_all_weights()  # before they are replaced, as what is freed must not stay pinned
        _replace_inference_tensors(each.model)
    with switched("vram_state", comfy.model_management.VRAMState.NO_VRAM) if streamed else nullcontext():
        # More memory than any device has, so that all other models are unloaded.
        comfy.model_management.load_models_gpu(patchers, memory_required=1e20, force_full_load=not streamed)
    for each in patchers:
        _replace_inference_tensors(each.model)  # those that loading has made
        dequantize_in_forward(each.model)
    # Where the host streams weights it leaves the table of noise levels outside, and would fetch each noise level to look it up.
    patchers[0].model.model_sampling.to(patchers[0].load_device)
    patchers[0].pre_run()


def _offloaded_to_file(patcher: Patcher, offload: str) -> AbstractContextManager[None]:
    """Let the weights of a model on the CPU wait in ComfyUI's temporary folder."""
    if offload == "none" or not is_on_cpu(patcher):
        return nullcontext()
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    return offloaded(patcher.model.diffusion_model, offload, folder)


def is_on_cpu(patcher: Patcher) -> bool:
    """Return whether a model computes on the CPU."""
    return comfy.model_management.is_device_cpu(patcher.load_device)


def patchers_of(patcher: Patcher, clip: Clip | None) -> list[Patcher]:
    """Return the MODEL and the patcher of the CLIP, if there is one."""
    return [patcher] if clip is None else [patcher, clip.patcher]


def _with_compute_dtype(precision: str, patcher: Patcher) -> Patcher:
    """Return the MODEL set to compute in a precision. Autocast would not do: the host casts to the dtype it has loaded."""
    loaded = patcher.get_model_object("manual_cast_dtype") or patcher.model.get_dtype()
    if DTYPES.get(precision, loaded) == loaded:
        return patcher
    patcher = patcher.clone()
    patcher.set_model_compute_dtype(DTYPES[precision])
    return patcher


def _on_one_gpu(patcher: Patcher) -> Patcher:
    """Return the MODEL without its copies on other GPUs, which samples would be made with, and which have no LoRA."""
    if not patcher.get_additional_models_with_key("multigpu"):
        return patcher
    patcher = patcher.clone()
    patcher.remove_additional_models("multigpu")
    return patcher


def _current_device(device: torch.device) -> AbstractContextManager[None]:
    """Make a GPU the current one, which kernels that are not PyTorch's run on, until the block ends."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@contextmanager
def _full_accumulation() -> Iterator[None]:
    """Let sums of fp16 products be in float32, also with the host's --fast: small gradients would vanish in them."""
    products = torch.backends.cuda.matmul
    before = getattr(products, "allow_fp16_accumulation", None)  # from PyTorch 2.7 on
    if before:
        products.allow_fp16_accumulation = False
    try:
        yield
    finally:
        if before:
            products.allow_fp16_accumulation = True


@torch.no_grad()
def _replace_inference_tensors(model: torch.nn.Module) -> None:
    """Replace parameters, buffers and other tensors made in inference mode, which autograd rejects, by copies.

    One at a time, so that no more than one tensor is in memory twice. Some modules keep what they have computed while
    sampling, such as rotary embeddings, in plain attributes. Before a model moves to another device, as afterwards such a
    tensor is neither one of inference mode nor one that autograd takes.
    """
    copies: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers, vars(module)):
            for name, tensor in tensors.items():
                if isinstance(tensor, torch.Tensor) and _is_of_inference_mode(tensor):
                    if id(tensor) not in copies:
                        copy = tensor.clone()
                        copies[id(tensor)] = (
                            torch.nn.Parameter(copy, tensor.requires_grad) if tensors is module._parameters else copy
                        )
                    tensors[name] = copies[id(tensor)]


def _is_of_inference_mode(tensor: torch.Tensor) -> bool:
    """Return whether a tensor was made in inference mode, also if it has been moved to another device outside of it."""
    try:
        tensor._version  # noqa: B018
    except RuntimeError:  # inference tensors have none
        return True
    return tensor.is_inference()


@contextmanager
def _frozen(models: list[torch.nn.Module]) -> Iterator[None]:
    """Turn off requires_grad, which some loaders leave on, for the models' own weights until the block ends."""
    trainable = [parameter for model in models for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
