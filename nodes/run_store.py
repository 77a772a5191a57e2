"""Stores trainings on disk: the LoRA of each, finished or not, its losses, its samples, and the state to resume from.

The files are in output/traintrain. Their names have the name in the connected Save LoRA, or else the method, and the
fingerprint of everything the result depends on. The newest trainings are kept, as many as fit into `keep_gb`. Files that
`save_every` and Save LoRA write belong to the user and are never deleted.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any, Callable, Iterator

import torch
from comfy.cli_args import args

from ..trainer.atomic_write import check_folder
from ..trainer.config import TrainingConfig
from ..trainer.history import History
from ..trainer.lora_file import STEP, STOPPED, TRAINING, LoRAWeights, load_lora, save_lora
from ..trainer.lora_metadata import file_metadata
from ..trainer.state import State, load_state, read_labels, save_state
from . import host
from .fingerprint import fingerprint
from .kept_files import clean_up, find_kept, kept_folder
from .loss_table import read_table, write_table
from .output_path import output_path, without_ending, write_output
from .sample_files import describe_samples, write_samples

SMOOTHING = 25  # steps, of the smoothed loss
LONGEST_NAME = 50  # characters of a name that file names keep; a character is up to four bytes
MILESTONE = re.compile(r"_\d+steps(_\d+)?$")  # at the end of a milestone's name; with a number if the name was taken

logger = logging.getLogger(__name__)


class RunStore:
    """Stores the trainings of one node with one set of inputs.

    has_files: whether this process reads and writes files; of processes that train together, only the first does
    resume_stopped: whether a training that Stop and keep ended is unfinished; else its LoRA is the result
    """

    def __init__(
        self, node: type, inputs: dict[str, Any], has_files: bool = True, resume_stopped: bool = False
    ) -> None:
        prompt = node.hidden.prompt or {}
        self._has_files, self._resume_stopped, self._is_stopped = has_files, resume_stopped, False
        self._keep_gb = (_first(inputs.get("settings")) or TrainingConfig).keep_gb
        self.fingerprint = fingerprint(inputs, prompt, node.hidden.unique_id)
        self._saving = save_inputs(prompt, node.hidden.unique_id)
        self.name = self._saving.get("name") or node.define_schema().node_id.removeprefix("TrainTrain_Train")
        self._steps = _first(inputs["steps"])
        if "name" in self._saving:
            # Report an invalid name before training starts, not after it.
            for name in (self._saving["name"], self._milestone(self._steps)):
                output_path("loras", name, ".safetensors", overwrite=False)

    @property
    def labels(self) -> dict[str, str]:
        """Return the metadata that identifies a LoRA of these trainings."""
        return {TRAINING: self.fingerprint}

    def recall(self) -> tuple[LoRAWeights, History] | None:
        """Return the LoRA and history of an earlier finished or stopped training, or None if they are not on disk."""
        for path in self._files("safetensors"):
            try:
                lora = load_lora(path)
                history = _read_history(path.with_suffix(".csv"), lora)
            except (OSError, ValueError):
                continue
            is_stopped = lora.metadata.pop(STOPPED, None) is not None and not self._resume_stopped
            if lora.metadata.get(STEP) != str(len(history)):
                continue
            if len(history) == self._steps:
                logger.info(
                    "This training is finished: its LoRA is loaded from %s. Delete the file to train again.", path
                )
                return lora, history
            if is_stopped:
                logger.info(
                    "This training was stopped at step %d of %d: its LoRA is loaded from %s. Turn on resume_stopped to "
                    "train the rest.",
                    *(len(history), self._steps, path),
                )
                return lora, history
        return None

    def unfinished(self) -> State | None:
        """Return the state of an unfinished training with the same inputs, or None."""
        for path in self._files("state"):
            try:
                state = load_state(path)
                if isinstance(state.get("losses"), list) and len(state["losses"]) < self._steps:
                    return state
            except (OSError, ValueError) as error:
                logger.warning("Training cannot resume from its state in %s: %s", path.parent, error)
        return None

    def mark_stopped(self) -> None:
        """Note that Stop and keep ended the training: what is saved from now on is its result."""
        self._is_stopped = True

    def save(self, session: host.Session) -> Path | None:
        """Save a training's LoRA, history and state in place of its earlier ones; return the path of the LoRA.

        If a file cannot be written, the others still are, earlier files stay, and a warning is logged. The result is then
        None.
        """
        return self._save(session, [], "If the workflow continues, Save LoRA can still save it.")

    def save_milestone(self, session: host.Session) -> None:
        """Save an unfinished training, and its LoRA as NAME_<n>steps next to the file of Save LoRA."""
        self._save(session, [self._write_milestone], "Training continues, and the next save_every tries again.")

    def _save(self, session: host.Session, more: list[Callable[[LoRAWeights], object]], if_not: str) -> Path | None:
        if not self._has_files:
            return None
        lora, history, state, path = session.lora(), session.history, session.state(), self._path(".safetensors")
        labels = {key: lora.metadata[key] for key in (TRAINING, STEP)}
        metadata = file_metadata(lora, path.stem, {}, is_private=not args.disable_metadata)
        metadata |= {STOPPED: "True"} if self._is_stopped else {}
        writing = [
            lambda: save_lora(path, lora, "fp32", 1.0, metadata),
            lambda: write_table(path.with_suffix(".csv"), {path.stem: history}, SMOOTHING),
            *(lambda write=write: write(lora) for write in more),
        ]
        if state is not None:
            writing.append(lambda: save_state(path.with_suffix(".state"), state, labels))
        failures = [failure for failure in map(_error_of, writing) if failure]
        clean_up(self._keep_gb, path.stem)
        if failures:
            rest = f" {len(failures) - 1} more files could not be saved." if failures[1:] else ""
            logger.warning(
                "Step %d of the training could not be saved: %s%s %s", len(history), failures[0], rest, if_not
            )
            return None
        if len(history) < self._steps:
            logger.info("Step %d of %d is kept as %s", len(history), self._steps, path)
        return path

    def check_folder(self) -> None:
        """Raise OSError if nothing can be saved: better before training than after it."""
        if self._has_files:
            check_folder(kept_folder())

    def save_samples(self, step: int, samples: list[host.Sample]) -> None:
        """Save the samples of a step. Raises OSError if that fails."""
        write_samples(self._path(""), step, samples)

    def samples(self) -> list[dict[str, Any]]:
        """Return the samples of all steps, in order, with their files for ComfyUI's /view."""
        return describe_samples(self._files("jpg", "_*"))

    def _milestone(self, step: int) -> str:
        return f"{self.name}_{step}steps"

    def _write_milestone(self, lora: LoRAWeights) -> None:
        step, precision = int(lora.metadata[STEP]), self._saving.get("save_precision", "fp16")
        is_private = not (args.disable_metadata or self._saving.get("for_publishing"))
        path = write_output(
            "loras",
            self._milestone(step),
            ".safetensors",
            False,
            lambda path: save_lora(
                path, lora, precision, 1.0, file_metadata(lora, path.stem, {}, is_private), overwrite=False
            ),
        )
        logger.info("Step %d of %d is saved as %s", step, self._steps, path)

    def _files(self, suffix: str, part: str = "") -> Iterator[Path]:
        """Yield the files of these trainings."""
        return find_kept(f"*_{self.fingerprint}{part}.{suffix}") if self._has_files else iter(())

    def _path(self, ending: str) -> Path:
        stem = re.sub(r"[^\w.-]", "_", Path(self.name).name)[:LONGEST_NAME]
        return kept_folder() / f"{stem}_{self.fingerprint}{ending}"


