"""Where the pack writes: inside ComfyUI's output folder and nowhere else."""

from __future__ import annotations

from pathlib import Path

import folder_paths


def output_path(folder: str, name: str, ending: str, overwrite: bool) -> Path:
    """Return the file to write for a name, inside output/<folder> whatever the name says; a free one if not to overwrite."""
    root = Path(folder_paths.get_output_directory(), folder).resolve()
    name = name.strip().removesuffix(ending)
    path = (root / f"{name}{ending}").resolve()
    if not name or "\0" in name or ":" in name or "\\" in name or root not in path.parents:
        raise ValueError(
            f"{name!r} is no name for a file in {root}: give a plain name, or one with folders inside it as in style/my_lora."
        )
    number = 1
    while path.exists() and not overwrite:
        number += 1
        path = path.with_name(f"{Path(name).name}_{number}{ending}")
    return path
