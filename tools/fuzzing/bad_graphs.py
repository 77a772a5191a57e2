"""Workflows with wrong values, wires to nothing and parts that are missing, posted to a running ComfyUI."""

from __future__ import annotations

import time
from typing import Any

from hypothesis import strategies as st

from ...nodes import NODES
from ..server import Server
from .bad_loras import train_step
from .bad_values import NUMBERS, words
from .case import LIMIT, Case, Refused
from .sandbox import Sandbox
from .wiring import Wired, write_files

OURS = "TrainTrain_"
PATIENCE = 5.0  # seconds after which what runs is interrupted: a training of a million steps is no mistake
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


def cases(sandbox: Sandbox) -> st.SearchStrategy[Case]:
    """Return inputs: a small workflow that runs one of our nodes, with one thing wrong on one of them."""

    @st.composite
    def draw_case(draw: st.DrawFn) -> Case:
        graph = Wired(draw(st.sampled_from(NODES))).graph
        number = draw(st.sampled_from([key for key in graph if key.startswith(OURS)]))
        what = draw(st.sampled_from([*graph[number]["inputs"], "class_type", "unknown"]))
        value = draw(_values(graph, number))
        if what == "unknown" and isinstance(value, list):
            value = "x"  # a wire from nowhere to an input that no node has ends the queue of ComfyUI 0.30, whatever the node
        _put(graph, number, what, value)
        name = f"{number}.{what} = {repr(value)[:60]}"
        given = [str(value)[:20]] if str(value).strip() else []
        return Case("workflows", name, (what, *given, *NAMED), lambda: _post(sandbox.server, graph))

    return draw_case()


def _values(graph: dict, number: str) -> st.SearchStrategy[Any]:
    """Return values that an input may hold in JSON, and wires to and from everywhere; ... takes the input away."""
    wires = st.tuples(st.sampled_from([*graph, "99", 1]), st.sampled_from((0, 1, 2, 99, -1, "x"))).map(list)
    odd = (
        None,
        True,
        {},
        [],
        {"__value__": [1, 2]},
        {"__value__": None},
        {"a": {"b": []}},
        DEEP,
        [1, 2, 3],
        "NaN",
        "1e5",
    )
    return st.one_of(
        wires, st.just([number, 0]), st.sampled_from(odd), st.sampled_from(NUMBERS), st.floats(), words(), st.just(...)
    )


def _nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


DEEP = _nested(200)


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


def prepare(sandbox: Sandbox) -> None:
    """Put what the workflows name into the folders of the server, and of this process."""
    _, lora, _ = train_step(sandbox)
    for folder, loras in ((sandbox.server.base, "models/loras"), (sandbox.base, "loras")):
        write_files(folder / "input", folder / loras, lora)
