"""Writes the demonstration model or its pictures; runs in the host's Python.

tools.demonstration model COMFYUI FILE
tools.demonstration pictures COMFYUI FOLDER
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from .launch import prepare_torchvision


def write_model(path: Path) -> None:
    """Write the checkpoint from the repository's weights."""
    prepare_torchvision()
    from comfy.cli_args import args

    args.cpu = True  # before the host looks for a GPU
    from .shapes.checkpoint import assemble

    assemble(path)


def write_pictures(folder: Path) -> None:
    """Write the pictures into a new folder."""
    from .shapes import pairs, pictures

    shutil.rmtree(folder, ignore_errors=True)
    pictures.write(folder)
    pairs.write(folder)


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[2])
    {"model": write_model, "pictures": write_pictures}[sys.argv[1]](Path(sys.argv[3]))
