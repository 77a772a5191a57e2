"""How much memory a training takes at its peak, beside the process without a model; each in a process of its own.

tools.bench.peak_memory COMFYUI BASE FOLDER CONTENDER ROUND
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..errors import ToolError
from ..host_paths import ROOT, module_command
from .rounds import Round
from .start import start_bench

if TYPE_CHECKING:
    from .bench import Bench

_STATUS = Path("/proc/self/status")


def measure_peak(bench: Bench, name: str, round_: Round) -> float:
    """Return the peak of a contender in MB, the loaded model included. Raises ToolError."""
    (peak,) = run_alone("tools.bench.peak_memory", bench, name, round_)
    return peak


def run_alone(module: str, bench: Bench, name: str, round_: Round) -> list[float]:
    """Return the numbers that a module prints, from a process that gives freed memory back. Raises ToolError."""
    arguments = bench.comfyui, bench.base, bench.folder, name, json.dumps(vars(round_))
    command = module_command(sys.executable, module, *arguments)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    if done.returncode:
        raise ToolError((done.stderr.strip() or "it said nothing").splitlines()[-1])
    return [float(word) for word in done.stdout.splitlines()[-1].split()]


def megabytes_now() -> float:
    """Return what is in memory in MB; NaN where the system does not report it."""
    if torch.cuda.is_available():
        return 0.0  # PyTorch counts what it has taken itself
    return _megabytes("VmRSS") if _STATUS.exists() else float("nan")


def forget_peak() -> None:
    """Let the peak begin again with what is in memory now."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif _STATUS.exists():
        Path("/proc/self/clear_refs").write_text("5")


def peak_megabytes_since(before: float) -> float:
    """Return the peak in MB above what was in memory before."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    return _megabytes("VmHWM") - before if _STATUS.exists() else float("nan")


def _megabytes(name: str) -> float:
    return int(re.search(rf"{name}:\s+(\d+) kB", _STATUS.read_text())[1]) / 1000


def _measure(comfyui: str, base: str, folder: str, name: str, round_: str) -> float:
    bench = start_bench(Path(comfyui), Path(base), Path(folder), quick=False)
    from .bench import CONTENDERS  # needs the host

    before = megabytes_now()
    contender = CONTENDERS[name](*bench.load(Round(**json.loads(round_))))
    forget_peak()  # that of loading
    contender.run(2)
    return peak_megabytes_since(before)


if __name__ == "__main__":
    print(_measure(*sys.argv[1:]))
