"""The files of kept trainings: where they are, and which are deleted when they need too much disk space."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import folder_paths

FOLDER = "traintrain"  # in the output folder, and not in loras, where every list of LoRAs would show the files
OLD_FOLDER = "loras/trained"  # where version 0.1 kept them
LISTED_AS = "trained/"  # how Load LoRA lists them, as it did those in the old folder
# Name and fingerprint of a training, step and number of samples, and what kind of file it is. Others are not ours to delete.
_KEPT = re.compile(r"(.+_[0-9a-f]{16})(?:_\d{6,7}(?:_\d+)?)?\.(?:safetensors|state|csv|jpg)")

logger = logging.getLogger(__name__)


def kept_folder() -> Path:
    """Return the folder that trainings are kept in."""
    return Path(folder_paths.get_output_directory(), FOLDER)


def find_kept(pattern: str) -> Iterator[Path]:
    """Yield the kept files whose names match a pattern, also those of version 0.1."""
    yield from kept_folder().glob(pattern)
    yield from Path(folder_paths.get_output_directory(), OLD_FOLDER).glob(pattern)


def subfolder_of(path: Path) -> str:
    """Return the folder of a kept file inside the output folder."""
    return path.parent.relative_to(folder_paths.get_output_directory()).as_posix()


def kept_loras() -> dict[str, Path]:
    """Return the LoRAs of kept trainings by their names in Load LoRA's list."""
    return {f"{LISTED_AS}{path.name}": path for path in sorted(kept_folder().glob("*.safetensors"))}


def clean_up(gigabytes: float, newest: str) -> None:
    """Delete the oldest kept trainings, each with all of its files, until the rest need no more than so many GB.

    newest: name and fingerprint of the one that was just saved, which stays
    """
    trainings: dict[str, list[Path]] = defaultdict(list)
    for path in find_kept("*"):
        if match := _KEPT.fullmatch(path.name):
            trainings[match[1]].append(path)
    by_age = sorted(trainings, key=lambda name: (name == newest, max(map(_modified_at, trainings[name]))), reverse=True)
    used, doomed = 0, []
    for name in by_age:
        used += sum(map(_size, trainings[name]))
        if used > gigabytes * 1e9 and name != newest:
            doomed.append(name)
    for path in (path for name in doomed for path in trainings[name]):
        with suppress(OSError):  # Windows cannot delete a file that is in use
            path.unlink()
    if doomed:
        logger.info("%d old trainings are deleted: keep_gb in Training Settings is %g.", len(doomed), gigabytes)


def _modified_at(path: Path) -> float:
    with suppress(OSError):  # another ComfyUI may clean up the same folder
        return path.stat().st_mtime
    return 0.0


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0
