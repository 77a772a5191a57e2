"""What trainings leave on disk: the LoRA of each, finished or not, its losses, and the state to go on from.

They are in output/loras/trained, named after the Save LoRA that is wired, else after the method, with a fingerprint of
all that the result depends on. The newest LORAS_KEPT trainings stay there, the newest STATES_KEPT with their state;
older ones go when a new one comes. What `save_every` and Save LoRA write is the user's and stays.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import folder_paths
import torch
from safetensors import SafetensorError

from ..trainer.files import LoRAWeights, file_metadata, load_lora, save_lora
from ..trainer.state import State, load_state, read_labels, save_state
from .fingerprint import fingerprint
from .loss_table import read_losses, write_losses
from .output_path import output_path

FOLDER = "loras/trained"
LORAS_KEPT, STATES_KEPT = 20, 3
SMOOTHING = 25  # steps, of the table's last column
TRAINING, STEP = "traintrain_training", "traintrain_step"  # metadata: the fingerprint, and the steps that are done

logger = logging.getLogger(__name__)


class TrainingResults:
    """The results of one training node with one set of inputs."""

    def __init__(self, node: type, inputs: dict[str, Any]) -> None:
        prompt = node.hidden.prompt or {}
        self._fingerprint = fingerprint(inputs, prompt, node.hidden.unique_id)
        self._saving = _save_inputs(prompt, node.hidden.unique_id)
        self._name = self._saving.get("name") or node.__name__.removeprefix("Train")
        self._steps = inputs["steps"][0] if isinstance(inputs["steps"], list) else inputs["steps"]

    def recall(self) -> tuple[LoRAWeights, list[float]] | None:
        """Return the LoRA and the losses of a training that has finished before, if they are still there."""
        for path in _folder().glob(f"*_{self._fingerprint}.safetensors"):
            try:
                lora, losses = load_lora(path), read_losses(path.with_suffix(".csv"))
            except (OSError, ValueError):
                continue
            if lora.metadata.get(STEP) == str(self._steps) == str(len(losses)):
                logger.info("This training is done: its LoRA comes from %s. Delete the file to train again.", path)
                return lora, losses
        return None

    def unfinished(self) -> State | None:
        """Return the state of a training with the same inputs that has ended early."""
        state = _load_state({TRAINING: self._fingerprint})
        return state if state and len(state["losses"]) < self._steps else None

    def keep(self, lora: LoRAWeights, losses: list[float], state: State | None, milestone: bool) -> None:
        """Put a training's LoRA, losses and state on disk, in the place of its earlier ones.

        At a milestone the LoRA is written as NAME_<n>steps, too, beside what Save LoRA will write.
        """
        step = len(losses)
        lora.metadata |= {TRAINING: self._fingerprint, STEP: str(step)}
        stem = re.sub(r"[^\w.-]", "_", Path(self._name).name)
        path = _folder() / f"{stem}_{self._fingerprint}.safetensors"
        if state is not None:
            save_state(path.with_suffix(".state"), state, {TRAINING: self._fingerprint, STEP: str(step)})
        write_losses(path.with_suffix(".csv"), [losses], SMOOTHING)
        save_lora(path, lora, "fp32", 1.0, file_metadata(lora, path.stem, {}))
        _clean_up()
        if step < self._steps:
            logger.info("Step %d of %d of the training is kept in %s", step, self._steps, path)
        if milestone:
            path = output_path("loras", f"{self._name}_{step}steps", ".safetensors", overwrite=False)
            precision = self._saving.get("save_precision", "fp16")
            save_lora(path, lora, precision, 1.0, file_metadata(lora, path.stem, {}))


def state_of(lora: dict[str, torch.Tensor]) -> State | None:
    """Return the state that belongs to a LoRA, if it is still on disk."""
    labels = {key: getattr(lora, "metadata", {}).get(key) for key in (TRAINING, STEP)}
    return _load_state(labels) if all(labels.values()) else None


def _load_state(labels: dict[str, str]) -> State | None:
    for path in _folder().glob(f"*_{labels[TRAINING]}.state"):
        if labels.items() <= read_labels(path).items():
            try:
                return load_state(path)
            except (OSError, SafetensorError) as error:
                logger.warning("%s cannot be read (%s): the training starts without it.", path, error)
    return None


def _clean_up() -> None:
    """Remove the oldest LoRAs with all that belongs to them, and the oldest states."""
    loras = sorted(_folder().glob("*.safetensors"), key=lambda path: path.stat().st_mtime, reverse=True)
    for number, path in enumerate(loras):
        doomed = [path.with_suffix(".state")] if number >= STATES_KEPT else []
        doomed += [path, path.with_suffix(".csv")] if number >= LORAS_KEPT else []
        for old in doomed:
            old.unlink(missing_ok=True)


def _folder() -> Path:
    return Path(folder_paths.get_output_directory(), FOLDER)


def _save_inputs(prompt: dict[str, dict], node_id: str) -> dict[str, Any]:
    """Return the plain inputs of the Save LoRA that a node's LoRA goes to; none if there is no such."""
    for node in prompt.values():
        inputs = node.get("inputs", {})
        lora = inputs.get("lora")
        if node.get("class_type") == "TrainTrain_SaveLoRA" and isinstance(lora, list) and lora[0] == node_id:
            return {name: value for name, value in inputs.items() if isinstance(value, str)}
    return {}
