"""Where the pack writes: inside ComfyUI's output folder and nowhere else."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Callable

import folder_paths

from ..trainer.writing import NameTaken

LONGEST_NAME = 200  # bytes of a folder's or file's name; file systems take 255, and a number or a step may be added
# What no file may be called on Windows, or what means something else there: \ and : lead elsewhere, CON is the console.
_FORBIDDEN = re.compile(r'[\x00-\x1f\ud800-\udfff<>:"|?*\\]')
_RESERVED = re.compile(r"(con|prn|aux|nul|(com|lpt)[\d¹²³])(\..*)?", re.IGNORECASE)


def output_path(folder: str, name: str, ending: str, overwrite: bool) -> Path:
    """Return the file to write for a name, inside output/<folder> whatever the name says; a free one if not to overwrite."""
    root = Path(folder_paths.get_output_directory(), folder).resolve()
    given, name = name, name.strip().removesuffix(ending)
    *folders, last = name.split("/")
    is_name = not _FORBIDDEN.search(name) and _is_name(last) and all(map(_is_folder, folders))
    path = _path_of(root, f"{name}{ending}") if is_name else None
    if path is None:
        raise ValueError(
            f"{given[:LONGEST_NAME]!r} is no name for a file in {root}: give a plain name that every system takes, or one "
            "with folders inside it as in style/my_lora."
        )
    number = 1
    while os.path.lexists(path) and not overwrite:
        number += 1
        path = path.with_name(f"{Path(name).name}_{number}{ending}")
    return path


def write_output(folder: str, name: str, ending: str, overwrite: bool, write: Callable[[Path], None]) -> Path:
    """Write a file under a name in output/<folder>, a free one if not to overwrite, and return it.

    write: raises NameTaken where another program has taken the name in the meantime
    """
    while True:
        path = output_path(folder, name, ending, overwrite)
        with suppress(NameTaken):
            write(path)
            return path


def _path_of(root: Path, name: str) -> Path | None:
    """Return the file of a name inside a folder, links followed; None where that is not inside."""
    path = Path(root, name).resolve() if len(name) < 4000 else root
    return path if root in path.parents else None


def _is_name(part: str) -> bool:
    """Tell whether a part of a path means the same on every system."""
    fits = 0 < len(part.encode()) <= LONGEST_NAME and part == part.rstrip(". ")
    return fits and not _RESERVED.fullmatch(part)


def _is_folder(part: str) -> bool:
    return part in (".", "..") or _is_name(part)  # where those lead is seen when the path is resolved
