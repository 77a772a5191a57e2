"""Runs a workflow file without a browser and shows how its training goes; runs in the host's Python.

tools.run --comfyui COMFYUI --base FOLDER WORKFLOW
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .errors import ToolError
from .runner import Output, load_workflow, run_workflow
from .server import Server
from .terminal import StatusLine, duration


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


def main() -> int:
    """Run the workflow that the command line names; give the exit status."""
    parser = argparse.ArgumentParser(prog="run", description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("workflow", type=Path)
    arguments = parser.parse_args()
    status = StatusLine()
    try:
        workflow = load_workflow(arguments.workflow)
        status.show("ComfyUI starts ...")
        with Server(arguments.comfyui, arguments.base) as server:
            outputs = run_workflow(server, workflow, Follower(status))
    except ToolError as error:
        status.clear()
        print(error, file=sys.stderr)
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
