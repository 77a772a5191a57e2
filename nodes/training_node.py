"""What all training nodes share: their common inputs and outputs, and the run of a training."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any, Sequence

import comfy.model_management
import torch
from comfy_api.latest import io

from ..trainer.config import NetworkConfig, TrainingConfig
from ..trainer.dataset import batches
from ..trainer.distributed import Peers, join
from ..trainer.gradient_start import check_gradient_start
from ..trainer.history import History
from ..trainer.lora_file import LoRAWeights
from ..trainer.training_example import TrainingExample
from . import host, preparing, stopping
from .host import preparation
from .input_checks import check_values, seed_input
from .load_lora import LoRAModel
from .lora_network import Network
from .preview_settings import Preview
from .progress import TrainingProgress
from .resume import IF_POSSIBLE, Start, choose_start, label_of
from .run_store import RunStore
from .training_settings import Settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preset:
    """Holds a method's defaults for unconnected network and settings: good values for models such as SD1 and SDXL."""

    network: NetworkConfig
    training: TrainingConfig


def model_input(verb: str) -> io.Input:
    """Return the input for the model. verb: what the method does with it"""
    return io.Model.Input(
        "model", tooltip=f"The model to {verb}. It is not modified. LoRAs already applied to it count as part of it."
    )


def vae_input() -> io.Input:
    """Return the input for the VAE."""
    return io.Vae.Input("vae", tooltip="Encodes the images.")


def training_inputs(
    preset: Preset,
    good_steps: str,
    good_learning_rate: str,
    learning_rate: float | None = None,
    least_steps: int = 1,
) -> list[io.Input]:
    """Return the inputs that all training nodes have, with a method's defaults and advice."""
    network, training = preset.network, preset.training
    return [
        io.Int.Input(
            "steps",
            default=training.steps,
            min=least_steps,
            max=1_000_000,
            tooltip=f"Number of training steps. {good_steps}",
        ),
        io.Int.Input(
            "batch_size",
            default=training.batch_size,
            min=1,
            max=256,
            tooltip="Examples per step. Larger batches train more evenly but need more VRAM. 1 to 4 is usual.",
        ),
        io.Float.Input(
            "learning_rate",
            default=training.learning_rate if learning_rate is None else learning_rate,
            min=0,
            max=1,
            step=1e-6,
            round=False,
            tooltip=f"Size of each update. {good_learning_rate} Lower it if images look burnt, raise it if nothing is learned.",
        ),
        seed_input("Seed for all random numbers. The same seed gives the same LoRA."),
        Network.Input(
            "network",
            optional=True,
            tooltip=f"From LoRA Network. Unconnected: {network.network_type}, rank {network.rank}, alpha {network.alpha:g}.",
        ),
        Settings.Input(
            "settings",
            optional=True,
            tooltip=f"From Training Settings. Unconnected: {training.optimizer}, {training.lr_scheduler}, "
            f"min-SNR gamma {training.snr_gamma:g}, timesteps {training.min_timestep} to {training.max_timestep}.",
        ),
        LoRAModel.Input(
            "lora",
            optional=True,
            tooltip="A LoRA to continue, made by any program. A LoRA of this pack resumes at its step if its training state is still "
            "on disk: steps is then the total. Any other LoRA provides the weights of a new training of all steps. resume "
            "chooses, and the node says which it was. With network unconnected, the LoRA keeps its own layers and rank.",
        ),
        Preview.Input(
            "preview",
            optional=True,
            tooltip="From Preview Settings: shows sample images on the node during training. Unconnected: none.",
        ),
    ]


HIDDEN = [io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo]


def model_output() -> io.Output:
    """Return the output for the model with the LoRA."""
    return io.Model.Output("model", tooltip="The model with the LoRA applied, ready to sample.")


def lora_outputs(lora: str = "Goes into Save LoRA, or into ComfyUI's Load LoRA Model.") -> list[io.Output]:
    """Return the outputs for the LoRA and its loss. lora: tooltip of the first"""
    return [
        LoRAModel.Output("lora", tooltip=lora),
        io.Custom("LOSS_MAP").Output("loss", tooltip="Goes into Plot Loss."),
    ]


