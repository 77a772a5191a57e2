"""Collects what is wrong with files, so that one error names all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from PIL import UnidentifiedImageError

T = TypeVar("T")


def attempt(read: Callable[[], T], path: Path, problems: dict[Path, str]) -> T | None:
    """Return what `read` returns; if it raises, add the reason to `problems` under `path` and return None."""
    try:
        return read()
    # A broken file makes decoders raise almost anything (SyntaxError, struct.error, EOFError, ...); all are reported.
    except Exception as error:
        problems[path] = explain(error)
        return None


def explain(error: Exception) -> str:
    """Describe an error as the rest of a sentence that starts with the file's name."""
    if isinstance(error, UnidentifiedImageError):
        return "is not an image in a supported format, or it is damaged"
    if isinstance(error, UnicodeDecodeError):
        return f"is not UTF-8 (byte {error.start + 1} is 0x{error.object[error.start]:02x}): save the caption as UTF-8"
    return getattr(error, "strerror", None) or str(error).strip() or type(error).__name__


def list_problems(problems: Iterable[tuple[str, str]], place: str = "") -> str:
    """Return a message with one line for each file name and reason; `place` says where the files are."""
    lines = [f"- {name}: {reason}" for name, reason in problems]
    files = "1 file" if len(lines) == 1 else f"{len(lines)} files"
    return "\n".join([f"{files}{place} cannot be used. Repair or remove them.", *lines])
