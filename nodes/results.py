"""What trainings leave on disk: the LoRA of each, finished or not, its losses, its samples, and the state to go on from.

They are in output/loras/trained, named after the Save LoRA that is wired, else after the method, with a fingerprint of
all that the result depends on. The newest LORAS_KEPT trainings stay there, the newest STATES_KEPT with their state;
older ones go when a new one comes. What `save_every` and Save LoRA write is the user's and stays.
"""

from __future__ import annotations

import glob
import logging
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable

import folder_paths
import torch
from PIL import Image

from ..trainer.files import LoRAWeights, file_metadata, load_lora, save_lora
from ..trainer.history import History
from ..trainer.state import State, load_state, read_labels, save_state
from ..trainer.writing import check_folder, whole_file
from .fingerprint import fingerprint
from .loss_table import read_table, write_table
from .output_path import output_path, write_output

FOLDER = "loras/trained"
LORAS_KEPT, STATES_KEPT = 20, 3
SMOOTHING = 25  # steps, of the table's last column
TRAINING, STEP = "traintrain_training", "traintrain_step"  # metadata: the fingerprint, and the steps that are done
LONGEST_NAME = 50  # letters of a name that are kept in those of files here; a letter is up to four bytes

logger = logging.getLogger(__name__)


class TrainingResults:
    """The results of one training node with one set of inputs."""

    def __init__(self, node: type, inputs: dict[str, Any]) -> None:
        prompt = node.hidden.prompt or {}
        self.fingerprint = fingerprint(inputs, prompt, node.hidden.unique_id)
        self._saving = _save_inputs(prompt, node.hidden.unique_id)
        self.name = self._saving.get("name") or node.__name__.removeprefix("Train")
        self._steps = inputs["steps"][0] if isinstance(inputs["steps"], list) else inputs["steps"]
        if "name" in self._saving:
            # A name that is none is to be said before the training, not after it.
            output_path("loras", self._milestone(self._steps), ".safetensors", overwrite=False)

    def recall(self) -> tuple[LoRAWeights, History] | None:
        """Return the LoRA and the history of a training that has finished before, if they are still there."""
        for path in _folder().glob(f"*_{self.fingerprint}.safetensors"):
            try:
                lora, (history,) = load_lora(path), read_table(path.with_suffix(".csv")).values()
            except (OSError, ValueError):
                continue
            if lora.metadata.get(STEP) == str(self._steps) == str(len(history)):
                logger.info("This training is done: its LoRA comes from %s. Delete the file to train again.", path)
                return lora, history
        return None

    def unfinished(self) -> State | None:
        """Return the state of a training with the same inputs that has ended early."""
        state = _load_state({TRAINING: self.fingerprint})
        return state if state and len(state["losses"]) < self._steps else None

    def keep(self, lora: LoRAWeights, history: History, state: State | None, milestone: bool) -> Path:
        """Put a training's LoRA, history and state on disk, in the place of its earlier ones; return the LoRA's file.

        At a milestone the LoRA is written as NAME_<n>steps, too, beside what Save LoRA will write. What cannot be written
        does not keep the rest from it, and what was there stays. Raises OSError for it in the end.
        """
        step, path = len(history), self._path(".safetensors")
        labels = {TRAINING: self.fingerprint, STEP: str(step)}
        lora.metadata |= labels
        writing = [
            lambda: save_lora(path, lora, "fp32", 1.0, file_metadata(lora, path.stem, {})),
            lambda: write_table(path.with_suffix(".csv"), {path.stem: history}, SMOOTHING),
        ]
        if state is not None:
            writing.append(lambda: save_state(path.with_suffix(".state"), state, labels))
        if milestone:
            writing.append(lambda: self._write_milestone(lora, step))
        failures = [failure for failure in map(_try, writing) if failure]
        _clean_up()
        if failures:
            more = f" {len(failures) - 1} more of its files are not written either." if failures[1:] else ""
            raise OSError(f"{failures[0]}{more}")
        if step < self._steps:
            logger.info("Step %d of %d of the training is kept in %s", step, self._steps, path)
        return path

    def check_folder(self) -> None:
        """Raise OSError where nothing can be kept: that is to be said before a training of hours and not after it."""
        check_folder(_folder())

    def keep_samples(self, step: int, image: torch.Tensor) -> None:
        """Put the samples (H, W, 3) in [0, 1] of a training's step on disk."""
        picture = Image.fromarray((image * 255).round().byte().cpu().numpy())
        with whole_file(self._path(f"_{step:06d}.jpg")) as part:
            picture.save(part, "JPEG", quality=92)

    def samples(self) -> list[dict[str, Any]]:
        """Return the steps that samples were kept of, in order, with the files to ask the host's /view for."""
        files = sorted(_folder().glob(f"*_{self.fingerprint}_*.jpg"), key=lambda file: file.stem.rpartition("_")[2])
        return [
            {"step": int(file.stem.rpartition("_")[2]), "filename": file.name, "subfolder": FOLDER} for file in files
        ]

    def _milestone(self, step: int) -> str:
        return f"{self.name}_{step}steps"

    def _write_milestone(self, lora: LoRAWeights, step: int) -> None:
        precision = self._saving.get("save_precision", "fp16")
        write_output(
            "loras",
            self._milestone(step),
            ".safetensors",
            False,
            lambda path: save_lora(path, lora, precision, 1.0, file_metadata(lora, path.stem, {}), overwrite=False),
        )

    def _path(self, ending: str) -> Path:
        stem = re.sub(r"[^\w.-]", "_", Path(self.name).name)[:LONGEST_NAME]
        return _folder() / f"{stem}_{self.fingerprint}{ending}"


