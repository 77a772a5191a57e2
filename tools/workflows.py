"""Writes `example_workflows/`: each graph is a few lines here, laid out alike, from left to right.

    python -m tools.workflows --comfyui .host/ComfyUI --base .host/base

Asks a running ComfyUI for the order of each node's inputs, so the files fit the nodes as they are.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .host import ROOT
from .server import Server

EXAMPLES = ROOT / "example_workflows"
GAP = 40  # pixels between nodes of a column
LINE = 24  # pixels of a slot or a widget
TITLE = 30
MARGIN = 20  # pixels between a group's frame and its nodes
GROUP_COLOURS = ("#3f789e", "#8A8", "#a1309b", "#b58b2a")
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


@dataclass(frozen=True)
class Slot:
    """One output of a node."""

    node: int
    index: int
    type: str


class Graph:
    """A workflow in the page's format, built column by column."""

    def __init__(self, object_info: dict) -> None:
        self._info = object_info
        self._nodes: list[dict] = []
        self._links: list[list] = []
        self._groups: list[dict] = []
        self._x = self._y = 0

    def column(self, x: int, y: int = 0) -> None:
        """Put the next nodes below one another from here."""
        self._x, self._y = x, y

    def note(self, text: str, width: int = 320, height: int = 160) -> None:
        """Place a note in Markdown."""
        self._place(
            {
                "type": "MarkdownNote",
                "inputs": [],
                "outputs": [],
                "properties": {},
                "widgets_values": [text],
                "color": "#432",
                "bgcolor": "#653",
            },
            "",
            width,
            height,
        )

    def add(self, kind: str, title: str = "", node_width: int = 300, **values: Any) -> list[Slot]:
        """Place a node and return its outputs. Values are other nodes' outputs or what a widget holds."""
        info = self._info[kind]
        number = len(self._nodes) + 1
        inputs, widgets = [], []
        for name, spec in _inputs(info):
            if spec[0] == "COMFY_AUTOGROW_V3":
                prefix = spec[1]["template"]["prefix"]
                for index, slot in enumerate(values.pop(name, [])):
                    inputs.append(self._link(f"{name}.{prefix}{index}", slot, number, len(inputs)))
            elif _is_widget(spec):
                widgets.append(values.pop(name, _default(spec)))
                if spec[-1].get("control_after_generate"):
                    widgets.append("fixed")
            else:
                slot = values.pop(name, None)
                inputs.append(
                    self._link(name, slot, number, len(inputs))
                    if slot
                    else {"name": name, "type": spec[0], "link": None}
                )
        if values:
            raise ValueError(f"{kind} has no input {', '.join(values)}")
        outputs = [
            {"name": name, "type": kind_of, "links": []} for name, kind_of in zip(info["output_name"], info["output"])
        ]
        height = TITLE + LINE * (max(len(inputs), len(outputs)) + len(widgets)) + _extra_height(kind, info)
        self._place(
            {
                "type": kind,
                "inputs": inputs,
                "outputs": outputs,
                "properties": {"Node name for S&R": kind},
                "widgets_values": widgets,
            },
            title,
            node_width,
            height,
        )
        return [Slot(number, index, output["type"]) for index, output in enumerate(outputs)]

    @contextmanager
    def group(self, title: str) -> Iterator[None]:
        """Draw a titled frame round the nodes that the block places."""
        first = len(self._nodes)
        yield
        boxes = [
            (*node["pos"], node["pos"][0] + node["size"][0], node["pos"][1] + node["size"][1])
            for node in self._nodes[first:]
        ]
        left, top = min(box[0] for box in boxes) - MARGIN, min(box[1] for box in boxes) - TITLE - 2 * MARGIN - TITLE
        right, bottom = max(box[2] for box in boxes) + MARGIN, max(box[3] for box in boxes) + MARGIN
        self._groups.append(
            {
                "id": len(self._groups) + 1,
                "title": title,
                "bounding": [left, top, right - left, bottom - top],
                "color": GROUP_COLOURS[len(self._groups) % len(GROUP_COLOURS)],
                "font_size": 24,
                "flags": {},
            }
        )

    def write(self, name: str) -> None:
        """Write the workflow as `example_workflows/NAME.json`."""
        workflow = {
            "last_node_id": len(self._nodes),
            "last_link_id": len(self._links),
            "nodes": self._nodes,
            "links": self._links,
            "groups": self._groups,
            "config": {},
            "extra": {},
            "version": 0.4,
        }
        EXAMPLES.mkdir(exist_ok=True)
        (EXAMPLES / f"{name}.json").write_text(json.dumps(workflow, indent=1) + "\n", encoding="utf-8")

    def _place(self, node: dict, title: str, width: int, height: int) -> None:
        number = len(self._nodes)
        self._nodes.append(
            {
                "id": number + 1,
                "pos": [self._x, self._y + TITLE],
                "size": [width, height],
                "flags": {},
                "order": number,
                "mode": 0,
                **({"title": title} if title else {}),
                **node,
            }
        )
        self._y += height + TITLE + GAP

    def _link(self, name: str, slot: Slot, node: int, index: int) -> dict:
        link = len(self._links) + 1
        self._links.append([link, slot.node, slot.index, node, index, slot.type])
        self._nodes[slot.node - 1]["outputs"][slot.index]["links"].append(link)
        return {"name": name, "type": slot.type, "link": link}


