"""What the training nodes share: their common inputs and outputs, and the way from a method to a LoRA."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Sequence

import torch
from comfy_api.latest import io

from ..trainer import data
from ..trainer.config import NetworkConfig, TrainingConfig
from ..trainer.data import TrainingExample
from ..trainer.methods import Method
from ..trainer.presets import Preset
from . import host
from .files import LoRAModel, keep_unfinished
from .progress import TrainingProgress
from .settings import Network, Settings


def model_input(verb: str) -> io.Input:
    return io.Model.Input(
        "model", tooltip=f"The model to {verb}. It stays as it is; LoRAs already on it are part of it."
    )


def vae_input() -> io.Input:
    return io.Vae.Input("vae", tooltip="Encodes the pictures.")


def training_inputs(
    preset: Preset, good_steps: str, good_learning_rate: str, learning_rate: float | None = None
) -> list[io.Input]:
    """Return the inputs that every training has, with a method's values."""
    network, training = preset.network, preset.training
    return [
        io.Int.Input(
            "steps", default=training.steps, min=1, max=1_000_000, tooltip=f"Updates of the LoRA. {good_steps}"
        ),
        io.Int.Input(
            "batch_size",
            default=training.batch_size,
            min=1,
            max=256,
            tooltip="Examples a step. More learns more evenly and needs more memory.",
        ),
        io.Float.Input(
            "learning_rate",
            default=training.learning_rate if learning_rate is None else learning_rate,
            min=0,
            max=1,
            step=1e-6,
            round=False,
            tooltip=f"Size of each update. {good_learning_rate} Lower if pictures come out burnt, higher if nothing is learned.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**63 - 1,
            control_after_generate=False,
            tooltip="Of everything random. The same seed gives the same LoRA.",
        ),
        Network.Input(
            "network",
            optional=True,
            tooltip=f"From LoRA Network. Unwired: {network.network_type}, rank {network.rank}, alpha {network.alpha:g}.",
        ),
        Settings.Input(
            "settings",
            optional=True,
            tooltip=f"From Training Settings. Unwired: {training.optimizer}, {training.lr_scheduler}, "
            f"min-SNR gamma {training.snr_gamma:g}, timesteps {training.min_timestep} to {training.max_timestep}.",
        ),
    ]


def model_output() -> io.Output:
    return io.Model.Output("model", tooltip="The model with the LoRA on it, ready to sample.")


def lora_outputs(lora: str = "Goes into Save LoRA, or into the host's Load LoRA Model.") -> list[io.Output]:
    return [
        LoRAModel.Output("lora", tooltip=lora),
        io.Custom("LOSS_MAP").Output("loss", tooltip="Goes into Plot Loss."),
    ]


def configs(
    preset: Preset, network: NetworkConfig | None, settings: TrainingConfig | None, training: dict[str, Any]
) -> tuple[NetworkConfig, TrainingConfig]:
    """Return what is wired, else the preset, with the node's own steps, batch_size, learning_rate and seed."""
    return network or preset.network, replace(settings or preset.training, **training)


def train_on_model(
    node: type[io.ComfyNode],
    model: Any,
    network: NetworkConfig,
    config: TrainingConfig,
    method: Method,
    labels: dict[str, str],
    trained_on: Any = None,
) -> tuple[Any, dict[str, torch.Tensor], dict[str, list[float]]]:
    """Train a LoRA and return the model with it, the LoRA and its losses.

    labels: what the LoRA's file shall say beside the settings
    trained_on: the model as it is in training, if not bare
    """
    progress = TrainingProgress(node.hidden.unique_id, config.steps)
    lora, losses = host.train_lora(trained_on or model, network, config, method, progress, keep_unfinished, labels)
    return host.with_lora(model, lora), lora, {"loss": losses}


def draw_batches(examples: Sequence[TrainingExample], config: TrainingConfig, repeats: Sequence[int] | None = None):
    """Yield batches of indices into the examples, of one size of latents each, by the config's seed."""
    generator = torch.Generator().manual_seed(config.seed)
    return data.draw_batches([e.latent.shape for e in examples], config.batch_size, generator, repeats)


def size_of(image: torch.Tensor) -> str:
    """Return the size of a picture (H, W, 3) in words, width first."""
    return f"{image.shape[1]}x{image.shape[0]}"