def describe_location(lora: dict[str, torch.Tensor]) -> str:
    """Return a sentence on where the LoRA of a training is kept if Save LoRA fails; empty for other LoRAs."""
    labels = {key: getattr(lora, "metadata", {}).get(key) for key in (TRAINING, STEP)}
    if not all(labels.values()):
        return ""
    for path in find_kept("*.safetensors"):
        if labels.items() <= read_labels(path).items():
            return f"The LoRA is kept in {path}: queue the workflow again to save it without training again."
    return "The LoRA is only in memory: queue the workflow again before you close ComfyUI to save it without training again."


def _read_history(path: Path, lora: LoRAWeights) -> History:
    """Return the history in a LoRA's table, which has no rows if the LoRA took no steps. Raises OSError or ValueError."""
    if lora.metadata.get(STEP) == "0":
        return History()
    (history,) = read_table(path).values()
    return history


def _error_of(write: Callable[[], object]) -> str:
    """Return the message of the error that a write raises, or an empty text."""
    try:
        write()
        return ""
    except Exception as error:
        return str(error)


def save_inputs(prompt: dict[str, dict], node_id: str) -> dict[str, Any]:
    """Return the texts and switches of the Save LoRA that is connected to a node; empty if there is none."""
    for node in prompt.values():
        inputs = node.get("inputs", {})
        lora = inputs.get("lora")
        if node.get("class_type") == "TrainTrain_SaveLoRA" and isinstance(lora, list) and lora[0] == node_id:
            values = {name: value for name, value in inputs.items() if isinstance(value, (str, bool))}
            if isinstance(values.get("name"), str):
                values["name"] = without_ending(values["name"], ".safetensors")
            return values
    return {}


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, (list, tuple)) else value
