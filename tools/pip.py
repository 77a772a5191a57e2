"""Running pip: its output goes to a log, the terminal gets what is fetched and how much."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

from .errors import ToolError
from .terminal import StatusLine

_FETCHING = re.compile(r"\s*Downloading (?:\S*/)?(\S+) \(([\d.]+) (bytes|kB|MB|GB)\)")
_MEGABYTES = {"bytes": 1e-6, "kB": 1e-3, "MB": 1.0, "GB": 1e3}
_NO_NETWORK = re.compile(
    "NewConnectionError|NameResolutionError|ConnectTimeoutError|ReadTimeoutError|ProxyError|"
    "ProtocolError|Network is unreachable|name resolution"
)
_NO_SPACE = re.compile(r"No space left on device|\[Errno 28\]|\[WinError 112\]")


def run_pip(python: Path, arguments: list[str], log: Path, status: StatusLine, title: str) -> str:
    """Run pip and return in a few words what it fetched. Raises ToolError."""
    command = [
        str(python),
        "-m",
        "pip",
        *arguments,
        "--progress-bar",
        "off",
        "--no-input",
        "--disable-pip-version-check",
    ]
    log.parent.mkdir(parents=True, exist_ok=True)
    lines, sizes = [], []
    with open(log, "a", encoding="utf-8") as file:
        file.write(f"\n$ {' '.join(command)}\n")
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        try:
            for line in process.stdout:
                file.write(line)
                lines.append(line.rstrip())
                if found := _FETCHING.match(line):
                    sizes.append(float(found[2]) * _MEGABYTES[found[3]])
                    status.show(f"{title}: fetching {found[1]} ({found[2]} {found[3]})")
                elif line.startswith(("Installing collected", "Installing build")):
                    status.show(f"{title}: installing")
            code = process.wait()
        finally:
            if process.poll() is None:  # Ctrl-C, or our own end
                process.kill()
                process.wait()
    if code:
        raise ToolError(explain(title, lines, log))
    return f"{sum(sizes):.0f} MB fetched"


def explain(title: str, lines: list[str], log: Path) -> str:
    """Say in a sentence why pip failed, from what it wrote."""
    text = "\n".join(lines)
    if _NO_SPACE.search(text):
        return f"{title}: the disk is full; make room and run the same command again. Pip's output is in {log}."
    if _NO_NETWORK.search(text):
        return (
            f"{title}: no network, pip cannot reach its package index; run the same command again when there is one. "
            f"Pip's output is in {log}."
        )
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    reason = errors[-1].rstrip(".") if errors else next((line for line in reversed(lines) if line), "it said nothing")
    if "No matching distribution" in reason:  # Python is too new, or the machine of a rare kind
        reason += f" (Python {platform.python_version()}, {platform.system()} {platform.machine()})"
    return f"{title}: pip failed: {reason}. Its whole output is in {log}."


def forget_half_installed(venv: Path) -> None:
    """Make pip install again what it was installing when it was killed.

    Pip unpacks a whole package before it writes INSTALLER, and believes a package to be installed as soon as its
    METADATA is there. What an older version leaves while it makes room is called ~something.
    """
    packages = site_packages(venv)
    half = [info for info in packages.glob("*.dist-info") if not (info / "INSTALLER").is_file()]
    for folder in {*half, *packages.glob("~*")}:
        shutil.rmtree(folder) if folder.is_dir() else folder.unlink()


def site_packages(venv: Path) -> Path:
    """Find the folder of a virtual environment's packages."""
    return next(venv.glob("lib/python*/site-packages"), venv / "Lib" / "site-packages")
