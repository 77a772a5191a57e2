"""Distilled models: those that take a guidance number as an input, and those made to sample in few steps."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Sequence

from ...trainer import denoiser
from .host_denoiser import Patcher

STEP_DISTILLED = re.compile(
    r"schnell|turbo|lightning|distill|(?<![a-z])(hyper|lcm|dmd2?)(?![a-z])|(?<![a-z0-9])[48][-_ ]?steps?(?![a-z])",
    re.IGNORECASE,
)

logger = logging.getLogger(__name__)


def with_guidance(
    patcher: Patcher, prompts: Sequence[denoiser.Conditioning], guidance: float
) -> list[denoiser.Conditioning]:
    """Return prompts with the guidance that a guidance-distilled model, such as Flux.1 dev, takes as an input.

    A model without such an input gets the prompts as they are.
    """
    if not has_guidance_input(patcher):
        return list(prompts)
    return [[tensor, {**extra, "guidance": guidance}] for tensor, extra in prompts]


def has_guidance_input(patcher: Patcher) -> bool:
    """Return whether a model is guidance-distilled: the guidance is an input of the network."""
    return bool(getattr(getattr(patcher.model.diffusion_model, "params", None), "guidance_embed", False))


def warn_of_distillation(patcher: Patcher) -> None:
    """Warn about a step-distilled model: known by its class in the host, or by the name of its file."""
    _, arguments, *_ = patcher.cached_patcher_init or (None, ("",))
    name = Path(str(arguments[0])).stem
    if type(patcher.model.model_config).__name__ == "FluxSchnell" or STEP_DISTILLED.search(name):
        logger.warning(
            "The model %s is distilled to sample in few steps. Training makes it lose this bit by bit: its samples become soft "
            "in few steps. Train on the model that it was distilled from if there is one, or train few steps.",
            name,
        )
