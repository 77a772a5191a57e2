"""Where images may be read from: a stranger's workflow reads only what the owner of this ComfyUI allows."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

SHOWN = 200  # characters of a wrong name
LONGEST_NAME = 1000  # characters
EXTRA_FOLDERS = "training_images"  # the key in extra_model_paths.yaml


def find_folder(name: str) -> Path:
    """Return the folder that `name` means, links and ".." resolved; relative names are looked up in input first.

    Raises ValueError for an empty name, a folder that does not exist, and one outside the allowed folders.
    """
    if not name.strip():
        raise ValueError("The folder is empty. Enter the name of a folder inside ComfyUI's input folder.")
    shown = name[:SHOWN]
    candidates = [] if _is_elsewhere(name.strip()) else _resolve(name.strip())
    allowed = [path for path in candidates if _is_allowed(path)]
    for path in allowed:
        if os.path.isdir(path):  # False for what no file system takes; Path.is_dir raises
            return path
    if not candidates or candidates[0] not in allowed:
        raise ValueError(
            f"The folder {shown!r} may not be read: it is outside ComfyUI's input and output folders. Put the images"
            f" there, or list the folder under {EXTRA_FOLDERS!r} in extra_model_paths.yaml and restart ComfyUI."
        )
    places = ", ".join(str(path) for path in dict.fromkeys(allowed))
    raise ValueError(f"There is no folder {shown!r}. Looked for {places}.")


def check_file(path: Path) -> None:
    """Raise ValueError for a file that is a link out of the allowed folders."""
    if not _is_allowed(path.resolve()):
        raise ValueError(
            "is a link to a file outside the folders that may be read: copy the file itself here, or list its folder"
            f" under {EXTRA_FOLDERS!r} in extra_model_paths.yaml and restart ComfyUI"
        )


def allowed_folders() -> list[str]:
    """Return the folders that images may be read from, including their subfolders."""
    extra = folder_paths.folder_names_and_paths.get(EXTRA_FOLDERS, ([], set()))[0]
    return [folder_paths.get_input_directory(), folder_paths.get_output_directory(), *extra]


def _is_allowed(path: Path) -> bool:
    return any(path.is_relative_to(Path(root).resolve()) for root in allowed_folders())


def _is_elsewhere(name: str) -> bool:
    """Tell whether a name is a folder of another computer, which must not be contacted, and not an allowed one."""
    is_remote = name[:2].replace("\\", "/") == "//"
    return is_remote and not any(Path(name).is_relative_to(root) for root in allowed_folders())


def _resolve(name: str) -> list[Path]:
    """Return what a name means in each of the allowed folders, links and ".." resolved."""
    try:
        if len(name) > LONGEST_NAME:
            raise ValueError("It is too long.")
        return [(Path(root) / name).resolve() for root in allowed_folders()]
    except (OSError, ValueError) as error:  # one with a NUL in it, say
        raise ValueError(
            f"{name[:SHOWN]!r} is not a valid folder name. Enter the name of a folder inside ComfyUI's input folder."
        ) from error
