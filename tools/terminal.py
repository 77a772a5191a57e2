"""One line on the terminal that is written over again and again.

Not by tqdm or rich: dev.py shows it before there is any package.
"""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO


class StatusLine:
    """Shows the present state in one line; into a file or a pipe it writes a line every few seconds instead."""

    def __init__(self, stream: TextIO | None = None, interval: float = 5.0) -> None:
        self.stream = stream or sys.stdout
        self.interval = interval  # seconds between two lines where a line cannot be written over
        self._shown = 0  # characters of the line that stands there now
        self._last = -interval
        self._begun = time.monotonic()

    def show(self, text: str) -> None:
        """Replace the line by `text`."""
        if self.stream.isatty():
            text = text[: shutil.get_terminal_size().columns - 1]
            self._write("\r" + text.ljust(self._shown))
            self._shown = len(text)
        elif self._seconds() - self._last >= self.interval:
            self._last = self._seconds()
            self._write(text + "\n")

    def keep(self, text: str) -> None:
        """Write `text` over the line and begin a new one."""
        if self.stream.isatty():
            self._write("\r" + text.ljust(self._shown) + "\n")
            self._shown = 0
        else:
            self._write(text + "\n")

    def clear(self) -> None:
        """Take the line away."""
        if self._shown:
            self._write("\r" + " " * self._shown + "\r")
            self._shown = 0

    def _seconds(self) -> float:
        return time.monotonic() - self._begun

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()


def duration(seconds: float) -> str:
    """Write seconds as a person does: `8 s`, `1:05`, `2:00:00`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    hours, minutes = seconds // 3600, seconds // 60 % 60
    return f"{hours}:{minutes:02}:{seconds % 60:02}" if hours else f"{minutes}:{seconds % 60:02}"