class TrainingNode:
    """Runs a training, or loads its result from disk if the same training has finished before.

    Besides `define_schema`, a training node has a `preset` and `prepare(cls, **inputs) -> host.Job`.
    """

    @classmethod
    def execute(
        cls, preview: Any = None, resume: Any = IF_POSSIBLE, resume_stopped: Any = False, **inputs: Any
    ) -> io.NodeOutput:
        """Train the LoRA, and return the models with it, the LoRA and its losses."""
        check_values(cls, {**inputs, "preview": preview, "resume": resume, "resume_stopped": resume_stopped})
        with preparing.shown(cls):
            name, lora, history = cls._recall_or_train(inputs, unwrap(preview), unwrap(resume), unwrap(resume_stopped))
        models = [host.with_lora(unwrap(inputs["model"]), lora)]
        if "clip" in inputs:
            models.append(host.clip_with_lora(inputs["clip"], lora))
        loss = {
            "name": name,
            "loss": history.finite_losses(),
            "learning_rate": history.learning_rates,
            "skipped": history.skipped,
            "validation": [list(point) for point in history.validation.items()],
        }
        return io.NodeOutput(*models, lora, loss)

    @classmethod
    def _recall_or_train(
        cls, inputs: dict[str, Any], preview: host.Preview | None, resume: str, resume_stopped: bool
    ) -> tuple[str, LoRAWeights, History]:
        """Return the training's name, its LoRA and its history."""
        preparation.announce(preparation.RESULTS)
        peers = join(comfy.model_management.get_torch_device())
        identity = {**inputs, "resumed": label_of(unwrap(inputs.get("lora")), resume)}
        store = RunStore(cls, identity, peers.is_first, resume_stopped)
        progress = TrainingProgress(cls, unwrap(inputs["steps"]), store)
        finished = _broadcast(store.recall(), peers)
        if finished is not None:
            progress.recall(finished[1])
        else:
            job = cls.prepare(**inputs)
            job = replace(
                job, labels=job.labels | store.labels, preview=preview if peers.is_first else None, peers=peers
            )
            job = job if peers.is_first else replace(job, validation=None)
            finished = _train(job, store, progress, cls.hidden.unique_id, resume)
        return store.name, *finished

    @classmethod
    def fingerprint_inputs(cls, resume_stopped: Any = False, **inputs: Any) -> int:
        """Return a number that changes when a training that shall resume is stopped, so that ComfyUI runs the node again."""
        return 0 if unwrap(resume_stopped) is False else stopping.stop_count(cls.hidden.unique_id)


def _train(
    job: host.Job, store: RunStore, progress: TrainingProgress, node_id: str, resume: str
) -> tuple[LoRAWeights, History]:
    """Train a LoRA, and return it with its history. However training ends, what was learned is saved."""
    store.check_folder()
    with progress.shown(), stopping.stoppable(node_id), host.open_session(job, store.save) as session:
        # The first process has the files, and gives its state to the others.
        start = choose_start(job, session, store.unfinished(), resume) if job.peers.is_first else Start()
        session.load_state(start.state)
        progress.origin = start.origin
        progress.begin(session)
        for step in session.steps():
            progress.report(step)
            progress.validate(step, session.validate(step))
            if step.is_milestone:
                store.save_milestone(session)
            progress.show(step, session.sample(step))
            if stopping.is_requested(node_id):
                logger.info("Training was stopped after step %d of %d.", step.number, job.config.steps)
                store.mark_stopped()
                break
    return session.lora(), session.history


def _broadcast(finished: tuple[LoRAWeights, History] | None, peers: Peers) -> tuple[LoRAWeights, History] | None:
    """Return in all processes what the first one has loaded from disk."""
    if peers.count == 1:
        return finished
    packed = finished and [dict(finished[0]), finished[0].metadata, *vars(finished[1]).values()]
    packed = peers.broadcast(packed)
    return packed and (LoRAWeights(*packed[:2]), History(*packed[2:]))


def merge_configs(
    preset: Preset,
    network: NetworkConfig | None,
    settings: TrainingConfig | None,
    lora: dict[str, torch.Tensor] | None,
    training: dict[str, Any],
) -> tuple[NetworkConfig | None, TrainingConfig]:
    """Return the connected network and settings, or else the preset's, with the node's steps, batch_size, learning_rate, seed.

    The network is None, which means that of the LoRA, if a LoRA is connected and no network. Raises ValueError for settings
    that do not go together.
    """
    network, config = network or (None if lora else preset.network), replace(settings or preset.training, **training)
    if network and not lora:
        check_gradient_start(config, network)
    return network, config


def unwrap(value: Any) -> Any:
    """Return a value, or the first item if it is a list."""
    return value[0] if isinstance(value, (list, tuple)) else value


def draw_batches(examples: Sequence[TrainingExample], config: TrainingConfig, repeats: Sequence[int] | None = None):
    """Yield batches of indices into the examples, each of one latent size, drawn with the config's seed."""
    sizes, generator = [example.latent.shape for example in examples], torch.Generator().manual_seed(config.seed)
    most = max(sum(count for other, count in zip(sizes, repeats or repeat(1)) if other == size) for size in set(sizes))
    if most < config.batch_size:
        logger.info("batch_size %d acts as %d: no more examples have the same size.", config.batch_size, most)
    return batches.draw_batches(sizes, config.batch_size, generator, repeats)


def format_size(image: torch.Tensor) -> str:
    """Return the size of an image (H, W, 3) as text, width first: "512x768"."""
    return f"{image.shape[1]}x{image.shape[0]}"
