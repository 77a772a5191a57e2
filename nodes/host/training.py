"""Training inside the host: a MODEL is loaded, trained on, and left as it was."""

from __future__ import annotations

import time
from contextlib import contextmanager, nullcontext
from typing import Callable, Iterator

import comfy.model_management
import torch

from ...trainer.blocks import choose_layers
from ...trainer.checkpointing import checkpointed
from ...trainer.config import NetworkConfig, TrainingConfig
from ...trainer.files import LoRAWeights, training_metadata
from ...trainer.loop import OnStep, train
from ...trainer.methods import Method
from ...trainer.network import LoRANetwork
from .denoiser import HostDenoiser, Patcher
from .lora import lora_key_of, model_family


@contextmanager
def open_training(patcher: Patcher, gradient_checkpointing: bool) -> Iterator[tuple[HostDenoiser, torch.nn.Module]]:
    """Load a MODEL for training and give its Denoiser and the network inside it until the block ends.

    Whatever ends the block, the model is as it was: weights, flags, layers.
    """
    with torch.inference_mode(False), torch.enable_grad():
        if patcher.is_dynamic():  # its weights leave the device right after each layer, which autograd must not see
            patcher = _load_plain(patcher)
        # More memory than there is: every other model leaves the device.
        comfy.model_management.load_models_gpu([patcher], memory_required=1e20, force_full_load=True)
        _make_normal(patcher.model)
        patcher.pre_run()
        try:
            layers = patcher.model.diffusion_model
            with _training_flag(), checkpointed(layers) if gradient_checkpointing else nullcontext():
                yield HostDenoiser(patcher), layers
        finally:
            patcher.cleanup()


def train_lora(
    patcher: Patcher,
    network_config: NetworkConfig,
    config: TrainingConfig,
    method: Method,
    on_step: OnStep,
    keep: Callable[[LoRAWeights], object],
    labels: dict[str, str],
) -> tuple[LoRAWeights, list[float]]:
    """Train a new LoRA for a MODEL by a method; return its weights and the loss of each step.

    Where the training ends early, `keep` is given the LoRA so far. `labels` are added to its metadata.
    """
    started = time.time()
    with open_training(patcher, config.gradient_checkpointing) as (model, layers):
        network = LoRANetwork(layers, network_config, lora_key_of(patcher), config.seed)

        def trained() -> LoRAWeights:
            metadata = training_metadata(network_config, config, model_family(patcher), started)
            return LoRAWeights(network.weights(), {**metadata, **labels})

        try:
            losses = train(model, network, method, config, on_step)
        except BaseException:  # cancelling is one, too
            if network.has_learned():
                keep(trained())
            raise
    return trained(), losses


def check_network(patcher: Patcher, config: NetworkConfig) -> None:
    """Raise ValueError if a network cannot be made for a MODEL, before anything is encoded for it."""
    choose_layers(patcher.model.diffusion_model, config)


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
                        copy = tensor.clone()
                        copies[id(tensor)] = torch.nn.Parameter(copy, False) if tensors is module._parameters else copy
                    tensors[name] = copies[id(tensor)]


@contextmanager
def _training_flag() -> Iterator[None]:
    """Keep the host from fused kernels that go past the layers, and with them past the adapters."""
    before = comfy.model_management.in_training
    comfy.model_management.in_training = True
    try:
        yield
    finally:
        comfy.model_management.in_training = before
