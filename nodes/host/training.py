"""Training inside the host: a MODEL is loaded, trained on, and left as it was."""

from __future__ import annotations

import logging
import time
import traceback
from dataclasses import dataclass
from typing import Callable, Protocol

import torch

from ...trainer.blocks import adaptable_blocks
from ...trainer.config import NetworkConfig, TrainingConfig
from ...trainer.denoiser import FlowPrediction
from ...trainer.files import LoRAWeights, training_metadata
from ...trainer.history import History
from ...trainer.loop import StopTraining, TrainingRun
from ...trainer.methods import Method
from ...trainer.network import LoRANetwork
from ...trainer.processes import ALONE, Processes
from ...trainer.state import State
from .denoiser import HostDenoiser, Patcher
from .loading import load, open_training
from .lora import model_family
from .memory import TooLittleMemory, is_out_of_memory, let_go, too_large_a_model, too_large_a_step
from .network import create_network
from .preview import Preview, Previewer
from .text_encoder import Clip

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Training:
    """One training of a MODEL.

    model: as it is in training, with a copy machine on it where the method wants one
    network: which layers and how large; None takes what `lora` has
    labels: added to the metadata of the LoRA
    clip: whose text encoder is trained too where the network has BASE
    lora: to start from
    preview: what to sample on the way, if anything
    base: the MODEL to sample from, where it is not the one in training
    processes: that train together
    """

    model: Patcher
    network: NetworkConfig | None
    config: TrainingConfig
    method: Method
    labels: dict[str, str]
    clip: Clip | None = None
    lora: dict[str, torch.Tensor] | None = None
    preview: Preview | None = None
    base: Patcher | None = None
    processes: Processes = ALONE


class Progress(Protocol):
    """What a training tells while it goes on. What it raises ends the training."""

    def begin(self, layers: int, parameters: int, blocks: list[str], history: History) -> None:
        """Be told of the size of the LoRA, of the blocks that the model has, and of the steps that are done already."""

    def __call__(self, step: int, loss: float, learning_rate: float) -> None:
        """Be told of a step that is done."""

    def show(self, step: int, samples: torch.Tensor) -> None:
        """Be given samples without and with the LoRA after a step, one picture (H, 2W, 3) in [0, 1]."""


# What is left on disk: the LoRA, its history, its state if it has a whole one, and whether `save_every` asks for it. Returns
# where the LoRA is then.
Keep = Callable[[LoRAWeights, History, State | None, bool], object]


def train_lora(
    training: Training, progress: Progress, keep: Keep, state: State | None = None
) -> tuple[LoRAWeights, History]:
    """Train a LoRA; return its weights and what each step told.

    keep: is given the LoRA, its history and its state at the end, at an early end too, and every `save_every` steps. Where
        it raises, a warning says so and the training goes on: what was trained is worth more than its file
    state: of a training that ended early, to go on from

    Raises TooLittleMemory where the training does not fit.
    """
    try:
        with open_training(training.model, training.config.gradient_checkpointing, training.clip) as (model, layers):
            return _train(training, model, layers, progress, keep, state)
    except TooLittleMemory as error:
        traceback.clear_frames(error.__traceback__)
        raise
    except BaseException as error:
        let_go(error)
        if is_out_of_memory(error):
            raise too_large_a_model(training.model) from error
        raise


def _train(
    training: Training,
    model: HostDenoiser,
    layers: torch.nn.Module,
    progress: Progress,
    keep: Keep,
    state: State | None,
) -> tuple[LoRAWeights, History]:
    started, config = time.time(), training.config
    _tell_what_does_nothing(config, model)
    _check_work_for(training.processes, config)
    network = create_network(training.network, training.lora, config.seed, training.model, training.clip, layers)
    run = TrainingRun(model, network, training.method, config, training.processes)
    if state is not None:
        run.go_on(state)
    take_samples = _sampling(training, model.patcher, network)

    def keep_all(otherwise: str, milestone: bool = False) -> tuple[LoRAWeights, object]:
        metadata = training_metadata(network.config, config, model_family(training.model), started)
        lora = LoRAWeights(run.weights(), {**metadata, **training.labels})
        try:
            return lora, keep(lora, run.history, run.state(), milestone)
        except Exception as error:
            logger.warning("Step %d of the training is not kept: %s %s", len(run.history), str(error), otherwise)
            return lora, None

    def on_step(step: int, loss: float, learning_rate: float) -> None:
        progress(step, loss, learning_rate)
        if config.save_every and step % config.save_every == 0 and step < config.steps:
            keep_all("The training goes on, and tries again at the next save_every.", milestone=True)
        take_samples(step, run, progress)

    progress.begin(*network.size(), adaptable_blocks(layers, network.config), run.history)
    try:
        run.train(on_step)
    except StopTraining:
        logger.info("The training was stopped after step %d of %d.", len(run.history), config.steps)
    except BaseException as error:  # cancelling is one, too
        let_go(error)  # of what the step took, some may be needed to keep the LoRA
        file = keep_all("What was learned since it was last kept is lost.")[1] if network.has_learned() else None
        if is_out_of_memory(error) and model.latest_size:
            raise too_large_a_step(config, model, len(run.history), file) from error
        raise
    return keep_all("The graph goes on with it: save it by Save LoRA.")[0], run.history


def _sampling(
    training: Training, patcher: Patcher, network: LoRANetwork
) -> Callable[[int, TrainingRun, Progress], None]:
    """Return what takes and shows samples after the steps that want them. patcher: the MODEL as it is loaded."""
    if training.preview is None:
        return lambda *_: None
    sampled = patcher
    if training.base is not None:  # the same loaded model, with the patches of the other MODEL
        sampled = patcher.clone()
        sampled.patches, sampled.patches_uuid = training.base.patches, training.base.patches_uuid
    previewer = Previewer(training.preview, sampled, network)
    patchers = [patcher] if training.clip is None else [patcher, training.clip.patcher]

    def take_samples(step: int, run: TrainingRun, progress: Progress) -> None:
        if previewer.is_due(step):
            samples = previewer.sample(run.averaged)
            load(patchers)  # the VAE may have needed its place
            if samples is not None:
                progress.show(step, samples)

    return take_samples


def _check_work_for(processes: Processes, config: TrainingConfig) -> None:
    if config.batch_size < processes.count:
        raise ValueError(
            f"batch_size is {config.batch_size} and {processes.count} processes share each batch, so some would have nothing "
            f"to do: set batch_size to {processes.count} or more, or start fewer processes."
        )


def _tell_what_does_nothing(config: TrainingConfig, model: HostDenoiser) -> None:
    if config.snr_gamma and isinstance(model.parameterization, FlowPrediction):
        logger.info("snr_gamma has no effect on this model: it predicts a flow, for which there is no min-SNR weight.")
    if config.fixed_timestep_in_batch and config.batch_size == 1:
        logger.info("fixed_timestep_in_batch has no effect on batches of 1.")
