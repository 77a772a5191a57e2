"""The browser of the tests: the system's Chromium, or else one that is fetched."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from .errors import ToolError
from .terminal import StatusLine, duration

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MAC = ("Google Chrome.app/Contents/MacOS/Google Chrome", "Chromium.app/Contents/MacOS/Chromium")
WINDOWS = (r"Google\Chrome\Application\chrome.exe", r"Chromium\Application\chrome.exe")
# Playwright's own, if it has fetched one.
ASK = (
    "from playwright.sync_api import sync_playwright\n"
    "with sync_playwright() as playwright: print(playwright.chromium.executable_path)"
)


def find_browser(python: Path) -> Path | None:
    """Find the system's Chromium or Chrome, or the one that playwright in this Python has fetched."""
    return next((program for program in _of_system() if _runs(program)), None) or _of_playwright(python)


def ensure_browser(python: Path, log: Path, status: StatusLine) -> Path:
    """Find a browser; where there is none, install one. Raises ToolError with what to install."""
    if program := find_browser(python):
        return program
    begun = time.monotonic()
    status.show("Browser for the tests (100 to 200 MB to fetch) ...")
    for commands in _ways(python):
        if _run(commands, log) and (program := find_browser(python)):
            status.keep(f"Browser for the tests: {program.name}, {duration(time.monotonic() - begun)}")
            return program
    raise ToolError(
        f"The tests need a browser and none could be installed (the output is in {log}): install Chromium or Chrome."
    )


def _of_system() -> list[Path]:
    found = [Path(path) for path in map(shutil.which, NAMES) if path]
    found += [folder / name for folder in (Path("/Applications"), Path.home() / "Applications") for name in MAC]
    roots = [os.environ.get(name) for name in ("PROGRAMFILES", "PROGRAMFILES(X86)", "LOCALAPPDATA")]
    found += [Path(root) / name for root in roots if root for name in WINDOWS]
    return [path for path in found if path.is_file()]


def _runs(program: Path) -> bool:
    # Ubuntu's chromium-browser may be a script that only names the package to install.
    # On Windows, Chrome answers --version by opening a window.
    return sys.platform == "win32" or _succeeds([str(program), "--version"])


def _of_playwright(python: Path) -> Path | None:
    asked = subprocess.run([str(python), "-c", ASK], capture_output=True, text=True)
    program = Path(asked.stdout.strip() or "nowhere")
    return program if asked.returncode == 0 and program.is_file() else None


def _ways(python: Path) -> list[list[list[str]]]:
    """Give the ways to get a browser, each as the commands to run one after another."""
    ways = [[[str(python), "-m", "playwright", "install", "chromium"]]]
    if sys.platform == "linux" and shutil.which("apt-get") and os.geteuid() == 0:
        ways.insert(0, [["apt-get", "update"], ["apt-get", "install", "-y", "chromium"]])
    return ways


def _run(commands: Sequence[Sequence[str]], log: Path) -> bool:
    log.parent.mkdir(parents=True, exist_ok=True)
    quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    with open(log, "a", encoding="utf-8") as file:
        for command in commands:
            print("\n$", *command, file=file, flush=True)
            ran = subprocess.run(command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, env=quiet)
            if ran.returncode:
                return False
    return True


def _succeeds(command: Sequence[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
