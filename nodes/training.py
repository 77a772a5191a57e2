"""What the training nodes share: their common inputs and outputs, and the way from a method to a LoRA."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Sequence

import comfy.model_management
import torch
from comfy_api.latest import io

from ..trainer import data
from ..trainer.config import NetworkConfig, TrainingConfig
from ..trainer.data import TrainingExample
from ..trainer.presets import Preset
from ..trainer.processes import join
from . import host, stopping
from .files import LoRAModel
from .inputs import check_values, seed_input
from .preview import Preview
from .progress import TrainingProgress
from .results import state_of
from .settings import Network, Settings
from .together import results_of, told


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
        seed_input("Of everything random. The same seed gives the same LoRA."),
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
        LoRAModel.Input(
            "lora",
            optional=True,
            tooltip="A LoRA to go on from, of any program. One of ours goes on at its step, with the optimizer's state while that "
            "is on disk, until it has `steps` in all; any other starts a training from its weights. Unwired network: the LoRA's own.",
        ),
        Preview.Input(
            "preview",
            optional=True,
            tooltip="From Preview Settings: samples on the node while it trains. Unwired: none.",
        ),
    ]


HIDDEN = [io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo]


def model_output() -> io.Output:
    return io.Model.Output("model", tooltip="The model with the LoRA on it, ready to sample.")


def lora_outputs(lora: str = "Goes into Save LoRA, or into the host's Load LoRA Model.") -> list[io.Output]:
    return [
        LoRAModel.Output("lora", tooltip=lora),
        io.Custom("LOSS_MAP").Output("loss", tooltip="Goes into Plot Loss."),
    ]


class TrainingNode:
    """What training nodes do alike: take a result from disk where the same was trained before, else train.

    Beside `define_schema` a node has `prepare(cls, **inputs) -> host.Training`.
    """

    @classmethod
    def execute(cls, preview: host.Preview | None = None, **inputs: Any) -> io.NodeOutput:
        check_values(cls, {**inputs, "preview": preview})
        processes = join(comfy.model_management.get_torch_device())
        results = results_of(cls, inputs, processes)
        progress = TrainingProgress(cls, the_one(inputs["steps"]), results)
        finished = told(results.recall(), processes)
        if finished is not None:
            progress.recall(finished[1])
        else:
            preview = the_one(preview) if processes.is_first else None
            training = replace(cls.prepare(**inputs), preview=preview, processes=processes)
            results.check_folder()
            state = processes.tell(results.unfinished() or (state_of(training.lora) if training.lora else None))
            stopping.begin(cls.hidden.unique_id)
            try:
                finished = told(host.train_lora(training, progress, results.keep, state), processes)
            finally:
                stopping.end(cls.hidden.unique_id)
                progress.end()
        lora, history = finished
        models = [host.with_lora(the_one(inputs["model"]), lora)]
        if "clip" in inputs:
            models.append(host.clip_with_lora(inputs["clip"], lora))
        loss = {"name": results.name, "loss": history.losses, "learning_rate": history.learning_rates}
        return io.NodeOutput(*models, lora, loss)

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> int:
        return stopping.count(cls.hidden.unique_id)


def configs(
    preset: Preset,
    network: NetworkConfig | None,
    settings: TrainingConfig | None,
    lora: dict[str, torch.Tensor] | None,
    training: dict[str, Any],
) -> tuple[NetworkConfig | None, TrainingConfig]:
    """Return what is wired, else the preset, with the node's own steps, batch_size, learning_rate and seed.

    Where a LoRA is trained on and no network is wired, there is no network: the LoRA's own is taken.
    """
    return network or (None if lora else preset.network), replace(settings or preset.training, **training)


def the_one(value: Any) -> Any:
    """Return what comes alone, or alone in a list."""
    return value[0] if isinstance(value, (list, tuple)) else value


def draw_batches(examples: Sequence[TrainingExample], config: TrainingConfig, repeats: Sequence[int] | None = None):
    """Yield batches of indices into the examples, of one size of latents each, by the config's seed."""
    generator = torch.Generator().manual_seed(config.seed)
    return data.draw_batches([e.latent.shape for e in examples], config.batch_size, generator, repeats)


def size_of(image: torch.Tensor) -> str:
    """Return the size of a picture (H, W, 3) in words, width first."""
    return f"{image.shape[1]}x{image.shape[0]}"
