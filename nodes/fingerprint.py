"""Tells whether a training is the same as one before: a digest of all that its result depends on."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import fields, is_dataclass
from typing import Any

import torch

# Of a prompt beside its tokens, from which it follows. With SD1 it is made with weights that no file holds, so it is
# another after each start of the host.
POOLED = "pooled_output"

WATCHING = {"preview"}  # inputs that show a training and leave its result as it is

Prompt = dict[str, dict]  # a graph as the host runs it: node id -> class_type and inputs


def fingerprint(inputs: dict[str, Any], prompt: Prompt, node_id: str) -> str:
    """Return 16 hexadecimal digits for a node's inputs and the graph that leads to it.

    Pictures, prompts and LoRAs count by their content; models by their files and by the nodes they came through.
    """
    digest = hashlib.sha256(_graph(prompt, node_id, {}).encode())
    _add(digest, inputs)
    return digest.hexdigest()[:16]


def _graph(prompt: Prompt, node_id: str, known: dict[str, str]) -> str:
    """Digest a node and all before it. Node ids and titles do not count."""
    if node_id not in known:
        node = prompt.get(node_id, {})
        inputs = {
            name: [_graph(prompt, value[0], known), value[1]] if _is_link(value) else value
            for name, value in node.get("inputs", {}).items()
            if name not in WATCHING
        }
        text = json.dumps([node.get("class_type"), inputs], sort_keys=True, default=str)
        known[node_id] = hashlib.sha256(text.encode()).hexdigest()
    return known[node_id]


def _is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)


def _add(digest: Any, value: Any) -> None:
    """Add a value to a digest, each kind under its name, so that no two values read alike."""
    kind = torch.Tensor if isinstance(value, torch.Tensor) else type(value)  # pixels on disk count as read ones
    digest.update(f"|{kind.__name__}:".encode())
    if isinstance(value, torch.Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    elif isinstance(value, dict):
        for key, item in value.items():
            if key != POOLED:
                digest.update(repr(key).encode())
                _add(digest, item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _add(digest, item)
    elif is_dataclass(value):
        _add(digest, {field.name: getattr(value, field.name) for field in fields(value)})
    elif isinstance(value, (str, int, float, bool, type(None))):
        digest.update(repr(value).encode())
    else:
        digest.update(_model_files(value).encode())


def _model_files(model: Any) -> str:
    """Name the files that a MODEL, CLIP or VAE was loaded from, with size and time."""
    loader = getattr(getattr(model, "patcher", model), "cached_patcher_init", None) or ((), ())
    paths = [path for given in loader[1] for path in (given if isinstance(given, (list, tuple)) else [given])]
    files = [path for path in paths if isinstance(path, str) and os.path.isfile(path)]
    return repr([(path, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in files])
