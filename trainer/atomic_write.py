"""Atomic writes: a file has its old content or all of the new one, never a part."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

from safetensors import SafetensorError

ABANDONED = 3600  # seconds without a change, after which an unfinished file is that of a killed program
_TEMPORARY_NAME = ".traintrain_", ".part"  # start and end of the name of a folder with an unfinished file


class NameTaken(Exception):
    """A file with this name exists, and it must not be overwritten."""


@contextmanager
def write_atomically(path: Path, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary path to write to; when the block ends without an error, that file is moved to `path`.

    Even if the program is killed, `path` is either the old file or the complete new one. Temporary files that killed
    programs left in the folder are removed. Raises OSError if nothing can be written, NameTaken if `path` exists and
    `overwrite` is off.
    """
    with _explain_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path.parent)
        # In a folder of its own, because safetensors creates a second file next to the one it writes.
        with _temporary_folder(path.parent) as folder_of_part:
            part = Path(folder_of_part, "part")  # without an extension, or ComfyUI would list it
            part.touch()
            mode = part.stat().st_mode
            yield part
            os.chmod(part, mode)  # safetensors makes files that only their owner can read
            _flush_to_disk(part)
            _move(part, path, overwrite)


def check_folder(folder: Path) -> None:
    """Create a folder if it does not exist. Raises OSError if files cannot be written to it."""
    with _explain_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _temporary_folder(folder).cleanup()


@contextmanager
def _explain_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(
            f"{path} cannot be written ({reason}): free disk space, allow writing there, or choose another name."
        ) from error


def _temporary_folder(folder: Path) -> tempfile.TemporaryDirectory[str]:
    start, end = _TEMPORARY_NAME
    return tempfile.TemporaryDirectory(end, start, folder, ignore_cleanup_errors=True)


def _flush_to_disk(part: Path) -> None:
    """Wait until the data is on disk: after a power cut the name could otherwise exist without its content."""
    with open(part, "rb+") as file:
        os.fsync(file.fileno())


def _move(part: Path, path: Path, overwrite: bool) -> None:
    if overwrite:
        os.replace(part, path)
        return
    try:
        os.link(part, path)  # fails if the name is taken, which a move does not
    except FileExistsError:
        raise NameTaken(f"The file {path} exists already.") from None
    except OSError:  # a file system without hard links, such as exFAT
        os.replace(part, path)


def _remove_abandoned(folder: Path) -> None:
    for folder_of_part in folder.glob("*".join(_TEMPORARY_NAME)):
        try:
            latest = max(entry.stat().st_mtime for entry in (folder_of_part, *folder_of_part.iterdir()))
        except OSError:  # another program has just finished it
            continue
        if time.time() - latest > ABANDONED:
            shutil.rmtree(folder_of_part, ignore_errors=True)
