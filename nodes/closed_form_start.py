"""The input of iLECO and the slider that chooses what a new LoRA starts from."""

from __future__ import annotations

import logging
from typing import Any

from comfy_api.latest import io

from .input_checks import PLACED

CLOSED_FORM, NOTHING = "closed form", "nothing"

logger = logging.getLogger(__name__)


def start_input() -> io.Input:
    """Return the input `start`."""
    return io.Combo.Input(
        "start",
        options=[CLOSED_FORM, NOTHING],
        default=NOTHING,  # what a graph means that was saved before there was this input
        optional=True,
        tooltip="What a new LoRA starts from. closed form: a solution that takes about a second to compute, so that few "
        "steps or none are needed. For U-Nets (SD 1.5, SD 2, SDXL) with lierla or c3lier; other models start from "
        "nothing, and the log says so. nothing: everything is learned in steps.",
        extra_dict={PLACED: CLOSED_FORM},
    )


def is_closed_form(start: str, steps: int, lora: Any) -> bool:
    """Return whether a training starts from the closed form. Raises ValueError if nothing would be learned."""
    if lora is not None and start == CLOSED_FORM:
        logger.info("start has no effect: training continues the connected LoRA.")
        start = NOTHING
    if not steps and start == NOTHING:
        raise ValueError(
            "steps is 0 and the LoRA does not start from the closed form, so nothing would be learned: set steps to 1 or "
            "more, or start to closed form without a connected lora."
        )
    return start == CLOSED_FORM
