"""Builds a workflow in the page's format, laid out from left to right."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COLUMN = 380  # pixels from a column of nodes to the next
GAP = 40  # pixels between nodes of a column
LINE = 24  # pixels of a slot or a widget
TITLE = 30
MARGIN = 20  # pixels between a group's frame and its nodes
GROUP_COLOURS = ("#3f789e", "#8A8", "#a1309b", "#b58b2a")
EXTRA_HEIGHTS = {
    "CLIPTextEncode": 70,
    "LoadImage": 260,
    "PreviewImage": 240,
    "SaveImage": 400,
    "TrainTrain_BucketImages": 260,
    "TrainTrain_LoadImageFolder": 150,
    "TrainTrain_LoadImagePairs": 150,
    "TrainTrain_LoRANetwork": 240,
    "TrainTrain_PlotLoss": 300,
}
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

    def column(self, number: int, y: int = 0) -> None:
        """Put the next nodes below one another in this column, from `y` on."""
        self._x, self._y = number * COLUMN, y

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
                value = values.pop(name, _default(spec))
                if isinstance(value, Slot):  # a wire in the place of the widget
                    inputs.append(self._link(name, value, number, len(inputs)) | {"widget": {"name": name}})
                    value = _default(spec)
                widgets += [value, *_companion(spec)]
            else:
                slot = values.pop(name, None)
                free = {"name": name, "type": spec[0], "link": None}
                inputs.append(self._link(name, slot, number, len(inputs)) if slot else free)
        if values:
            raise ValueError(f"{kind} has no input {', '.join(values)}")
        outputs = [
            {"name": name, "type": kind_of, "links": []} for name, kind_of in zip(info["output_name"], info["output"])
        ]
        height = TITLE + LINE * (max(len(inputs), len(outputs)) + len(widgets)) + _extra_height(kind)
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

    def write(self, path: Path) -> None:
        """Write the workflow."""
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
        path.write_text(json.dumps(workflow, indent=1) + "\n", encoding="utf-8")

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
        self._source(slot).append(link)
        return {"name": name, "type": slot.type, "link": link}

    def _source(self, slot: Slot) -> list[int]:
        """Return the list of the links that leave a slot."""
        return self._nodes[slot.node - 1]["outputs"][slot.index]["links"]


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


def _companion(spec: list) -> list[str]:
    """Return what the page saves behind a widget, for one that it puts there itself."""
    options = spec[-1] if isinstance(spec[-1], dict) else {}
    if options.get("control_after_generate"):
        return ["fixed"]
    return ["image"] if options.get("image_upload") else []


def _extra_height(kind: str) -> int:
    """Return the pixels for what a node shows beside its widgets."""
    if kind.startswith("TrainTrain_Train") and kind != "TrainTrain_TrainingSettings":
        return 400  # a button, the chart, and samples where Preview Settings is wired
    return EXTRA_HEIGHTS.get(kind, 0)
