"""A run under torchrun: the first process runs the workflow, the others its trainings, each in a ComfyUI of its own.

The processes share the work of a training (trainer/processes.py) and must be in the same one, so the first broadcasts
through torchrun's store which training its graph has come to.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .errors import ToolError
from .host_paths import has_nvidia_driver
from .runner import OnEvent, Output, run_workflow
from .server import Server

PREFIX = "TrainTrain_Train"  # of the classes of training nodes


def rank() -> int:
    """Return the number of this process among those of torchrun; 0 without torchrun."""
    return int(os.environ["RANK"]) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def is_alone() -> bool:
    """Tell whether no other process takes part."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["WORLD_SIZE"] == "1"


@contextmanager
def own_server(comfyui: Path, base: Path) -> Iterator[Server]:
    """Run this process's ComfyUI, on its own GPU and with a temporary folder of its own, which ComfyUI empties."""
    if is_alone():
        with Server(comfyui, base) as server:
            yield server
        return
    with tempfile.TemporaryDirectory() as folder:
        options = ["--temp-directory", folder]
        if has_nvidia_driver():
            options += ["--cuda-device", os.environ["LOCAL_RANK"]]
        log = base / (f"server_{rank()}.log" if rank() else "server.log")
        with Server(comfyui, base, log=log, options=options) as server:
            yield server


def run_together(server: Server, prompt: dict, object_info: dict, on_event: OnEvent) -> list[Output]:
    """Run a workflow in API format together with the other processes; return what the output nodes of this one show.

    Raises ToolError as run_workflow does.
    """
    if is_alone():
        return run_workflow(server, prompt, on_event)
    turns = _Turns()
    if rank() == 0:
        try:
            return run_workflow(server, prompt, turns.announced(_trainings(prompt, object_info), on_event))
        finally:
            turns.announce("")
    reached: list[str] = []
    while node := turns.wait_for(len(reached)):
        reached.append(node)
        # The earlier ones again: a later one may need them, and ComfyUI forgets what a prompt does not have.
        run_workflow(server, trainings_alone(prompt, reached, object_info))
    return []


def trainings_alone(prompt: dict, nodes: Sequence[str], object_info: dict) -> dict:
    """Return a workflow in API format with these trainings and what they need, and none of what comes after them."""
    kept: dict[str, dict] = {}
    left = list(nodes)
    while left:
        number = left.pop()
        kept[number] = prompt[number]
        left += [value[0] for value in prompt[number]["inputs"].values() if isinstance(value, list)]
    for number in nodes:  # ComfyUI runs only what some output node needs
        loss = object_info[prompt[number]["class_type"]]["output"].index("LOSS_MAP")
        kept[f"end of {number}"] = {"class_type": "PreviewAny", "inputs": {"source": [number, loss]}}
    return kept


def _trainings(prompt: dict, object_info: dict) -> set[str]:
    return {
        number
        for number, node in prompt.items()
        if node["class_type"].startswith(PREFIX) and "LOSS_MAP" in object_info[node["class_type"]]["output"]
    }


class _Turns:
    """Which trainings the first process has come to, in order, and an empty name at the end."""

    def __init__(self) -> None:
        from torch.distributed import PrefixStore, TCPStore  # takes a second, which one process alone need not wait

        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self._store = PrefixStore("traintrain", TCPStore(address, port, is_master=False))
        self._announced = 0

    def announced(self, trainings: set[str], on_event: OnEvent) -> OnEvent:
        """Return what follows events as `on_event` does, and announces the trainings among them."""

        def follow(event: str, title: str, data: dict) -> None:
            if event == "executing" and data.get("node") in trainings:
                self.announce(data["node"])
            on_event(event, title, data)

        return follow

    def announce(self, node: str) -> None:
        self._store.set(str(self._announced), node)
        self._announced += 1

    def wait_for(self, turn: int) -> str:
        """Return the training of a turn. Raises ToolError if the first process has ended without a word."""
        try:
            while not self._store.check([str(turn)]):  # in short waits, or Ctrl-C would be answered at their end
                time.sleep(0.2)
            return self._store.get(str(turn)).decode()
        except RuntimeError as error:
            raise ToolError("The first process has ended: see what it says.") from error
