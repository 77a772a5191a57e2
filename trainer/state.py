"""Training states on disk, to resume from: safetensors and JSON, never pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save, save_file

from .atomic_write import write_atomically

State = dict[str, Any]  # numbers, text, tensors, lists and dicts; a tuple is loaded as a list


def save_state(path: Path, state: State, labels: dict[str, str]) -> None:
    """Save a state atomically, with labels that `read_labels` reads without loading it. Raises OSError."""
    named, structure = _take_apart(state)
    with write_atomically(path) as part:
        save_file(named, part, metadata={**labels, "structure": structure})


def state_to_bytes(state: State) -> bytes:
    """Serialize a state for another process."""
    named, structure = _take_apart(state)
    return save({**named, "structure": torch.frombuffer(bytearray(structure.encode()), dtype=torch.uint8)})


def state_from_bytes(data: bytes) -> State:
    """Deserialize the result of `state_to_bytes`."""
    with torch.inference_mode(False):
        named = load(data)
    return _unpack(json.loads(named.pop("structure").numpy().tobytes()), named.__getitem__)


def read_labels(path: Path) -> dict[str, str]:
    """Return the labels of a state file; empty if it is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError):
        return {}


def load_state(path: Path) -> State:
    """Load a state that `save_state` wrote. Raises OSError or ValueError if the file is missing or damaged."""
    try:
        # An optimizer cannot update tensors that were made in inference mode.
        with torch.inference_mode(False), safe_open(path, framework="pt") as file:
            # Copies, which do not change with the file, and do not keep Windows from replacing it.
            state = _unpack(json.loads(file.metadata()["structure"]), lambda name: file.get_tensor(name).clone())
    except (SafetensorError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{path.name} is not a training state, or is damaged ({error}): delete it.") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path.name} is not a training state: delete it.")
    return state


def _take_apart(state: State) -> tuple[dict[str, torch.Tensor], str]:
    """Return the tensors of a state by their numbers, and the rest as JSON."""
    tensors: list[torch.Tensor] = []
    structure = json.dumps(_pack(state, tensors))
    return {str(index): tensor.detach().cpu().clone().contiguous() for index, tensor in enumerate(tensors)}, structure


def _pack(value: Any, tensors: list[torch.Tensor]) -> Any:
    """Return a value for JSON, in which each tensor is replaced by its index in the list that it is appended to."""
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return {"tensor": len(tensors) - 1}
    if isinstance(value, dict):
        return {"dict": [[key, _pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"list": [_pack(item, tensors) for item in value]}
    return value


def _unpack(value: Any, get_tensor: Callable[[str], torch.Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, items),) = value.items()
    if kind == "tensor":
        return get_tensor(str(items))
    if kind == "dict":
        return {key: _unpack(item, get_tensor) for key, item in items}
    return [_unpack(item, get_tensor) for item in items]
