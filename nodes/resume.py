"""How a training goes on from an earlier one: with its training state, or as a new training of its weights."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from comfy_api.latest import io

from ..trainer.lora_file import METHOD, STEP, TRAINING, WEIGHTS, is_changed, load_lora
from ..trainer.state import State, load_state, read_labels
from . import host
from .kept_files import find_kept

IF_POSSIBLE, WEIGHTS_ONLY, RESUME_ONLY = "resume if possible", "weights only", "resume only"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """Describes where a training starts.

    state: to resume from, or None
    origin: what of the connected LoRA is used: "state", "weights", or nothing
    """

    state: State | None = None
    origin: str = ""


def resume_inputs() -> list[io.Input]:
    """Return the inputs of all training nodes about resuming: the last ones of a node, because saved values are positional."""
    return [
        io.Combo.Input(
            "resume",
            options=[IF_POSSIBLE, WEIGHTS_ONLY, RESUME_ONLY],
            default=IF_POSSIBLE,
            optional=True,
            advanced=True,
            tooltip="What to use of a connected lora. resume if possible: its training state, if that is on disk, is of the same "
            "method and optimizer, and the weights are unchanged; steps is then the total. Otherwise a new training starts "
            "from its weights, and all steps are trained. weights only: always a new training. resume only: an error instead "
            "of a new training. The node and the log say which it was.",
        ),
        io.Boolean.Input(
            "resume_stopped",
            default=False,
            optional=True,
            tooltip="Off: after Stop and keep, the LoRA is used as it is each time you queue. On: the next run trains the "
            "remaining steps.",
        ),
    ]


def choose_start(job: host.Job, session: host.Session, unfinished: State | None, resume: str) -> Start:
    """Return where a training starts, and log it.

    unfinished: the state of the same training that did not end, or None

    Raises ValueError if `resume` asks for a training state and there is none that fits.
    """
    if unfinished or job.lora is None:
        return Start(unfinished)
    state, reason = (None, "resume is weights only") if resume == WEIGHTS_ONLY else _find_state(job, session)
    steps = job.config.steps
    if state is not None:
        done = len(state["losses"])
        logger.info(
            "Training resumes the LoRA after step %d, with its training state: steps, %d, is the total.", done, steps
        )
        return Start(state, "state")
    if resume == RESUME_ONLY:
        raise ValueError(
            f"The LoRA cannot be resumed, because {reason}: set resume to {WEIGHTS_ONLY} to start a new training from its "
            "weights, or connect another LoRA."
        )
    logger.info("A new training of %d steps starts from the LoRA's weights, because %s.", steps, reason)
    return Start(None, "weights")


def label_of(lora: dict[str, torch.Tensor] | None, resume: str) -> list[str] | None:
    """Return which training state a connected LoRA asks for, or None if it asks for none or is not to be resumed."""
    metadata = getattr(lora, "metadata", {})
    is_label = re.fullmatch(
        "[0-9a-f]{16}", metadata.get(TRAINING, "")
    )  # a stranger's file may have * or ../../elsewhere
    return [metadata[TRAINING], metadata.get(STEP, "")] if is_label and resume != WEIGHTS_ONLY else None


def _find_state(job: host.Job, session: host.Session) -> tuple[State | None, str]:
    """Return the training state of a job's LoRA, or None and why it cannot be used."""
    label, metadata = label_of(job.lora, ""), getattr(job.lora, "metadata", {})
    if label is None:
        return None, "it has no training state of this pack"
    theirs, ours = metadata.get(METHOD), job.labels.get(METHOD)
    if theirs != ours:
        return None, f"it was trained by the method {theirs} and this is {ours}"
    path = _state_path(label)
    if path is None:
        return None, "its training state is no longer on disk"
    if is_changed(job.lora) or (WEIGHTS not in metadata and _differs(job.lora, path.with_suffix(".safetensors"))):
        return None, "its weights were changed after this pack had saved them"
    try:
        state = load_state(path)
    except (OSError, ValueError) as error:
        return None, f"its training state cannot be read ({error})"
    theirs, ours = state.get("optimizer_name"), job.config.optimizer
    if theirs != ours:
        return None, f"it was trained with the optimizer {theirs} and this is {ours}"
    if not session.fits(state):
        return None, "its training state is of other layers, ranks, alphas, learning rates or optimizer_settings"
    return state, ""


def _state_path(label: list[str]) -> Path | None:
    wanted = {TRAINING: label[0], STEP: label[1]}.items()
    paths = find_kept(f"*_{label[0]}.state")
    return next((path for path in paths if wanted <= read_labels(path).items()), None)


def _differs(lora: dict[str, torch.Tensor], path: Path) -> bool:
    """Return whether a LoRA is not the kept one, in any precision: files of version 0.1 have no digest of their weights."""
    try:
        kept = load_lora(path)
    except (OSError, ValueError):
        return True
    return kept.keys() != lora.keys() or not all(torch.equal(kept[key].to(lora[key].dtype), lora[key]) for key in kept)
