"""What a training needs to go on as if it had never stopped, on disk: safetensors and JSON, never a pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save, save_file

from .writing import whole_file

State = dict[str, Any]  # of numbers, text, tensors, and lists and dicts of them; a tuple comes back as a list


def save_state(path: Path, state: State, labels: dict[str, str]) -> None:
    """Write a state whole or not at all; the labels can be read without it."""
    named, structure = _take_apart(state)
    with whole_file(path) as part:
        save_file(named, part, metadata={**labels, "structure": structure})


def state_to_bytes(state: State) -> bytes:
    """Return a state as another process can read it."""
    named, structure = _take_apart(state)
    return save({**named, "structure": torch.frombuffer(bytearray(structure.encode()), dtype=torch.uint8)})


def state_from_bytes(data: bytes) -> State:
    """Read what state_to_bytes has made."""
    with torch.inference_mode(False):
        named = load(data)
    return _unpack(json.loads(named.pop("structure").numpy().tobytes()), named.__getitem__)


def read_labels(path: Path) -> dict[str, str]:
    """Return a state file's labels; none where it is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError):
        return {}


def load_state(path: Path) -> State:
    """Read what save_state wrote. Raises OSError or ValueError for a file that is not whole."""
    try:
        with torch.inference_mode(False), safe_open(path, framework="pt") as file:  # an optimizer could not go on with
            state = _unpack(
                json.loads(file.metadata()["structure"]), file.get_tensor
            )  # tensors that were made in inference mode
    except (SafetensorError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{path.name} is no whole state of a training ({error}): delete it.") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path.name} is no state of a training: delete it.")
    return state


def _take_apart(state: State) -> tuple[dict[str, torch.Tensor], str]:
    """Return the tensors of a state under their numbers, and the rest as JSON."""
    tensors: list[torch.Tensor] = []
    structure = json.dumps(_pack(state, tensors))
    return {str(n): tensor.detach().cpu().clone().contiguous() for n, tensor in enumerate(tensors)}, structure


def _pack(value: Any, tensors: list[torch.Tensor]) -> Any:
    """Return the value as JSON can hold it, its tensors replaced by their numbers in the list that they are added to."""
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
