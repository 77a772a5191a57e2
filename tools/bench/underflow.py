"""The share of a gradient that underflows to zero in fp16, by the factor on the loss.

A CPU computes fp16 a hundred times slower than fp32. There each layer's gradient is rounded to fp16 on its way back instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from pack.nodes import host
from pack.trainer.blocks import choose_layers
from pack.trainer.config import NetworkConfig, TrainingConfig
from pack.trainer.loss import step_loss
from pack.trainer.methods.denoise import Denoise
from pack.trainer.network import LoRANetwork
from pack.trainer.training_example import TrainingExample

from .subjects import Subject

FACTORS = {"1 (fp32 in 0.1.0)": 1.0, "2^10 (as loaded in 0.1.0)": 2.0**10, "2^16 (now)": 2.0**16}
NEAR_ZERO = TrainingConfig(batch_size=1, snr_gamma=5.0, max_timestep=20, gradient_checkpointing=True)


def measure_underflow(subject: Subject, side: int) -> dict[str, tuple[float, float]]:
    """Return the shares of the entries of `up`'s gradient that are zero or not finite, by the factor on the loss.

    side: pixels of the images that the loss is a mean over; the model may compute smaller ones
    """
    latents = host.scale_latents(subject.model, list(subject.latents[:1]))
    example = TrainingExample(latents[0].clone(), host.read_conditioning(subject.prompts[0])[0])
    method, rng = Denoise([example], iter([[0]]), NEAR_ZERO), torch.Generator().manual_seed(0)
    on_cpu = subject.model.load_device.type == "cpu"
    with host.open_model(subject.model, replace(NEAR_ZERO, precision="fp32" if on_cpu else "fp16")) as (model, layers):
        config = NetworkConfig("lierla", 16, 16.0)
        network = LoRANetwork.create(choose_layers(layers, config), config, str, 0)
        network.to(model.device)
        with _rounding(layers, on_cpu), network.injected(), network.scaled(1.0):
            loss = step_loss(method.run_step(model, network, 0, rng), model, NEAR_ZERO)
            loss = loss * (subject.latents[0][0].numel() * 64 / side**2)
            return {name: _shares(network, loss * factor) for name, factor in FACTORS.items()}


@contextmanager
def _rounding(layers: torch.nn.Module, enabled: bool) -> Iterator[None]:
    """Round the gradient of each layer's output to fp16 until the block ends."""

    def watch(module: torch.nn.Module, inputs: tuple, output: object) -> None:
        if isinstance(output, torch.Tensor) and output.requires_grad:
            output.register_hook(lambda gradient: gradient.half().float())

    handles = [
        module.register_forward_hook(watch) for module in layers.modules() if enabled and "weight" in module._parameters
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _shares(network: LoRANetwork, loss: torch.Tensor) -> tuple[float, float]:
    network.zero_grad()
    loss.backward(retain_graph=True)
    # `down` has no gradient while `up` is zero
    entries = torch.cat([p.grad.half().flatten() for p in network.parameters() if p.grad is not None and not p.any()])
    return (entries == 0).double().mean().item(), (~entries.isfinite()).double().mean().item()
