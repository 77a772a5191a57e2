"""Numbers, words and lists at the limits of every input of every node, and beyond."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load

from ...nodes import NODES
from ...nodes.addift import TrainADDifT
from ...nodes.files import LoadLoRA, PlotLoss, SaveLoRA
from ...nodes.images import BucketImages, LoadImageFolder
from ...nodes.inputs import check_values
from ...nodes.pairs import LoadImagePairs
from ...nodes.preview import PreviewSettings
from ...nodes.settings import LoRANetwork, TrainingSettings
from ...nodes.training import TrainingNode
from .case import Case
from .loras import good_lora
from .world import World

KIND = "node values"
WORDS = (
    "",
    " ",
    "x" * 5000,
    "a\0b",
    "\ud800",
    "\u732b\U0001f431",
    "../..",
    "/etc",
    "~",
    "C:\\x",
    "C:x",
    "\\\\host\\share",
    "//host/x",
)
WORDS += (
    "CON",
    "nul.txt",
    "a:b",
    "a.",
    "a/",
    "-",
    ",",
    "=",
    "a=b",
    "a=b,a=b",
    "(" * 5000,
    "a=" + "[" * 5000,
    "a=1e999",
)
WORDS += (
    "betas=(1,)",
    "weight_decay=nan",
    "lr=1",
    "eps=-1",
    "IN99",
    "-all",
    "IN04-",
    "all,-all",
    "BASE",
    "{0.__class__}",
)
WORDS += (
    "-" * 5000,
    "a=" + "9" * 5000,
    "a=" + "-" * 5000 + "1",
    "secret",
    "%s%n",
    "nan",
    "None",
    "*",
    "[",
    "loss,loss",
)
NUMBERS = (0, -1, 1, 2, 7, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30)
FLOATS = (float("nan"), float("inf"), -float("inf"), 1e308, -1e308, 5e-324, 0.0, -0.0, 1.5, -1.0)


def cases(world: World, rng: random.Random, count: int) -> Iterator[Case]:
    """Yield inputs: a node with one or two values that come by wire, where the host checks nothing."""
    nodes = [node for node in NODES if _plain_inputs(node)]
    given = _given(world)
    for number in range(count):
        node = nodes[number % len(nodes)]
        fields = rng.sample(_plain_inputs(node), k=min(len(_plain_inputs(node)), rng.choice((1, 1, 2))))
        values = {field.id: _draw(rng, field) for field in fields}
        name = ", ".join(f"{key}={str(value)[:30]!r}" for key, value in values.items())
        listed = node.define_schema().is_input_list
        words = tuple(str(value)[:20] for value in values.values() if isinstance(value, str) and value.strip())
        named = (*values, *words, *(repr(word)[1:-1] for word in words), "folder", "suffix", "name", "blocks")
        values = {key: [value] if listed else value for key, value in values.items()}
        run = lambda n=node, v=values: _run(n, {**_defaults(n), **given.get(n, {}), **v})  # noqa: E731
        yield Case(KIND, f"{number} {node.__name__} {name}", named, run)


def _run(node: type, values: dict[str, Any]) -> None:
    """Run a node as the executor does; a training no further than to its first step."""
    node.hidden = SimpleNamespace(unique_id="1", prompt={}, extra_pnginfo=None)
    with torch.inference_mode():
        if issubclass(node, TrainingNode):
            check_values(node, values)
            node.prepare(**{key: value for key, value in values.items() if key != "preview"})
        else:
            node.execute(**values)


def _plain_inputs(node: type) -> list[Any]:
    return [
        field
        for field in node.define_schema().inputs
        if field.io_type in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
    ]


def _defaults(node: type) -> dict[str, Any]:
    listed = node.define_schema().is_input_list
    values = {field.id: field.default for field in _plain_inputs(node) if not getattr(field, "force_input", None)}
    return {key: [value] if listed else value for key, value in values.items()}


def _draw(rng: random.Random, field: Any) -> Any:
    draws: dict[str, Callable[[], Any]] = {
        "INT": lambda: rng.choice((*NUMBERS, field.min, field.max, field.min - 1, field.max + 1)),
        "FLOAT": lambda: float(rng.choice((*FLOATS, field.min, field.max, field.min - 1e-6, field.max + 1e-6))),
        "BOOLEAN": lambda: rng.choice((True, False)),
        "COMBO": lambda: rng.choice((*(field.options or ()), *WORDS)),
        "STRING": lambda: rng.choice(WORDS),
    }
    return draws[field.io_type]()


def _given(world: World) -> dict[type, dict[str, Any]]:
    """Return what is wired into the nodes, and the values that make them quick."""
    model, clip, vae = world.models
    folder, pairs = world.new_folder(), world.new_folder()
    for path in (folder / "a.png", pairs / "a.png", pairs / "a_target.png"):
        Image.effect_noise((40, 32), 50).save(path)
    picture = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    prompt = clip.encode_from_tokens_scheduled(clip.tokenize("red"))
    frame = {"width": 64, "height": 64, "min_length": 32, "buckets_step": 16}
    images = [picture], ["red"]
    bucketed = BucketImages.execute(*images, **_defaults(BucketImages) | {key: [value] for key, value in frame.items()})
    training = {"model": model, "vae": vae, "image": picture, "conditioning": prompt}
    by_name: dict[str, dict[str, Any]] = {
        "TrainLoRA": {"model": model, "clip": clip, "vae": vae, "training_images": bucketed.args[0]},
        "TrainILECO": {"model": model, "original": prompt, "target": prompt},
        "TrainCopyMachine": training,
        "TrainDifference": {**training, "copy_machine": load(good_lora(world))},
    }
    pair = {"original": [picture], "target": [1 - picture], "model": [model], "vae": [vae]}
    return {
        **{node: by_name[node.__name__] for node in NODES if node.__name__ in by_name},
        LoadImageFolder: {"folder": folder.name},
        LoadImagePairs: {"folder": pairs.name, **frame},
        BucketImages: {"images": images[0], "captions": images[1], **{key: [value] for key, value in frame.items()}},
        PreviewSettings: {"positive": prompt, "negative": prompt, "vae": vae},
        TrainADDifT: {**pair, "original_conditioning": [prompt], "target_conditioning": [prompt]},
        SaveLoRA: {"lora": {"x.lora_up.weight": torch.ones(2, 2)}},
        LoadLoRA: {"lora_name": "nothing"},
        PlotLoss: {"loss": {"run1": {"loss": [0.5, 0.25], "name": "a"}}},
        LoRANetwork: {},
        TrainingSettings: {},
    }
