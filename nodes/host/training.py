"""Training inside the host: a MODEL is loaded, trained on, and left as it was."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Callable, Iterator, Protocol

import comfy.model_management
import torch

from ...trainer.blocks import adaptable_blocks
from ...trainer.checkpointing import checkpointed
from ...trainer.config import NetworkConfig, TrainingConfig
from ...trainer.denoiser import FlowPrediction
from ...trainer.files import LoRAWeights, training_metadata
from ...trainer.history import History
from ...trainer.loop import StopTraining, TrainingRun
from ...trainer.methods import Method
from ...trainer.network import LoRANetwork
from ...trainer.state import State
from .denoiser import HostDenoiser, Patcher
from .lora import model_family
from .network import create_network
from .preview import Preview, Previewer
from .text_encoder import Clip, copied_residuals

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


class Progress(Protocol):
    """What a training tells while it goes on. What it raises ends the training."""

    def begin(self, layers: int, parameters: int, blocks: list[str], history: History) -> None:
        """Be told of the size of the LoRA, of the blocks that the model has, and of the steps that are done already."""

    def __call__(self, step: int, loss: float, learning_rate: float) -> None:
        """Be told of a step that is done."""

    def show(self, step: int, samples: torch.Tensor) -> None:
        """Be given samples without and with the LoRA after a step, one picture (H, 2W, 3) in [0, 1]."""


# What is left on disk: the LoRA, its history, its state if it has a whole one, and whether `save_every` asks for it.
Keep = Callable[[LoRAWeights, History, State | None, bool], object]


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
        _load(patchers)
        layers = patcher.model.diffusion_model
        try:
            with ExitStack() as stack:
                stack.enter_context(_training_flag())
                if gradient_checkpointing:
                    stack.enter_context(checkpointed(layers))
                if clip is not None:
                    stack.enter_context(copied_residuals(clip))
                yield HostDenoiser(patcher), layers
        finally:
            patcher.cleanup()
            for each in patchers:
                _give_back_quantized(each.model)


def train_lora(
    training: Training, progress: Progress, keep: Keep, state: State | None = None
) -> tuple[LoRAWeights, History]:
    """Train a LoRA; return its weights and what each step told.

    keep: is given the LoRA, its history and its state at the end, at an early end too, and every `save_every` steps
    state: of a training that ended early, to go on from
    """
    started, config, clip = time.time(), training.config, training.clip
    with open_training(training.model, config.gradient_checkpointing, clip) as (model, unet):
        _tell_what_does_nothing(config, model)
        network = create_network(training.network, training.lora, config.seed, training.model, clip, unet)
        run = TrainingRun(model, network, training.method, config)
        if state is not None:
            run.go_on(state)
        take_samples = _sampling(training, model.patcher, network)

        def keep_all(milestone: bool = False) -> LoRAWeights:
            metadata = training_metadata(network.config, config, model_family(training.model), started)
            lora = LoRAWeights(run.weights(), {**metadata, **training.labels})
            keep(lora, run.history, run.state(), milestone)
            return lora

        def on_step(step: int, loss: float, learning_rate: float) -> None:
            progress(step, loss, learning_rate)
            if config.save_every and step % config.save_every == 0 and step < config.steps:
                keep_all(milestone=True)
            take_samples(step, run, progress)

        progress.begin(*network.size(), adaptable_blocks(unet, network.config), run.history)
        try:
            run.train(on_step)
        except StopTraining:
            logger.info("The training was stopped after step %d of %d.", len(run.history), config.steps)
        except BaseException:  # cancelling is one, too
            if network.has_learned():
                keep_all()
            raise
        return keep_all(), run.history


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
            _load(patchers)  # the VAE may have needed its place
            if samples is not None:
                progress.show(step, samples)

    return take_samples


def _load(patchers: list[Patcher]) -> None:
    """Bring models whole to the device, and make them such that autograd takes them."""
    # More memory than there is: every other model leaves the device.
    comfy.model_management.load_models_gpu(patchers, memory_required=1e20, force_full_load=True)
    for each in patchers:
        _make_normal(each.model)
    patchers[0].pre_run()


def _tell_what_does_nothing(config: TrainingConfig, model: HostDenoiser) -> None:
    if config.snr_gamma and isinstance(model.parameterization, FlowPrediction):
        logger.info("snr_gamma has no effect on this model: it predicts a flow, for which there is no min-SNR weight.")
    if config.fixed_timestep_in_batch and config.batch_size == 1:
        logger.info("fixed_timestep_in_batch has no effect on batches of 1.")


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


@torch.inference_mode()
def _give_back_quantized(model: torch.nn.Module) -> None:
    """Exchange quantized parameters for inference tensors again, one at a time: the host cannot move others in sampling."""
    for module in model.modules():
        for name, tensor in module._parameters.items():
            if tensor is not None and type(tensor.data) is not torch.Tensor and not tensor.is_inference():
                module._parameters[name] = torch.nn.Parameter(tensor.clone(), False)


@contextmanager
def _training_flag() -> Iterator[None]:
    """Keep the host from fused kernels that go past the layers, and with them past the adapters."""
    before = comfy.model_management.in_training
    comfy.model_management.in_training = True
    try:
        yield
    finally:
        comfy.model_management.in_training = before
