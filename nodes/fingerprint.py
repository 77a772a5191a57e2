"""The fingerprint of a training: a digest of everything that its result depends on.

What can be read counts by its content: images, prompts, LoRAs, settings, and the patches of a MODEL or CLIP. For the rest of
those, the files and the nodes that they come from stand in.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from comfy.cli_args import args

from ..trainer.weights_digest import tensor_bytes
from .model_files import describe_files, named_files

# A part of a prompt that follows from its tokens. In SD1 it is computed with random weights that are in no file, so it is
# different after each start of ComfyUI.
POOLED_OUTPUT = "pooled_output"

# Inputs and settings that do not affect the LoRA: what is shown and stored while it is trained.
NO_EFFECT = {"preview", "save_every", "keep_gb", "resume_stopped", "offload"}

_TYPE_FLAG = re.compile(r"(^|_)(fp|bf)\d+|upcast|_vae$|^fast$")  # ComfyUI's command line options that set number types

Prompt = dict[str, dict]  # a graph in API format: node id -> class_type and inputs


def fingerprint(inputs: dict[str, Any], prompt: Prompt, node_id: str) -> str:
    """Return 16 hexadecimal digits for a node's inputs, the graph before those that cannot be read, and the versions in use."""
    node = prompt.get(node_id, {})
    links = node.get("inputs", {})
    digest = hashlib.sha256(repr([node.get("class_type"), pack_version(), _type_flags()]).encode())
    for name, value in sorted(inputs.items()):
        if name in NO_EFFECT or value is None:
            continue
        content = _Content()
        content.add(value)
        link = links.get(name)
        source = _graph(prompt, link[0], {}) if content.is_opaque and _is_link(link) else ""
        digest.update(repr([name, content.hexdigest(), source, link[1] if source else 0]).encode())
    return digest.hexdigest()[:16]


def pack_version() -> str:
    """Return the version in pyproject.toml, or an empty text if the file is missing."""
    path = Path(__file__).parents[1] / "pyproject.toml"
    found = path.is_file() and re.search(r'^version = "(.+)"', path.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else ""


def _type_flags() -> list[tuple[str, list[str]]]:
    used = {name: value for name, value in vars(args).items() if value and _TYPE_FLAG.search(name)}
    return sorted(
        (name, sorted(map(str, value)) if isinstance(value, set) else [str(value)]) for name, value in used.items()
    )


def _graph(prompt: Prompt, node_id: str, known: dict[str, str]) -> str:
    """Return a digest of a node and all nodes before it, and of the files that they name. Node ids and titles do not count."""
    if node_id not in known:
        node = prompt.get(node_id, {})
        inputs = {
            name: [_graph(prompt, value[0], known), value[1]] if _is_link(value) else [value, _files_of(value)]
            for name, value in node.get("inputs", {}).items()
            if name not in NO_EFFECT
        }
        text = json.dumps([node.get("class_type"), inputs], sort_keys=True, default=str)
        known[node_id] = hashlib.sha256(text.encode()).hexdigest()
    return known[node_id]


def _is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)


def _files_of(value: Any) -> str:
    return describe_files(path for text in _texts(value) for path in named_files(text))


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts in a value of a graph."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


class _Content:
    """Digests values by content.

    is_opaque: whether some of it could not be read, so that where it comes from must count
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self.is_opaque = False

    def hexdigest(self) -> str:
        return self._digest.hexdigest()

    def add(self, value: Any) -> None:
        """Add a value with the name of its type, so that different values give different digests."""
        kind = (
            torch.Tensor if isinstance(value, torch.Tensor) else type(value)
        )  # images on disk count like those in memory
        self._add_text(f"|{kind.__name__}:")
        if isinstance(value, torch.Tensor):
            self._add_tensor(value)
        elif isinstance(value, dict):
            self._add_items(value)
        elif isinstance(value, (list, tuple)):
            for item in value:
                self.add(item)
        elif is_dataclass(value):
            self._add_items({field.name: getattr(value, field.name) for field in fields(value)})
        elif isinstance(value, (str, int, float, bool, type(None))):
            self._add_text(f"{value!r}{_files_of(value) if 'embedding:' in str(value) else ''}")
        else:
            self._add_object(value)

    def _add_text(self, text: str) -> None:
        self._digest.update(text.encode("utf-8", "surrogatepass"))

    def _add_tensor(self, tensor: torch.Tensor) -> None:
        if hasattr(tensor, "_qdata"):  # the host's quantized tensors
            tensor = tensor.dequantize()
        self._add_text(f"{tensor.dtype}{tuple(tensor.shape)}")
        if tensor.is_meta:  # has no values
            self.is_opaque = True
            return
        self._digest.update(tensor_bytes(tensor))

    def _add_items(self, items: dict) -> None:
        for key, item in sorted(items.items(), key=lambda pair: repr(pair[0])):
            if key == POOLED_OUTPUT:
                self.is_opaque = True
            elif key not in NO_EFFECT:
                self._add_text(repr(key))
                self.add(item)

    def _add_object(self, value: Any) -> None:
        """Add a MODEL, CLIP or VAE, a LoRA of the host's, or something unknown."""
        if isinstance(getattr(value, "weights", None), (list, tuple)):
            self.add(list(value.weights))
            return
        self.is_opaque = True
        patcher = getattr(value, "patcher", value)
        loader = getattr(patcher, "cached_patcher_init", None)
        self._add_text(_files_of(list(map(_as_list, loader[1]))) if loader else "")
        self.add(getattr(patcher, "patches", None) or {})
        if loader is None and hasattr(
            value, "first_stage_model"
        ):  # a VAE that the host cannot load again, such as TAESD
            self.add(dict(value.first_stage_model.state_dict()))


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
