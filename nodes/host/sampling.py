"""Sample images, during training and to compare LoRAs."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Callable, ContextManager, Iterator

import comfy.model_management
import comfy.sample
import torch

from ...trainer.network import LoRANetwork
from .encoding import check_channels, latent_shape
from .host_denoiser import Patcher
from .memory import is_out_of_memory
from .preparation import SAMPLES, announce

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Sampling:
    """Sets how one image is sampled.

    positive, negative: CONDITIONING
    vae: decodes the samples
    width, height: pixels
    steps, cfg, sampler_name, scheduler, seed: as in ComfyUI's KSampler
    """

    positive: list
    negative: list
    vae: Any
    width: int
    height: int
    steps: int
    cfg: float
    sampler_name: str
    scheduler: str
    seed: int


@dataclass(frozen=True, eq=False)
class Preview(Sampling):
    """Sets which samples are made during training, and how often.

    every: training steps between samples
    more_prompts: text and CONDITIONING of prompts that are sampled besides `positive`, in the same way
    """

    every: int
    more_prompts: tuple[tuple[str, list], ...] = ()


@dataclass(frozen=True, eq=False)
class Sample:
    """Holds the samples of one prompt.

    prompt: its text; empty for the one that is connected as `positive`
    image: side by side, (H, 2W, 3) in [0, 1], without and with the LoRA; or both ways, (H, 3W, 3): at strength -1, without it,
        and at strength 1
    is_both_ways: which of the two
    """

    prompt: str
    image: torch.Tensor
    is_both_ways: bool = False


class Previewer:
    """Makes the samples of one training, without and with its LoRA, from the same noise."""

    def __init__(self, preview: Preview, patcher: Patcher, network: LoRANetwork, is_both_ways: bool = False) -> None:
        """Prepare the samples. Raises ValueError if the MODEL or the VAE cannot make them.

        is_both_ways: sample the LoRA at strength -1, too
        """
        check_sampling(preview, patcher)
        self._is_both_ways = is_both_ways
        self._preview, self._patcher, self._network = preview, patcher, network
        self._prompts = {"": preview.positive, **dict(preview.more_prompts)}
        self._baselines: dict[str, torch.Tensor] = {}
        self._is_enabled = True

    def is_due(self, step: int) -> bool:
        """Return whether samples are due after a step."""
        return self._is_enabled and step % self._preview.every == 0

    def sample(self, as_used: Callable[[], ContextManager]) -> list[Sample] | None:
        """Return the samples of all prompts.

        If that fails, logs a warning and returns None from then on: a failed sample must not end the training.

        as_used: context manager that runs a block with the weights for use
        """
        try:
            if not self._baselines:
                self._baselines = self._sample_all(0.0)
            with as_used():
                reverse = [self._sample_all(-1.0)] if self._is_both_ways else []
                shown = [*reverse, self._baselines, self._sample_all(1.0)]
            return [
                Sample(text, torch.cat([images[text] for images in shown], dim=1), self._is_both_ways)
                for text in self._prompts
            ]
        except Exception as error:
            too_large = is_out_of_memory(error)
            reason = "out of memory, use a smaller width and height in Preview Settings" if too_large else str(error)
            logger.warning("Sampling failed, training continues without samples: %s.", reason)
            self._is_enabled = False
            return None

    def _sample_all(self, strength: float) -> dict[str, torch.Tensor]:
        """Sample one image (H, W, 3) in [0, 1] of each prompt with the LoRA at a strength."""
        images = {}
        for text, positive in self._prompts.items():
            announce(SAMPLES, len(images), len(self._prompts))
            with _preserved_random_state(), self._network.scaled(strength):
                latent = sample_latent(self._patcher, replace(self._preview, positive=positive))
                images[text] = decode_image(self._preview.vae, latent)
        return images


@torch.inference_mode()
def encode_prompt(clip: Any, text: str, like: list) -> list:
    """Return the CONDITIONING of a text as ComfyUI's CLIP Text Encode makes it, with the guidance of another, if it has one."""
    guidance = {"guidance": like[0][1]["guidance"]} if like and "guidance" in like[0][1] else {}
    encoded = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    return [[tensor, {**extra, **guidance}] for tensor, extra in encoded]


def check_sampling(sampling: Sampling, patcher: Patcher) -> None:
    """Raise ValueError if the VAE is for another kind of model, or the size does not fit the model."""
    check_channels(sampling.vae.latent_channels, patcher)
    latent_shape(patcher, sampling.width, sampling.height)


@torch.no_grad()
def sample_latent(patcher: Patcher, sampling: Sampling, callback: Callable[..., None] | None = None) -> torch.Tensor:
    """Sample the latent of one image, (1, C, h, w) or (1, C, 1, h, w), as ComfyUI's KSampler does of an empty latent.

    callback: called by the host after each step with (step, x0, x, steps)
    """
    management = comfy.model_management
    latent = torch.zeros(
        1,
        *latent_shape(patcher, sampling.width, sampling.height),
        device=management.intermediate_device(),
        dtype=management.intermediate_dtype(),
    )
    return comfy.sample.sample(
        patcher,
        comfy.sample.prepare_noise(latent, sampling.seed),
        sampling.steps,
        sampling.cfg,
        sampling.sampler_name,
        sampling.scheduler,
        sampling.positive,
        sampling.negative,
        latent,
        callback=callback,
        disable_pbar=True,
        seed=sampling.seed,
    )


@torch.no_grad()
def decode_image(vae: Any, latent: torch.Tensor) -> torch.Tensor:
    """Decode the latent of one image as ComfyUI's VAE Decode does: (H, W, 3) in [0, 1]."""
    images = vae.decode(latent)
    return images.reshape(-1, *images.shape[-3:])[0, :, :, :3].float().cpu().clamp(0, 1)


@contextmanager
def _preserved_random_state() -> Iterator[None]:
    """Restore torch's global random state after the block, and free cached memory before and after it."""
    device = comfy.model_management.get_torch_device()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            comfy.model_management.soft_empty_cache()  # sampling cannot use what the backward pass has cached
            yield
        finally:
            comfy.model_management.soft_empty_cache()
