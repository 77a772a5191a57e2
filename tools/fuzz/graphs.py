"""Workflows with wrong values, wires to nothing and parts that are missing, posted to a running ComfyUI."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from typing import Any

from ..server import Server
from ..shapes import pairs, pictures
from .case import LIMIT, Case, Refused
from .values import FLOATS, NUMBERS, WORDS
from .world import World

KIND = "workflows"
PATIENCE = 5.0  # seconds after which what runs is interrupted: a training of a million steps is no mistake
ENDS = ("7", "8", "11", "14", "16")  # the nodes that a workflow is run for
# What a sentence may name instead of the input: what the input leads to.
NAMED = (
    "folder",
    "name",
    "LoRA",
    "picture",
    "image",
    "prompt",
    "layers",
    "timesteps",
    "size",
    "optimizer",
    "lr_scheduler",
)


def cases(world: World, rng: random.Random, count: int) -> Iterator[Case]:
    """Yield inputs: a small workflow with one thing wrong on one of our nodes."""
    server = world.server
    for number in range(count):
        end = rng.choice(ENDS)
        graph = _leading_to(end)
        node = rng.choice([key for key in graph if graph[key]["class_type"].startswith("TrainTrain_")])
        what = rng.choice([*graph[node]["inputs"], "class_type", "unknown"])
        value = _draw(rng, node)
        if what == "unknown" and isinstance(value, list):
            value = "x"  # a wire from nowhere to an input that no node has ends the queue of ComfyUI 0.30, whatever the node
        _put(graph, node, what, value)
        name = f"{number} {graph[node].get('class_type')}.{what} = {repr(value)[:60]}"
        words = [str(value)[:20]] if str(value).strip() else []
        yield Case(KIND, name, (what, *words, *NAMED), lambda g=graph: _post(server, g))


def _draw(rng: random.Random, node: str) -> Any:
    deep: list = []
    for _ in range(200):
        deep = [deep]
    links = (["99", 0], [node, 0], ["1", 99], ["1", -1], ["1", "x"], [1, 0], ["1", 0], ["1", 2], ["2", 2], ["9", 0], [])
    odd = (None, True, {}, {"__value__": [1, 2]}, {"__value__": None}, {"a": {"b": []}}, deep, [1, 2, 3], "NaN", "1e5")
    return rng.choice(
        (rng.choice(links), rng.choice(odd), rng.choice(NUMBERS), rng.choice(FLOATS), rng.choice(WORDS), ...)
    )


def _put(graph: dict, node: str, what: str, value: Any) -> None:
    """Put a value into a workflow; ... takes what is there away."""
    inputs = graph[node] if what == "class_type" else graph[node]["inputs"]
    if value is ...:
        inputs.pop(what, None)
    else:
        inputs[what] = value


def _post(server: Server, graph: dict) -> None:
    body = {"prompt": graph, "extra_data": {"extra_pnginfo": {"workflow": {"id": "x"}}}}
    if server.get("/queue")["queue_running"]:
        raise Refused("Hang", "an earlier workflow still runs")
    try:
        status, answer = server.post("/prompt", body)
    except ValueError:  # the host's own answer to what it stumbles over is no JSON
        raise Refused("ValueError", f"The host refuses {NAMED[0]}.") from None
    if status != 200 or answer["node_errors"]:
        raise Refused("ValueError", f"The host refuses {NAMED[0]}.")
    for event, data in _wait(server, answer["prompt_id"]):
        if event == "execution_error" and data["node_type"].startswith("TrainTrain_"):
            raise Refused(data["exception_type"].rpartition(".")[2], data["exception_message"].strip())


def _wait(server: Server, prompt_id: str) -> list:
    """Return the events of a workflow that has ended."""
    started = time.monotonic()
    while time.monotonic() < started + 2 * LIMIT:
        if entry := server.get(f"/history/{prompt_id}").get(prompt_id):
            return entry["status"]["messages"]
        if time.monotonic() > started + PATIENCE:
            server.post("/interrupt", {})
        time.sleep(0.05)
    raise Refused("Hang", f"{prompt_id} does not end")


def prepare(server: Server) -> None:
    """Put pictures for the workflows into the server's input folder."""
    pictures.write(server.base / "input" / "purple_star")
    pairs.write(server.base / "input")
    folder = server.base / "input" / "fuzz_pairs"
    folder.mkdir(exist_ok=True)
    for name in ("pair_colour.png", "pair_colour_target.png"):
        (folder / name).write_bytes((server.base / "input" / name).read_bytes())


