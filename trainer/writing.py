"""Files written whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

from safetensors import SafetensorError

ABANDONED = 3600  # seconds without a change after which a file is no longer in the making: its program was killed
_WORKSHOP = ".traintrain_", ".part"  # how the name of a folder with a file in the making starts and ends


class NameTaken(Exception):
    """There is a file of this name by now, which is not to be overwritten."""


@contextmanager
def whole_file(path: Path, overwrite: bool = True) -> Iterator[Path]:
    """Give a path to write to; what is there when the block ends well becomes `path` in one move.

    Whatever ends the block or the program, `path` is the earlier file or the new one. What killed programs leave behind
    is removed from the folder by a later call. Raises OSError with a sentence where nothing can be written, NameTaken
    where there is a file and `overwrite` is off.
    """
    with _errors_told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path.parent)
        # In a folder of its own, for safetensors makes a file beside the one it is asked for.
        with _workshop(path.parent) as workshop:
            part = Path(workshop, "part")  # without the ending, by which the host would list it
            part.touch()
            mode = part.stat().st_mode
            yield part
            os.chmod(part, mode)  # safetensors' files are for their owner alone
            _bring_to_disk(part)
            _move(part, path, overwrite)


def check_folder(folder: Path) -> None:
    """Raise OSError with a sentence where nothing can be written into a folder."""
    with _errors_told(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _workshop(folder).cleanup()


@contextmanager
def _errors_told(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(
            f"{path} cannot be written ({reason}): make room there, allow writing, or choose another name."
        ) from error


def _workshop(folder: Path) -> tempfile.TemporaryDirectory[str]:
    start, end = _WORKSHOP
    return tempfile.TemporaryDirectory(end, start, folder, ignore_cleanup_errors=True)


def _bring_to_disk(part: Path) -> None:
    """Wait for the disk, or after a power cut there could be the name without what was written."""
    with open(part, "rb+") as file:
        os.fsync(file.fileno())


def _move(part: Path, path: Path, overwrite: bool) -> None:
    if overwrite:
        os.replace(part, path)
        return
    try:
        os.link(part, path)  # refuses a name that is taken, which a move does not
    except FileExistsError:
        raise NameTaken(f"There is a file {path} already.") from None
    except OSError:  # a file system without links, as on memory cards
        os.replace(part, path)


def _remove_abandoned(folder: Path) -> None:
    for workshop in folder.glob("*".join(_WORKSHOP)):
        try:
            latest = max(entry.stat().st_mtime for entry in (workshop, *workshop.iterdir()))
        except OSError:  # another program's, done in this moment
            continue
        if time.time() - latest > ABANDONED:
            shutil.rmtree(workshop, ignore_errors=True)
