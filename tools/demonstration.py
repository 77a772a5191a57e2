"""Writes the demonstration model or its images; runs in the host's Python.

tools.demonstration model COMFYUI FILE
tools.demonstration images FOLDER
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from .load_pack import load_pack


def write_model(comfyui: Path, path: Path) -> None:
    """Write the checkpoint from the repository's weights."""
    load_pack(comfyui)
    from .shapes.checkpoint import assemble

    assemble(path)


def write_images(folder: Path) -> None:
    """Write the images into a new folder."""
    from .shapes import shape_pairs, star_images

    shutil.rmtree(folder, ignore_errors=True)
    star_images.write(folder)
    star_images.write_alone(folder / "stars_alone")
    shape_pairs.write(folder)


if __name__ == "__main__":
    {"model": write_model, "images": write_images}[sys.argv[1]](*map(Path, sys.argv[2:]))