def _leading_to(end: str) -> dict[str, dict]:
    """Return what a node needs of the whole workflow, copied."""
    graph, needed, left = _workflow(), set(), [end]
    while left:
        needed.add(node := left.pop())
        left += [value[0] for value in graph[node]["inputs"].values() if isinstance(value, list)]
    return json.loads(json.dumps({key: graph[key] for key in graph if key in needed}))


def _workflow() -> dict[str, dict]:
    training = {"steps": 1, "batch_size": 1, "learning_rate": 1e-4, "seed": 0}
    wired = {**training, "network": ["4", 0], "settings": ["5", 0]}
    frame = {"width": 64, "height": 64, "buckets_step": 16, "min_length": 32, "max_ratio": 2.0}
    copies = {"sub_image_num": 0, "mirroring": False, "disable_upscale": False, "repeats": 1}
    network = {"network_type": "lierla", "rank": 2, "alpha": 1.0, "conv_rank": 0, "conv_alpha": 0.0, "element": "Full"}
    optimizer = {
        "optimizer": "AdamW",
        "optimizer_settings": "",
        "lr_scheduler": "constant",
        "lr_scheduler_settings": "",
    }
    loss = {"loss": "MSE", "snr_gamma": 5.0, "min_timestep": 0, "max_timestep": 1000, "fixed_timestep_in_batch": False}
    steps = {"warmup_steps": 0, "gradient_accumulation": 1, "max_grad_norm": 1.0, "gradient_checkpointing": False}
    last = {"text_encoder_learning_rate": 0.0, "precision": "as loaded", "save_every": 0}
    saving = {"name": "fuzz", "save_precision": "fp16", "strength": 1.0, "overwrite": True}
    read = {"include_subfolders": True, "captions": "caption file", "trigger_word": ""}
    prompts = {"original": ["9", 0], "target": ["9", 0], "width": 64, "height": 64, "denoise_steps": 0, "guidance": 0.0}
    two = {
        "original": ["12", 0],
        "target": ["12", 1],
        "original_conditioning": ["9", 0],
        "target_conditioning": ["9", 0],
    }
    differ = {"swap": False, "difference_mask": False, "alternation_ratio": 1.0, "bands": 10}
    sampling = {"every": 1, "width": 64, "height": 64, "steps": 1, "cfg": 1.0, "sampler_name": "euler"}
    show = {**sampling, "scheduler": "normal", "seed": 0, "positive": ["9", 0], "negative": ["9", 0], "vae": ["1", 2]}
    images = {"images": ["2", 0], "captions": ["2", 2], "masks": ["2", 1], "names": ["2", 3]}
    return {
        "1": _node("CheckpointLoaderSimple", ckpt_name="shapes.safetensors"),
        "2": _node("TrainTrain_LoadImageFolder", folder="purple_star", **read),
        "3": _node("TrainTrain_BucketImages", **images, **frame, **copies),
        "4": _node("TrainTrain_LoRANetwork", blocks="M00", **network),
        "5": _node("TrainTrain_TrainingSettings", **optimizer, **loss, **steps, **last),
        "6": _node(
            "TrainTrain_TrainLoRA", model=["1", 0], clip=["1", 1], vae=["1", 2], training_images=["3", 0], **wired
        ),
        "7": _node("TrainTrain_SaveLoRA", lora=["6", 2], **saving),
        "8": _node(
            "TrainTrain_PlotLoss", **{"loss.run1": ["10", 2]}, smoothing=2, name="fuzz", logarithmic=False, tables=""
        ),
        "9": _node("CLIPTextEncode", text="red", clip=["1", 1]),
        "10": _node("TrainTrain_TrainILECO", model=["1", 0], **prompts, **wired, preview=["15", 0]),
        "11": _node("TrainTrain_SaveLoRA", lora=["10", 1], **saving),
        "12": _node("TrainTrain_LoadImagePairs", folder="fuzz_pairs", suffix="_target", **read, **frame),
        "13": _node("TrainTrain_TrainADDifT", model=["1", 0], vae=["1", 2], **two, **wired, **differ),
        "14": _node("TrainTrain_SaveLoRA", lora=["13", 1], **saving),
        "15": _node("TrainTrain_PreviewSettings", **show),
        "16": _node("TrainTrain_SaveLoRA", lora=["17", 1], **saving),
        "17": _node("TrainTrain_TrainCopyMachine", **_copied(), **wired),
    }


def _copied() -> dict[str, list]:
    return {"model": ["1", 0], "vae": ["1", 2], "image": ["12", 0], "conditioning": ["9", 0]}


def _node(kind: str, **inputs: Any) -> dict:
    return {"class_type": kind, "inputs": inputs}
