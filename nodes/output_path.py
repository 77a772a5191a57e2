"""Output paths: the pack writes inside ComfyUI's output folder and nowhere else."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Callable

import folder_paths

from ..trainer.atomic_write import NameTaken

LONGEST_NAME = 200  # bytes of a folder or file name; file systems allow 255, and a number or a step may be added
# Characters and names that Windows forbids or reads as something else: \ and : lead elsewhere, CON is the console.
_FORBIDDEN = re.compile(r'[\x00-\x1f\ud800-\udfff<>:"|?*\\]')
_RESERVED = re.compile(r"(con|prn|aux|nul|(com|lpt)[\d¹²³])(\..*)?", re.IGNORECASE)


def output_path(folder: str, name: str, ending: str, overwrite: bool) -> Path:
    """Return the path for a name, always inside output/<folder>; a free one with a number if `overwrite` is off.

    Raises ValueError if the name is not valid on every system or leads out of the folder.
    """
    root = Path(folder_paths.get_output_directory(), folder).resolve()
    given, name = name, without_ending(name, ending)
    *folders, last = name.split("/")
    is_name = not _FORBIDDEN.search(name) and _is_name(last) and all(map(_is_folder, folders))
    path = _path_of(root, f"{name}{ending}") if is_name else None
    if path is None:
        raise ValueError(
            f"{given[:LONGEST_NAME]!r} is not a valid file name in {root}: use a name that is valid on every "
            "system, or one with subfolders such as style/my_lora."
        )
    number = 1
    while os.path.lexists(path) and not overwrite:
        number += 1
        path = path.with_name(f"{Path(name).name}_{number}{ending}")
    return path


def without_ending(name: str, ending: str) -> str:
    """Return a name as its file gets it: it may have the ending already, and spaces around it."""
    return name.strip().removesuffix(ending)


def write_output(folder: str, name: str, ending: str, overwrite: bool, write: Callable[[Path], None]) -> Path:
    """Write a file with a name in output/<folder>, a free one if `overwrite` is off, and return its path.

    write: writes to a path; raises NameTaken if another program has taken the name in the meantime
    """
    while True:
        path = output_path(folder, name, ending, overwrite)
        with suppress(NameTaken):
            write(path)
            return path


def _path_of(root: Path, name: str) -> Path | None:
    """Return the path of a name in a folder, with links resolved, or None if it is not inside the folder."""
    path = Path(root, name).resolve() if len(name) < 4000 else root
    return path if root in path.parents else None


def _is_name(part: str) -> bool:
    """Return whether a part of a path is valid, and means the same, on every system."""
    fits = 0 < len(part.encode()) <= LONGEST_NAME and part == part.rstrip(". ")
    return fits and not _RESERVED.fullmatch(part)


def _is_folder(part: str) -> bool:
    return part in (".", "..") or _is_name(part)  # where they lead is checked when the path is resolved
