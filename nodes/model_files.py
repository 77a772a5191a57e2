"""The files behind the names in a graph: a file that was replaced under the same name must count as another one."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import folder_paths

LONGEST_NAME = 1000  # characters; a longer text is a prompt
EMBEDDING = re.compile(r"embedding:([^\s,:()]+)")


def named_files(text: str) -> Iterator[str]:
    """Yield the files that a text may name: a path, a file in ComfyUI's model folders or its input folder, embeddings."""
    if len(text) <= LONGEST_NAME and os.path.splitext(text)[1]:
        folders = [*_model_folders(), folder_paths.get_input_directory()]
        yield from filter(os.path.isfile, sorted({os.path.join(folder, text) for folder in folders}))
        with suppress(ValueError):  # it leads out of the folder
            name, folder = folder_paths.annotated_filepath(text)  # "image.png [output]"
            if folder:
                yield os.path.join(folder, name)
    for name in filter(_stays_inside, EMBEDDING.findall(text)):
        for folder in _folders_of("embeddings"):  # the host finds them in subfolders, too
            yield from _files_below(folder, f"{glob.escape(name)}*")
    if len(text) <= LONGEST_NAME and _stays_inside(text):
        for folder in _folders_of("diffusers"):  # a model that is a folder
            yield from _files_below(os.path.join(folder, text), "*")


def describe_files(paths: Iterable[str]) -> str:
    """Return name, size and time of files, as text; those that do not exist are left out."""
    described = []
    for path in paths:
        with suppress(OSError, ValueError):
            status = os.stat(path)
            described.append((os.path.basename(path), status.st_size, status.st_mtime_ns))
    return repr(described) if described else ""


def _model_folders() -> list[str]:
    return [folder for folders, *_ in folder_paths.folder_names_and_paths.values() for folder in folders]


def _folders_of(kind: str) -> list[str]:
    return folder_paths.folder_names_and_paths[kind][0] if kind in folder_paths.folder_names_and_paths else []


def _stays_inside(name: str) -> bool:
    """Return whether a name cannot lead out of a folder, in which its files are then looked for."""
    parts = [part for part in re.split(r"[/\\]", name) if part not in ("", ".")]
    return bool(parts) and ".." not in parts and not re.match(r"[/\\]|.:", name)


def _files_below(folder: str, pattern: str) -> Iterator[str]:
    with suppress(OSError, ValueError):  # not a possible path
        yield from sorted(str(path) for path in Path(folder).rglob(pattern) if path.is_file())
