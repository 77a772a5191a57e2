"""Remembers how long a step of the latest trainings took, to estimate those that wait in the queue."""

from __future__ import annotations

import hashlib
from typing import Any

REMEMBERED = 50  # trainings

# Inputs that hardly affect how long a step takes: those of the training node itself, and of any node before it.
_OF_TRAINING = {"steps", "learning_rate", "seed", "resume", "resume_stopped"}
_OF_ALL = {"text"}  # a prompt is padded or cut to the same length

_seconds: dict[str, float] = {}  # what the training is like -> seconds per step

Prompt = dict[str, dict]  # a graph in API format: node id -> class_type and inputs


def kind_of(prompt: Prompt, node_id: str) -> str:
    """Return a digest of a training and the graph before it that is the same for trainings whose steps take as long."""
    known: dict[str, str] = {}

    def digest(node_id: str, left_out: set[str]) -> str:
        if node_id not in known:
            known[node_id] = ""  # ends a loop of links, which a client may send
            node = prompt.get(node_id, {})
            inputs = {k: v for k, v in node.get("inputs", {}).items() if k not in left_out}
            parts = [(k, [digest(v[0], _OF_ALL), v[1]] if is_link(v) else v) for k, v in sorted(inputs.items())]
            known[node_id] = hashlib.sha256(repr([node.get("class_type"), parts]).encode()).hexdigest()
        return known[node_id]

    return digest(node_id, _OF_TRAINING)


def is_link(value: Any) -> bool:
    """Return whether the value of an input in a prompt is a connection to a node."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)


def note(kind: str, seconds: float) -> None:
    """Remember how many seconds a step of a kind of training takes."""
    _seconds.pop(kind, None)
    _seconds[kind] = seconds
    while len(_seconds) > REMEMBERED:
        del _seconds[next(iter(_seconds))]


def estimate(prompt: Prompt, node_id: str) -> float | None:
    """Return how many seconds the steps of a training take, or None if none like it was trained since the start."""
    steps = prompt[node_id]["inputs"].get("steps")
    seconds = _seconds.get(kind_of(prompt, node_id)) if _seconds and isinstance(steps, int) else None
    return None if seconds is None else steps * seconds
