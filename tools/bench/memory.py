"""How much memory a training takes at its peak, beside the process without a model; each in a process of its own."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")


def peak_megabytes(load: Callable[[], Callable[[], object]]) -> float:
    """Return the peak of a run, the loaded model included, in MB; NaN where the system does not tell.

    load: loads all that the run needs and returns the run
    """
    if torch.cuda.is_available():
        run = load()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() / 1e6
    if not _STATUS.exists():
        return float("nan")
    before = _megabytes("VmRSS")
    run = load()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading
    run()
    return _megabytes("VmHWM") - before


def give_back_memory() -> None:
    """Give what is free back to the system."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _megabytes(name: str) -> float:
    return int(re.search(rf"{name}:\s+(\d+) kB", _STATUS.read_text())[1]) / 1000


def without_kept_memory() -> dict[str, str]:
    """Return this process' environment without what makes it keep freed memory."""
    return {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
