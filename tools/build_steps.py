"""Set-up in steps: a step is either complete, or it is done again."""

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
class BuildStep:
    """One step of a set-up.

    A stamp is written after `build` has returned. The step counts as complete while the stamp is there, was made from
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
        """Name the file that says the step is complete."""
        return self.folder / ".stamps" / f"{self.name}.json"


def is_complete(step: BuildStep) -> bool:
    """Tell whether the step's result can be trusted."""
    try:
        stamp = json.loads(step.stamp.read_text(encoding="utf-8"))
        sizes = stamp["products"]
        found = {name: (step.folder / name).stat().st_size for name in sizes}
    except (OSError, ValueError, KeyError, TypeError):  # no stamp, half a stamp, a product is missing
        return False
    return bool(sizes) and stamp["inputs"] == fingerprint(step.inputs) and found == sizes


def complete(steps: Sequence[BuildStep], status: StatusLine) -> None:
    """Do every step that is not complete, in order. Raises ToolError."""
    _check_disk_space([step for step in steps if not is_complete(step)])
    for step in steps:
        if is_complete(step):  # asked again here: an earlier step may have taken its products away
            continue
        begun = time.monotonic()
        status.show(f"{step.title}{f' ({step.size})' if step.size else ''} ...")
        step.stamp.unlink(missing_ok=True)
        words = step.build()
        _write_stamp(step)
        status.keep(f"{step.title}: {words + ', ' if words else ''}{duration(time.monotonic() - begun)}")


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
    """Put a folder that was made under another name instead of `folder`."""
    if folder.exists():
        shutil.rmtree(folder)
    made.rename(folder)


def _write_stamp(step: BuildStep) -> None:
    sizes = {path.relative_to(step.folder).as_posix(): path.stat().st_size for path in step.products()}
    if not sizes:
        raise ToolError(f"{step.title}: nothing was made in {step.folder}, although no step failed.")
    step.stamp.parent.mkdir(parents=True, exist_ok=True)
    part = step.stamp.with_suffix(".part")
    part.write_text(json.dumps({"inputs": fingerprint(step.inputs), "products": sizes}), encoding="utf-8")
    part.replace(step.stamp)


def _check_disk_space(steps: Sequence[BuildStep]) -> None:
    if not steps:
        return
    folder = steps[0].folder
    needed, free = sum(step.disk_mb for step in steps), shutil.disk_usage(folder).free // 2**20
    if free < needed:
        raise ToolError(
            f"{folder} has {free} MB of free disk space, and the set-up needs {needed} MB: make room, or name "
            "a folder on another disk with the environment variable TRAINTRAIN_HOST."
        )