def train_lora(graph: Graph) -> None:
    """Teach the model a purple star, and compare."""
    with graph.group("1. Model and pictures"):
        graph.column(0)
        model, clip, vae = graph.add("CheckpointLoaderSimple", ckpt_name="shapes.safetensors")
        images, masks, captions, names = graph.add("TrainTrain_LoadImageFolder", folder="purple_star")
        graph.note(TRAIN_LORA_NOTE, height=380)
        graph.column(360)
        images, preview, _ = graph.add(
            "TrainTrain_BucketImages",
            images=images,
            captions=captions,
            masks=masks,
            names=names,
            width=64,
            height=64,
            buckets_step=8,
            min_length=64,
            mirroring=True,
        )
        graph.add("PreviewImage", "What is trained", images=preview)
    with graph.group("2. Training"):
        graph.column(740)
        (network,) = graph.add("TrainTrain_LoRANetwork", network_type="c3lier", rank=16, alpha=16.0)
        (settings,) = graph.add("TrainTrain_TrainingSettings")
        graph.column(1100)
        trained, trained_clip, lora, loss = graph.add(
            "TrainTrain_TrainLoRA",
            model=model,
            clip=clip,
            vae=vae,
            training_images=images,
            network=network,
            settings=settings,
            steps=500,
            batch_size=4,
            learning_rate=2e-3,
            seed=1,
        )
        graph.add("TrainTrain_SaveLoRA", "Save LoRA", lora=lora, name="purple_star")
        graph.add("TrainTrain_PlotLoss", "Plot Loss", loss=[loss], name="purple_star")
    with graph.group("3. Before and after"):
        graph.column(1480)
        (positive,) = graph.add(
            "CLIPTextEncode", "Prompt", clip=trained_clip, text="a purple star on a white background"
        )
        (negative,) = graph.add("CLIPTextEncode", "Negative prompt", clip=trained_clip, text="")
        (latent,) = graph.add("EmptyLatentImage", width=64, height=64, batch_size=4)
        graph.column(1840)
        sampling = {
            "seed": 42,
            "steps": 20,
            "cfg": 4.0,
            "sampler_name": "euler",
            "scheduler": "normal",
            "positive": positive,
            "negative": negative,
            "latent_image": latent,
        }
        (before,) = graph.add("KSampler", "Before", model=model, **sampling)
        (after,) = graph.add("KSampler", "After", model=trained, **sampling)
        graph.column(2200)
        (before,) = graph.add("VAEDecode", samples=before, vae=vae)
        (after,) = graph.add("VAEDecode", samples=after, vae=vae)
        (pairs,) = graph.add(
            "ImageStitch", "Before above after", image1=before, image2=after, direction="down", spacing_width=2
        )
        (pairs,) = graph.add("RebatchImages", images=pairs, batch_size=1)
        (grid,) = graph.add("ImageGrid", images=pairs, columns=4, cell_width=192, cell_height=384)
        graph.column(2560)
        graph.add(
            "SaveImage", "Before (top) and after (bottom)", node_width=440, images=grid, filename_prefix="purple_star"
        )


TRAIN_LORA_NOTE = """### Teach a model something new

Pictures with captions go in, a LoRA and a model that draws them come out. Queue it: the demonstration model learns what a \
*purple star* is, in two or three minutes on two CPU cores.

**Your own:** choose your checkpoint, put your pictures and a `.txt` with its caption beside each into a folder in `input`, \
name the folder above, and set:

| | Shapes | SD1.5 | SDXL |
|---|---|---|---|
| width, height | 64 | 512 | 1024 |
| buckets_step | 8 | 64 | 64 |
| min_length | 64 | 384 | 512 |
| steps | 500 | 1000 | 1500 |
| learning_rate | 2e-3 | 1e-4 | 1e-4 |
| network | c3lier 16/16 | lierla 16/8 | lierla 16/8 |
"""


def _inputs(info: dict) -> list[tuple[str, list]]:
    return [
        (name, info["input"][kind][name])
        for kind in ("required", "optional")
        for name in info["input_order"].get(kind, [])
    ]


def _is_widget(spec: list) -> bool:
    return (isinstance(spec[0], list) or spec[0] in WIDGET_TYPES) and not (len(spec) > 1 and spec[1].get("forceInput"))


def _default(spec: list) -> Any:
    options = spec[1] if len(spec) > 1 else {}
    if "default" in options:
        return options["default"]
    choices = spec[0] if isinstance(spec[0], list) else options.get("options", [""])
    return choices[0]


def _extra_height(kind: str, info: dict) -> int:
    """Return the pixels for what a node shows beside its widgets."""
    if kind == "CLIPTextEncode":
        return 70
    return {"SaveImage": 400, "PreviewImage": 240, "TrainTrain_PlotLoss": 300}.get(kind, 0)


GRAPHS = [train_lora]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    options = parser.parse_args()
    with Server(options.comfyui.resolve(), options.base.resolve()) as server:
        object_info = server.get("/object_info")
    for build in GRAPHS:
        graph = Graph(object_info)
        build(graph)
        graph.write(build.__name__)


if __name__ == "__main__":
    main()
