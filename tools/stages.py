"""Set-up in stages: a stage is either complete, or it is done again."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import ToolError
from .terminal import StatusLine, duration


@dataclass(frozen=True)
class Stage:
    """One step of a set-up.

    A stamp is written after `build` has returned. The stage counts as complete while the stamp is there, was made from
    the same inputs, and every product still has the size it had then.
    """

    name: str  # of the stamp
    title: str  # for the terminal
    size: str  # how much it fetches or makes, for a person; "" if it is not worth a word
    folder: Path  # everything it makes lies in here
    inputs: Sequence[str | Path]  # what the result depends on; of a file, its content
    build: Callable[[], str | None]  # may return a few words for the terminal
    products: Callable[[], Iterable[Path]]
    disk_mb: int = 0  # what it needs at most

    @property
    def stamp(self) -> Path:
        """Name the file that says the stage is complete."""
        return self.folder / ".stamps" / f"{self.name}.json"


def is_complete(stage: Stage) -> bool:
    """Tell whether the stage's result can be trusted."""
    try:
        stamp = json.loads(stage.stamp.read_text(encoding="utf-8"))
        sizes = stamp["products"]
        found = {name: (stage.folder / name).stat().st_size for name in sizes}
    except (OSError, ValueError, KeyError, TypeError):  # no stamp, half a stamp, a product is missing
        return False
    return bool(sizes) and stamp["inputs"] == fingerprint(stage.inputs) and found == sizes


def complete(stages: Sequence[Stage], status: StatusLine) -> None:
    """Do every stage that is not complete, in order. Raises ToolError."""
    _check_disk_space([stage for stage in stages if not is_complete(stage)])
    for stage in stages:
        if is_complete(stage):  # asked again here: an earlier stage may have taken its products away
            continue
        begun = time.monotonic()
        status.show(f"{stage.title}{f' ({stage.size})' if stage.size else ''} ...")
        stage.stamp.unlink(missing_ok=True)
        words = stage.build()
        _write_stamp(stage)
        status.keep(f"{stage.title}: {words + ', ' if words else ''}{duration(time.monotonic() - begun)}")


def fingerprint(inputs: Iterable[str | Path]) -> str:
    """Give a hash of strings and of files' contents; a missing file has one of its own."""
    digest = hashlib.sha256()
    for item in inputs:
        if isinstance(item, Path):
            content = item.read_bytes() if item.is_file() else b"missing"
        else:
            content = item.encode()
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def replace_folder(made: Path, folder: Path) -> None:
    """Put a folder that was made under another name in the place of `folder`."""
    if folder.exists():
        shutil.rmtree(folder)
    made.rename(folder)


def _write_stamp(stage: Stage) -> None:
    sizes = {path.relative_to(stage.folder).as_posix(): path.stat().st_size for path in stage.products()}
    if not sizes:
        raise ToolError(f"{stage.title}: nothing was made in {stage.folder}, although no step failed.")
    stage.stamp.parent.mkdir(parents=True, exist_ok=True)
    part = stage.stamp.with_suffix(".part")
    part.write_text(json.dumps({"inputs": fingerprint(stage.inputs), "products": sizes}), encoding="utf-8")
    part.replace(stage.stamp)


def _check_disk_space(stages: Sequence[Stage]) -> None:
    if not stages:
        return
    folder = stages[0].folder
    needed, free = sum(stage.disk_mb for stage in stages), shutil.disk_usage(folder).free // 2**20
    if free < needed:
        raise ToolError(
            f"{folder} has {free} MB of free disk space, and the set-up needs {needed} MB: make room, or name "
            "a folder on another disk with the environment variable TRAINTRAIN_HOST."
        )
