"""The LoRAs to compare: what is connected, their names, and the milestones that their trainings have saved."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

import folder_paths

from ..trainer.lora_file import METHOD, STEP, TRAINING, LoRAWeights, load_lora
from ..trainer.state import read_labels
from .input_checks import SHOWN
from .run_store import MILESTONE, save_inputs
from .unique_names import with_unique_names

LoRA = dict  # a LORA_MODEL: tensors by their keys
Prompt = dict[str, dict]  # a graph in API format: node id -> class_type and inputs
NO_MILESTONES = (
    "There are no milestones of these LoRAs in output/loras: set save_every in Training Settings and train with another "
    "seed, because a training that is on disk is not run again."
)
_FINGERPRINT = re.compile(r"_[0-9a-f]{16}$")  # at the end of a kept training's name


def collect_loras(loras: dict[str, LoRA], prompt: Prompt, node_id: str, milestones: bool) -> dict[str, LoRA]:
    """Return the connected LoRAs by their names; with milestones, each after those of its training, with its steps named.

    loras: by the slots of the node's input `loras`

    Raises ValueError if there are none, or something else is connected.
    """
    if not loras:
        raise ValueError("No LoRA is connected: connect that of a training node, or of Load LoRA.")
    for lora in loras.values():
        if not isinstance(lora, dict):
            raise ValueError(f"{str(lora)[:SHOWN]} is not a LoRA: connect that of a training node, or of Load LoRA.")
    links = prompt.get(node_id, {}).get("inputs", {})
    named: list[tuple[str, LoRA]] = []
    for number, (slot, lora) in enumerate(loras.items(), 1):
        saved = list(_milestones(lora)) if milestones else []
        name = _name_of(lora, prompt, links.get(f"loras.{slot}")) or f"LoRA {number}"
        if saved:
            name = f"{name} ({lora.metadata[STEP]} steps)"
        named += [*saved, (name, lora)]
    return with_unique_names(named)


def _name_of(lora: LoRA, prompt: Prompt, link: Any) -> str:
    """Return the name of a LoRA: of the file that it is loaded from or saved to, or else of its method; "" if unknown."""
    source = link[0] if isinstance(link, list) and link else ""
    file = prompt.get(source, {}).get("inputs", {}).get("lora_name")
    metadata = getattr(lora, "metadata", {})
    saved = save_inputs(prompt, source).get("name") or metadata.get("ss_output_name", "")
    path = file.removesuffix(".safetensors") if isinstance(file, str) else str(saved)
    return _FINGERPRINT.sub("", PurePath(path.replace("\\", "/")).name) or metadata.get(METHOD, "")


def _milestones(lora: LoRA) -> Iterator[tuple[str, LoRAWeights]]:
    """Yield the milestones of a LoRA's training by their names, in the order of their steps, except the LoRA's own step."""
    metadata = getattr(lora, "metadata", {})
    if not {TRAINING, STEP} <= metadata.keys():
        return
    by_step: dict[int, Path] = {}
    for path in sorted(Path(folder_paths.get_output_directory(), "loras").rglob("*steps*.safetensors")):
        labels = read_labels(path) if MILESTONE.search(path.stem) else {}
        if labels.get(TRAINING) == metadata[TRAINING] and labels.get(STEP, "").isdecimal():
            by_step[int(labels[STEP])] = path
    for step, path in sorted(by_step.items()):
        if str(step) != metadata[STEP]:
            yield path.stem, load_lora(path)
