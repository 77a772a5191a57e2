"""A training session: loads a MODEL, attaches a LoRA, trains it step by step, and restores the MODEL."""

from __future__ import annotations

import logging
import time
import traceback
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Callable, Generator, Iterator

import torch

from ...trainer.blocks import adaptable_blocks
from ...trainer.config import NetworkConfig, TrainingConfig
from ...trainer.denoiser import FlowPrediction
from ...trainer.distributed import ALONE, Peers
from ...trainer.history import History
from ...trainer.lora_file import STEP, WEIGHTS, LoRAWeights
from ...trainer.lora_metadata import training_metadata
from ...trainer.methods import Method
from ...trainer.methods.closed_form import ClosedForm
from ...trainer.methods.denoise import Denoise
from ...trainer.run import Step, TrainingRun
from ...trainer.state import State
from ...trainer.validation import Validation
from ...trainer.weights_digest import weights_digest
from . import preparation
from .distilled import warn_of_distillation
from .host_denoiser import HostDenoiser, Patcher
from .loading import is_on_cpu, load, open_model, patchers_of
from .lora_import import create_network
from .lora_keys import model_family
from .memory import TooLittleMemory, is_out_of_memory, model_too_large_error, release_frames, step_too_large_error
from .sampling import Preview, Previewer, Sample
from .state_fit import state_fits
from .text_encoder import Clip, held_for_training

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Job:
    """Describes a training.

    model: the MODEL to train, with the copy machine on it if the method uses one
    network: layers and size of the LoRA; None means those of `lora`
    labels: added to the LoRA's metadata
    clip: the CLIP whose text encoder is trained too, or None
    lora: the LoRA to start from, or None
    preview: the samples to make during training, or None
    base: the MODEL to sample from, if it is not `model`
    peers: the processes that train together
    start: what a new LoRA starts from instead of nothing, or None
    validation: the loss on held-out images to measure during training, or None
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
    peers: Peers = ALONE
    start: ClosedForm | None = None
    validation: Validation | None = None


class Session:
    """Runs a job; made by `open_session`.

    blocks: ids of the model's blocks that have layers to adapt
    size: numbers of layers and of parameters of the LoRA
    """

    def __init__(self, job: Job, model: HostDenoiser, layers: torch.nn.Module) -> None:
        _check_batch_size(job.peers, job.config)
        _log_ignored_settings(job.config, model, job.method)
        warn_of_distillation(job.model)
        preparation.announce(preparation.NETWORK)
        self._job, self._model, self._started = job, model, time.time()
        self._network = create_network(job.network, job.lora, job.config.seed, job.model, job.clip, layers)
        self._run = TrainingRun(model, self._network, job.method, job.config, job.peers)
        self._previewer = _previewer(job, model.patcher, self._network)
        self._steps: Generator[Step, None, None] | None = None
        self._hold_text_encoders: Callable[[], None] = lambda: None
        self.blocks, self.size = adaptable_blocks(layers, self._network.config), self._network.size()

    @property
    def history(self) -> History:
        """Return the loss and learning rate of the steps so far."""
        return self._run.history

    def fits(self, state: State) -> bool:
        """Return whether a state of the connected LoRA fits the layers, ranks, alphas and optimizer of this one."""
        return state_fits(state, self._run, self._network, self._job.lora)

    def load_state(self, state: State | None) -> None:
        """Resume from a state, the first process's, or without one begin with the job's start, which may raise ValueError."""
        state = self._job.peers.broadcast(state)
        if state is not None:
            preparation.announce(preparation.STATE)
            self._run.load_state(state)
        elif self._job.start is not None:
            preparation.announce(preparation.CLOSED_FORM)
            self._job.start.begin(self._model, self._network, self._job.config.steps)

    def steps(self) -> Generator[Step, None, None]:
        """Train, and yield each finished step; see TrainingRun.steps."""
        preparation.announce(preparation.FIRST_STEP)
        self._steps = self._take_steps()
        return self._steps

    def _take_steps(self) -> Generator[Step, None, None]:
        try:
            yield from self._run.steps()
        except Exception as error:
            release_frames(error)  # here, before a with statement can keep them alive
            raise

    def validate(self, step: Step) -> float | None:
        """Measure the validation loss, add it to the history and return it; None if it is not due."""
        validation = self._job.validation
        if validation is None or not validation.is_due(step.number):
            return None
        preparation.announce(preparation.VALIDATION)
        with self._run.eval_weights():
            loss = self.history.validation[step.number] = validation.measure(self._model)
        return loss

    def sample(self, step: Step) -> list[Sample] | None:
        """Return the samples of all prompts, or None if none are due."""
        if self._previewer is None or not self._previewer.is_due(step.number):
            return None
        samples = self._previewer.sample(self._run.eval_weights)
        patchers = patchers_of(self._model.patcher, self._job.clip)
        # The VAE may have displaced them, and sampling loads what waits outside the device.
        load(patchers, self._job.config.offload)
        self._hold_text_encoders()
        return samples

    @contextmanager
    def text_encoders_held(self) -> Iterator[None]:
        """Hold the text encoders that are trained as `held_for_training` does until the block ends."""
        with held_for_training(self._job.clip, self._network.layer_names()) as self._hold_text_encoders:
            yield

    def lora(self) -> LoRAWeights:
        """Return the LoRA with the metadata for its file."""
        network, config, family = self._network.config, self._job.config, model_family(self._job.model)
        metadata = training_metadata(network, config, family, self._started) | self._job.labels
        weights = self._run.weights()
        return LoRAWeights(weights, metadata | {STEP: str(len(self.history)), WEIGHTS: weights_digest(weights)})

    def state(self) -> State | None:
        """Return the state for `load_state`, or None if an update was interrupted midway."""
        return self._run.state()

    def has_learned(self) -> bool:
        """Return whether training has changed the LoRA at all."""
        return self._run.has_learned()

    def end(self) -> None:
        """Stop the steps after the latest one."""
        if self._steps is not None:
            self._steps.close()

    def release(self) -> None:
        """Free the LoRA and the model, which would stay in memory as long as an error keeps this session alive."""
        del self._run, self._network, self._model, self._previewer

    def explain(self, error: BaseException, file: object) -> BaseException:
        """Return the error to show the user instead of one that ended the training. file: where the LoRA is saved, or None"""
        if is_out_of_memory(error) and self._model.latest_size:
            return step_too_large_error(self._job.config, self._model, len(self.history), file)
        return error


@contextmanager
def open_session(job: Job, save: Callable[[Session], object]) -> Iterator[Session]:
    """Load a MODEL, attach a LoRA, and yield the session that trains it until the block ends.

    However the block ends, what was learned is saved, and the model is as it was before: weights, flags, layers.

    save: saves a session and returns the LoRA's path, or None if it could not

    Raises TooLittleMemory if the training does not fit into memory.
    """
    preparation.announce(preparation.MODEL)
    try:
        with open_model(job.model, job.config, job.clip) as (model, layers):
            session = Session(job, model, layers)
            with session.text_encoders_held(), _saved(session, save):
                yield session
    except TooLittleMemory as error:
        traceback.clear_frames(error.__traceback__)
        raise
    except BaseException as error:
        release_frames(error)
        if is_out_of_memory(error):
            raise model_too_large_error(job.model, job.config) from error
        raise


@contextmanager
def _saved(session: Session, save: Callable[[Session], object]) -> Iterator[None]:
    """Save a session however the block ends; after an error, only if training has changed the LoRA."""
    try:
        yield
        session.end()
    except BaseException as error:  # including ComfyUI's interrupt
        session.end()
        release_frames(error)  # saving the LoRA may need the memory that the step has taken
        explained = session.explain(error, save(session) if session.has_learned() else None)
        session.release()
        if explained is not error:
            raise explained from error
        raise
    save(session)


def _previewer(job: Job, patcher: Patcher, network: object) -> Previewer | None:
    """Return the sampler of a job, or None if it has no preview. patcher: the loaded MODEL"""
    if job.preview is None:
        return None
    if job.base is not None:  # the same loaded model, with the patches of the other MODEL
        patcher = patcher.clone()
        patcher.patches, patcher.patches_uuid = job.base.patches, uuid.uuid4()
    trains_both_ways = job.method.strength(0) * job.method.strength(1) < 0
    return Previewer(job.preview, patcher, network, trains_both_ways)


def _check_batch_size(peers: Peers, config: TrainingConfig) -> None:
    if config.batch_size < peers.count:
        raise ValueError(
            f"batch_size is {config.batch_size}, too small to split over {peers.count} processes: set batch_size to "
            f"{peers.count} or more, or start fewer processes."
        )


def _log_ignored_settings(config: TrainingConfig, model: HostDenoiser, method: Method) -> None:
    if config.noise_offset and not (isinstance(method, Denoise) or getattr(method, "learns_images", False)):
        logger.info("noise_offset has no effect: this method does not learn images from noise.")
    if config.snr_gamma and isinstance(model.parameterization, FlowPrediction):
        logger.info("snr_gamma has no effect: this is a flow model, and min-SNR is not defined for those.")
    if config.offload != "none" and not is_on_cpu(model.patcher) and model.patcher.offload_device == model.device:
        logger.warning(
            "offload has no effect: ComfyUI keeps all weights on the GPU if it starts with --highvram or --gpu-only."
        )
    if config.fixed_timestep_in_batch and config.batch_size == 1:
        logger.info("fixed_timestep_in_batch has no effect with batch_size 1.")
