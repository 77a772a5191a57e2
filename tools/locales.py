"""Writes `locales/en/nodeDefs.json`: what the nodes say, in the form that ComfyUI's page translates from.

    python -m tools.locales --comfyui .host/ComfyUI --base .host/base

Asks a running ComfyUI for the nodes. The other languages beside it are written by hand, with the same keys.
"""

from __future__ import annotations

import json
from typing import Any

from .host import ROOT
from .server import server_of_arguments

LOCALES = ROOT / "locales"
NODE_DEFS = "nodeDefs.json"
OURS = "TrainTrain_"  # how the ids of the pack's nodes begin


def node_defs(object_info: dict[str, dict]) -> dict[str, dict]:
    """Return what the pack's nodes say, by node id."""
    return {name: _node_def(info) for name, info in sorted(object_info.items()) if name.startswith(OURS)}


def to_text(definitions: dict[str, dict]) -> str:
    """Write definitions as they stand in a file."""
    return json.dumps(definitions, indent=2, ensure_ascii=False) + "\n"


def _node_def(info: dict[str, Any]) -> dict[str, Any]:
    inputs = {name: spec[1] for kind in ("required", "optional") for name, spec in info["input"].get(kind, {}).items()}
    outputs = zip(info["output_name"], info["output_tooltips"])
    return {
        "display_name": info["display_name"],
        "description": info["description"],
        "inputs": {_key(name): {"name": name, "tooltip": _tooltip(options)} for name, options in inputs.items()},
        "outputs": {str(place): {"name": name, "tooltip": text} for place, (name, text) in enumerate(outputs)},
    }


def _key(name: str) -> str:
    """Return the page's key for the name of an input."""
    return name.replace(".", "_")


def _tooltip(options: dict[str, Any]) -> str:
    """Return an input's tooltip; that of an input which grows by the wires is in its template."""
    if "template" not in options:
        return options["tooltip"]
    ((_, template),) = options["template"]["input"]["required"].values()
    return template["tooltip"]


def main() -> None:
    with server_of_arguments(__doc__) as server:
        object_info = server.get("/object_info")
    path = LOCALES / "en" / NODE_DEFS
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_text(node_defs(object_info)), encoding="utf-8")


if __name__ == "__main__":
    main()
