"""Runs a workflow file without a browser and shows how its training goes; runs in the host's Python.

tools.run_command --comfyui COMFYUI --base FOLDER [--set NODE.INPUT=VALUE ...] WORKFLOW
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from .errors import ToolError
from .runner import Output, load_workflow, set_values, to_api
from .terminal import StatusLine, duration
from .torchrun import is_alone, own_server, rank, run_together


class Follower:
    """Shows a run's events in one line of the terminal."""

    def __init__(self, status: StatusLine) -> None:
        self.status = status
        self._training = ""  # the last line of the training node that is at work
        self._title = ""

    def __call__(self, event: str, title: str, data: dict) -> None:
        if event in ("executing", "execution_error", "execution_interrupted") and self._training:
            self.status.keep(self._training)
            self._training = ""
        if event == "executing":
            self._title = title
            self.status.show(f"{title} ...")
        elif event == "traintrain.step":
            self._training = training_line(title, data)
            self.status.show(self._training)
        elif event == "progress" and not self._training:
            self.status.show(f"{title}: {data['value']:.0f}/{data['max']:.0f}")


def training_line(title: str, data: dict) -> str:
    """Write one step of a training as a line."""
    return (
        f"{title}: step {data['step']}/{data['steps']}, loss {data['loss']:.4f}, "
        f"learning rate {data['learning_rate']:.2e}, {data['steps_per_second']:.2f} steps/s, "
        f"{duration(data['seconds_left'])} left"
    )


def print_outputs(outputs: list[Output]) -> None:
    """Print what the output nodes saved and said, under their titles."""
    for output in outputs:
        lines = [*map(str, output.files), *output.texts]
        if lines:
            print(f"{output.title}:", *lines, sep="\n  ")


def read_values(texts: list[str]) -> dict[str, Any]:
    """Read `NODE.INPUT=VALUE`: the value is JSON, or text where it is none. Raises ToolError."""
    values = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or "." not in name:
            raise ToolError(f"--set {text} sets nothing: write NODE.INPUT=VALUE, as in 'Train LoRA.steps=500'.")
        try:
            values[name] = json.loads(value)
        except ValueError:
            values[name] = value
    return values


def run(arguments: argparse.Namespace, status: StatusLine) -> list[Output]:
    """Run the workflow that the command line names; return what its output nodes show. Raises ToolError."""
    workflow, values = load_workflow(arguments.workflow), read_values(arguments.set)
    status.show("ComfyUI starts ...")
    with own_server(arguments.comfyui, arguments.base) as server:
        object_info = server.get("/object_info")
        prompt = set_values(to_api(workflow, object_info), values, object_info)
        return run_together(server, prompt, object_info, Follower(status))


def end(*_: object) -> None:
    """Answer SIGTERM as Ctrl-C is answered, once: whoever ends several of our programs sends it more than once."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> int:
    """Run the workflow that the command line names; give the exit status."""
    parser = argparse.ArgumentParser(prog="run", description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="NODE.INPUT=VALUE")
    parser.add_argument("workflow", type=Path)
    status = StatusLine() if rank() == 0 else StatusLine(open(os.devnull, "w"))  # the first process reports for all
    signal.signal(signal.SIGTERM, end)
    try:
        outputs = run(parser.parse_args(), status)
    except ToolError as error:
        status.clear()
        print("" if is_alone() else f"Process {rank()}: ", error, sep="", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        status.clear()
        print("Stopped.", file=sys.stderr)
        return 130
    status.clear()
    print_outputs(outputs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