def state_of(lora: dict[str, torch.Tensor]) -> State | None:
    """Return the state that belongs to a LoRA, if it is still on disk."""
    labels = {key: getattr(lora, "metadata", {}).get(key) for key in (TRAINING, STEP)}
    # A file of anyone's making may call its training *, or ../../elsewhere.
    is_ours = all(labels.values()) and re.fullmatch("[0-9a-f]{16}", labels[TRAINING])
    return _load_state(labels) if is_ours else None


def _load_state(labels: dict[str, str]) -> State | None:
    for path in _folder().glob(f"*_{labels[TRAINING]}.state"):
        if labels.items() <= read_labels(path).items():
            try:
                state = load_state(path)
                if isinstance(state.get("losses"), list):
                    return state
            except (OSError, ValueError) as error:
                logger.warning("The training starts without its state in %s: %s", path.parent, error)
    return None


def where_kept(lora: dict[str, torch.Tensor]) -> str:
    """Say where the LoRA of a training is while it cannot be saved; nothing of a LoRA that is from elsewhere."""
    labels = {key: getattr(lora, "metadata", {}).get(key) for key in (TRAINING, STEP)}
    if not all(labels.values()):
        return ""
    for path in _folder().glob("*.safetensors"):
        if labels.items() <= read_labels(path).items():
            return f"The LoRA is kept in {path}: queue again, and it is saved without being trained anew."
    return (
        "The LoRA is in memory alone: queue again before ComfyUI is closed, and it is saved without being trained anew."
    )


def _try(write: Callable[[], object]) -> str:
    """Write something; return the reason if that cannot be."""
    try:
        write()
        return ""
    except (OSError, ValueError) as error:
        return str(error)


def _clean_up() -> None:
    """Remove the oldest LoRAs with all that belongs to them, and the oldest states."""
    loras = sorted(_folder().glob("*.safetensors"), key=_time_of, reverse=True)
    for number, path in enumerate(loras):
        doomed = [path.with_suffix(".state")] if number >= STATES_KEPT else []
        if number >= LORAS_KEPT:
            doomed += [path, path.with_suffix(".csv"), *path.parent.glob(f"{glob.escape(path.stem)}_*.jpg")]
        for old in doomed:
            with suppress(OSError):  # Windows removes no file that is in use
                old.unlink()


def _time_of(path: Path) -> float:
    with suppress(FileNotFoundError):  # another ComfyUI with this folder may be cleaning up, too
        return path.stat().st_mtime
    return 0.0


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
