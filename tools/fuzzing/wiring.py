"""What a node of ours needs to run, from its schema alone: a new node is tried without being named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image

from ...nodes import NODES
from .sandbox import Sandbox

PLAIN = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
# Instead of defaults: small and quick, and what there is in the folders.
QUICK = {"width": 64, "height": 64, "buckets_step": 16, "min_length": 32, "steps": 1, "batch_size": 1}
QUICK |= {"folder": "fuzz", "lora_name": "fuzz.safetensors", "name": "fuzz", "overwrite": True}
PROMPTS = "red", "blue"
SETTINGS = "TRAINTRAIN_"  # how the types of what our settings nodes make begin


def by_name(name: str) -> type:
    """Return the node of ours whose class has this name."""
    return next(node for node in NODES if node.__name__ == name)


def plain_inputs(node: type) -> list[Any]:
    """Return the inputs of a node that are typed in."""
    return [field for field in node.define_schema().inputs if _is_plain(field)]


def outputs(node: type) -> list[str]:
    """Return the types of a node's outputs."""
    return [output.io_type for output in node.define_schema().outputs]


def write_files(folder: Path, loras: Path, lora: bytes) -> None:
    """Put into an input folder and a LoRA folder what QUICK names."""
    (folder / "fuzz").mkdir(exist_ok=True)
    for name in ("0.png", "1.png", "fuzz/a.png", "fuzz/a_target.png"):
        Image.effect_noise((40, 32), 50).save(folder / name)
    (loras / QUICK["lora_name"]).write_bytes(lora)


def inputs_of(node: type, wire: Callable[[str, int], Any]) -> dict[str, Any]:
    """Return values for a node's inputs: small ones, defaults, and for the others what `wire(type, place)` gives.

    Of the optional ones only settings are wired.
    """
    values, wires = {}, 0
    for field in node.define_schema().inputs:
        if field.io_type == "COMFY_AUTOGROW_V3":
            values |= {f"{field.id}.{field.template.prefix}0": wire(field.template.input.io_type, wires)}
        elif _is_plain(field):
            values[field.id] = QUICK.get(field.id, _default(field))
        elif not field.optional or field.io_type.startswith(SETTINGS):
            values[field.id] = wire(field.io_type, wires)
            wires += 1
    return values


def maker(io_type: str) -> tuple[type, int]:
    """Return the node of ours that makes a type, and the place of its output."""
    return next((node, outputs(node).index(io_type)) for node in NODES if io_type in outputs(node))


class Loaded:
    """The inputs of nodes that run in this process."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        model, clip, vae = sandbox.models
        self._made = {
            "MODEL": model,
            "CLIP": clip,
            "VAE": vae,
            "STRING": "red",
            "LATENT": {"samples": torch.zeros(1, 4, 8, 8)},
        }

    def inputs(self, node: type) -> dict[str, Any]:
        """Return what the executor would give to a node."""
        values = inputs_of(node, self._wire)
        grown = {key: value for key, value in values.items() if "." in key}
        for key, value in grown.items():
            del values[key]
            values[key.partition(".")[0]] = {key.partition(".")[2]: value}
        return self.listed(node, values)

    def listed(self, node: type, values: dict[str, Any]) -> dict[str, Any]:
        """Put each value into a list, where a node takes lists."""
        return {key: [value] for key, value in values.items()} if node.define_schema().is_input_list else values

    def run(self, node: type, values: dict[str, Any]) -> tuple:
        """Run a node as the executor does; return its outputs."""
        node.hidden = SimpleNamespace(unique_id="1", prompt={}, extra_pnginfo=None)
        with torch.inference_mode():
            return node.execute(**values).args

    def _wire(self, io_type: str, place: int) -> Any:
        if io_type == "IMAGE":  # one unlike the other, and prompts, too: of equal ones nothing is learned
            return torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(place))
        if io_type == "CONDITIONING":
            clip = self.sandbox.models[1]
            return clip.encode_from_tokens_scheduled(clip.tokenize(PROMPTS[place % 2]))
        if io_type not in self._made:
            node, place = maker(io_type)
            self._made |= dict(zip(outputs(node), self.run(node, self.inputs(node)))) | self._made
        return self._made[io_type]


class Wired:
    """A workflow in API format that runs one node."""

    HOSTS = {
        "MODEL": ("CheckpointLoaderSimple", {"ckpt_name": "shapes.safetensors"}, 0),
        "CLIP": ("CheckpointLoaderSimple", {"ckpt_name": "shapes.safetensors"}, 1),
        "VAE": ("CheckpointLoaderSimple", {"ckpt_name": "shapes.safetensors"}, 2),
        "STRING": ("PrimitiveString", {"value": "red"}, 0),
        "LATENT": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1}, 0),
    }

    def __init__(self, node: type) -> None:
        self.graph: dict[str, dict] = {}
        self._add(node.define_schema().node_id, inputs_of(node, self._wire))
        if not node.define_schema().is_output_node:
            self._add("PreviewAny", {"source": [node.define_schema().node_id, 0]})

    def _wire(self, io_type: str, place: int) -> list:
        if io_type == "IMAGE":
            return self._add("LoadImage", {"image": f"{place % 2}.png"}, f"image {place % 2}")
        if io_type == "CONDITIONING":
            prompt = PROMPTS[place % 2]
            return self._add("CLIPTextEncode", {"text": prompt, "clip": self._wire("CLIP", 0)}, f"prompt {prompt}")
        if io_type in self.HOSTS:
            kind, inputs, output = self.HOSTS[io_type]
            return [self._add(kind, inputs)[0], output]
        node, output = maker(io_type)
        return [self._add(node.define_schema().node_id, inputs_of(node, self._wire))[0], output]

    def _add(self, kind: str, inputs: dict[str, Any], number: str = "") -> list:
        self.graph[number or kind] = {"class_type": kind, "inputs": inputs}
        return [number or kind, 0]


def _is_plain(field: Any) -> bool:
    return field.io_type in PLAIN and not getattr(field, "force_input", None)


def _default(field: Any) -> Any:
    return field.default if field.default is not None else (field.options or [""])[0]
