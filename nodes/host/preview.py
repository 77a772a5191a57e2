"""Samples of a model while it is trained."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Callable, ContextManager, Iterator

import comfy.model_management
import comfy.sample
import torch

from ...trainer.network import LoRANetwork
from .denoiser import Patcher
from .inputs import check_channels, latent_shape
from .memory import is_out_of_memory

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Preview:
    """What to sample while a training goes on, and how often.

    positive, negative: CONDITIONING
    vae: decodes the samples
    every: steps of the training between samples
    width, height: pixels
    steps, cfg, sampler_name, scheduler, seed: as in the host's KSampler
    """

    positive: list
    negative: list
    vae: Any
    every: int
    width: int
    height: int
    steps: int
    cfg: float
    sampler_name: str
    scheduler: str
    seed: int


class Previewer:
    """Samples of one training, without its LoRA and with it, from the same noise."""

    def __init__(self, preview: Preview, patcher: Patcher, network: LoRANetwork) -> None:
        """Raises ValueError for samples that the MODEL or the VAE cannot make."""
        check_channels(preview.vae.latent_channels, patcher)
        self._latent = torch.zeros(1, *latent_shape(patcher, preview.width, preview.height))
        self._preview, self._patcher, self._network = preview, patcher, network
        self._without: torch.Tensor | None = None
        self._works = True

    def is_due(self, step: int) -> bool:
        """Tell whether samples are wanted after a step."""
        return self._works and step % self._preview.every == 0

    def sample(self, as_used: Callable[[], ContextManager]) -> torch.Tensor | None:
        """Return both samples side by side, (H, 2W, 3) in [0, 1]; None, from now on, where that fails.

        A training of hours shall not end for a sample.

        as_used: runs a block with the LoRA as it is to be used
        """
        try:
            if self._without is None:
                with self._network.scaled(0.0):
                    self._without = self._sample()
            with as_used(), self._network.scaled(1.0):
                return torch.cat([self._without, self._sample()], dim=1)
        except Exception as error:
            too_large = is_out_of_memory(error)
            reason = "there is too little memory for them, so make them smaller" if too_large else str(error)
            logger.warning("The training goes on without samples: %s.", reason)
            self._works = False
            return None

    def _sample(self) -> torch.Tensor:
        """Sample one picture (H, W, 3) in [0, 1] with the host's own sampler, with whatever hooks are on the model."""
        preview = self._preview
        with torch.no_grad(), _process_as_it_was():
            samples = comfy.sample.sample(
                self._patcher,
                comfy.sample.prepare_noise(self._latent, preview.seed),
                preview.steps,
                preview.cfg,
                preview.sampler_name,
                preview.scheduler,
                preview.positive,
                preview.negative,
                self._latent,
                disable_pbar=True,
                seed=preview.seed,
            )
            pictures = preview.vae.decode(samples)
        return pictures.reshape(-1, *pictures.shape[-3:])[0, :, :, :3].float().cpu().clamp(0, 1)


@contextmanager
def _process_as_it_was() -> Iterator[None]:
    """Leave torch's own random numbers and the device's cache as the training had them."""
    device = comfy.model_management.get_torch_device()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            comfy.model_management.soft_empty_cache()  # what the backward pass left is of no use to sampling
            yield
        finally:
            comfy.model_management.soft_empty_cache()
