"""One bad input, and what is asked of the pack when it meets it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

LIMIT = 120.0  # seconds that an input may take, on a busy machine too
LONGEST = 1500  # letters of a refusal
# A refusal is of these kinds; any other was raised by accident.
REFUSALS = ("ValueError", "RuntimeError", "OSError", "NonFiniteLoss")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate")


@dataclass(frozen=True)
class Case:
    """An input.

    kind: the row of the table that it counts in
    name: what it is, for messages
    named: one of these must stand in a refusal
    run: raises if the input is refused
    """

    kind: str
    name: str
    named: tuple[str, ...]
    run: Callable[[], object]


@dataclass(frozen=True)
class Result:
    """What came of a case. failure: what should not have happened, if anything."""

    case: Case
    refusal: str
    seconds: float
    failure: str = ""


class Refused(Exception):
    """A refusal by a server: the type of its exception, its text."""


def run_case(case: Case, watch: Watch) -> Result:
    """Run one case in this process."""
    watch.seen.clear()
    started, kind, refusal = time.monotonic(), "", ""
    try:
        with watch.on():
            case.run()
    except Refused as error:
        kind, refusal = error.args
    except Exception as error:
        kind, refusal = type(error).__name__, str(error)
    seconds = time.monotonic() - started
    failure = _failure(case, kind, refusal) or ", ".join(sorted(watch.seen))
    if seconds > LIMIT:
        failure = f"it took {seconds:.0f} seconds; {failure}"
    return Result(case, refusal, seconds, failure)


def _failure(case: Case, kind: str, refusal: str) -> str:
    """Say what is wrong with a refusal: it is one sentence with the name of what is wrong, and maybe a list below it."""
    if not kind:
        return ""
    first, *lines = refusal.split("\n") or [""]
    wrong = {
        "raised by accident": kind not in REFUSALS,
        "no sentence": not first.endswith(".") or "Traceback" in refusal or ", line " in refusal,
        "too long": len(refusal) > LONGEST,
        "lines that are no list": not all(line.startswith("- ") for line in lines),
        f"without {' or '.join(case.named)}": not any(
            name in refusal or repr(name)[1:-1] in refusal for name in case.named
        ),
    }
    found = [name for name, is_wrong in wrong.items() if is_wrong]
    return f"{', '.join(found)}: {kind}: {refusal[:300]}" if found else ""


@dataclass
class Watch:
    """Sees every file that this process writes outside some folders, or reads in others.

    writable: folders to write in
    secret: folders that nothing may be read from
    """

    writable: list[Path]
    secret: list[Path]
    seen: set[str] = field(default_factory=set)
    _on: bool = False

    def __post_init__(self) -> None:
        sys.addaudithook(self._hook)  # for good; it rests outside `on`

    @contextmanager
    def on(self) -> Iterator[None]:
        """Watch until the block ends."""
        self._on = True
        try:
            yield
        finally:
            self._on = False

    def _hook(self, event: str, arguments: tuple) -> None:
        if not self._on or (event != "open" and event not in _CHANGES):
            return
        if event in ("os.remove", "os.rmdir") and arguments[1] != -1:  # in a folder that was opened: a path is no use
            return
        paths = arguments[:2] if event in ("os.rename", "os.link", "os.symlink") else arguments[:1]
        for path in (os.path.realpath(path) for path in paths if isinstance(path, (str, bytes, os.PathLike))):
            self._look(event, os.fsdecode(path), event != "open" or bool((arguments[2] or 0) & _WRITING))

    def _look(self, event: str, path: str, changes: bool) -> None:
        if any(Path(path).is_relative_to(folder) for folder in self.secret):
            self.seen.add(f"{event} {path}")
        elif changes and not path.startswith(("/dev/", "/proc/")):
            if not any(Path(path).is_relative_to(folder) for folder in self.writable):
                self.seen.add(f"{event} {path}")
