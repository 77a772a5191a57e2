"""Runs ComfyUI's main.py in its own Python, after what a CPU build of PyTorch needs.

    launch.py COMFYUI [arguments of main.py]

It ends when its standard input is closed, so that a server never outlives the program that started it.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading
from pathlib import Path


def prepare_torchvision() -> None:
    """Make torchvision importable beside a PyTorch that its library was not built for; images need no library."""
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:  # "operator torchvision::nms does not exist"
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        for operator in ("torchvision::nms", "torchvision::qnms"):
            torch.library.define(operator, "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401


def main(comfyui: Path, arguments: list[str]) -> None:
    """Run ComfyUI with the arguments of its main.py."""
    threading.Thread(target=_end_with_input, daemon=True).start()
    # Not this folder: its server.py would shadow ComfyUI's.
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(comfyui), *(entry for entry in sys.path if Path(entry).resolve() != here)]
    if "--cpu" in arguments:  # with a GPU nothing may import torch before ComfyUI does
        prepare_torchvision()
    sys.argv = [str(comfyui / "main.py"), *arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")


def _end_with_input() -> None:
    while os.read(0, 1024):
        pass
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
