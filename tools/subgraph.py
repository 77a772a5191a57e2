"""Builds a subgraph and writes it as a blueprint, which ComfyUI offers in its node library."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

from .graph import COLUMN, LINE, Graph, Slot

INPUT_NODE, OUTPUT_NODE = -10, -20  # the page's ids of a subgraph's two ends
END_WIDTH = 120


class Subgraph(Graph):
    """A graph with inputs and outputs of its own. Its nodes stand between column 0 and the last one used."""

    def __init__(self, object_info: dict, name: str, inputs: dict[str, str]) -> None:
        """Begin with named inputs and their types."""
        super().__init__(object_info)
        self.name = name
        self._ports = [self._port(port, kind) for port, kind in inputs.items()]
        self._outputs: list[dict] = []
        self.inputs = {port: Slot(INPUT_NODE, i, kind) for i, (port, kind) in enumerate(inputs.items())}

    def output(self, name: str, slot: Slot) -> None:
        """Lead a node's output out."""
        link = self._link(name, slot, OUTPUT_NODE, len(self._outputs))["link"]
        self._outputs.append(self._port(name, slot.type) | {"linkIds": [link]})

    def write_blueprint(self, folder: Path, description: str, category: str, aliases: list[str]) -> None:
        """Write the subgraph as `NAME.json`; the node library shows the file's name."""
        definition = self._definition() | {"category": category, "description": description}
        blueprint = {
            "revision": 0,
            "last_node_id": 1,
            "last_link_id": 0,
            "nodes": [self._instance(definition["id"])],
            "links": [],
            "version": 0.4,
            "definitions": {"subgraphs": [definition]},
            "extra": {"BlueprintDescription": description, "BlueprintSearchAliases": aliases},
        }
        folder.mkdir(exist_ok=True)
        (folder / f"{self.name}.json").write_text(json.dumps(blueprint, indent=1) + "\n", encoding="utf-8")

    def _definition(self) -> dict:
        right = max(node["pos"][0] for node in self._nodes) + COLUMN
        keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
        return {
            "id": self._id(self.name),
            "version": 1,
            "state": {
                "lastGroupId": len(self._groups),
                "lastNodeId": len(self._nodes),
                "lastLinkId": len(self._links),
                "lastRerouteId": 0,
            },
            "revision": 0,
            "config": {},
            "name": self.name,
            "inputNode": self._end(INPUT_NODE, -COLUMN, self._ports),
            "outputNode": self._end(OUTPUT_NODE, right, self._outputs),
            "inputs": self._ports,
            "outputs": self._outputs,
            "widgets": [],
            "nodes": self._nodes,
            "groups": self._groups,
            "links": [dict(zip(keys, link)) for link in self._links],
            "extra": {"workflowRendererVersion": "LG"},
        }

    def _instance(self, definition: str) -> dict:
        """Return the node that stands for the subgraph in a workflow."""
        widgets = {port: self._widget(port) for port in self.inputs}
        return {
            "id": 1,
            "type": definition,
            "pos": [0, 0],
            "size": [320, LINE * (len(self.inputs) + len(self._outputs) + 4)],
            "flags": {},
            "order": 0,
            "mode": 0,
            "inputs": [
                {"name": port, "type": slot.type, "link": None} | ({"widget": {"name": port}} if widgets[port] else {})
                for port, slot in self.inputs.items()
            ],
            "outputs": [{"name": port["name"], "type": port["type"], "links": []} for port in self._outputs],
            "properties": {"proxyWidgets": [widget for widget in widgets.values() if widget]},
            "widgets_values": [],
            "title": self.name,
        }

    def _widget(self, port: str) -> list[str] | None:
        """Return the node and the widget that an input stands for, [NODE, WIDGET]; None if it is a mere wire."""
        links = self._ports[self.inputs[port].index]["linkIds"]
        for node in self._nodes:
            for slot in node["inputs"]:
                if slot["link"] in links and "widget" in slot:
                    return [str(node["id"]), slot["widget"]["name"]]
        return None

    def _source(self, slot: Slot) -> list[int]:
        return self._ports[slot.index]["linkIds"] if slot.node == INPUT_NODE else super()._source(slot)

    def _port(self, name: str, kind: str) -> dict:
        return {"id": self._id(f"{self.name}/{kind}/{name}"), "name": name, "type": kind, "linkIds": []}

    @staticmethod
    def _end(number: int, x: int, ports: list[dict]) -> dict:
        return {"id": number, "bounding": [x, 0, END_WIDTH, LINE * (len(ports) + 1)]}

    @staticmethod
    def _id(name: str) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"traintrain/{name}"))
