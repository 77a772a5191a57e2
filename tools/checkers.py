"""The programs that check the pack as the registry and its users see it, in a virtual environment of their own."""

from __future__ import annotations

from pathlib import Path

from .build_steps import BuildStep, complete
from .host_paths import ROOT, interpreter
from .host_setup import LOG, Versions, make_venv_with_uv, records
from .packages import UV, install
from .terminal import StatusLine

REQUIREMENTS = ROOT / "tools" / "requirements-checkers.txt"
TITLE = "Checkers"


def checkers_folder(host: Path) -> Path:
    """Name the virtual environment in a host's folder."""
    return host / "checkers"


def checker(host: Path, name: str) -> Path:
    """Name a program of the checkers: `comfy`, `comfy-test` or `comfy-import-guard`."""
    return interpreter(checkers_folder(host)).with_name(name)


def ensure_checkers(host: Path, versions: Versions, status: StatusLine) -> None:
    """Install the checkers into a host's folder; complete ones are left as they are. Raises ToolError."""
    venv = checkers_folder(host)
    step = BuildStep(
        "checkers",
        TITLE,
        "of node packs, about 150 MB to fetch",
        host,
        [UV, REQUIREMENTS, *versions.day],
        lambda: _install(host, versions, status),
        lambda: records(venv, "*"),
        disk_mb=400,
    )
    complete([step], status)


def _install(host: Path, versions: Versions, status: StatusLine) -> str:
    venv = checkers_folder(host)
    make_venv_with_uv(venv, host / LOG, status, TITLE)
    wanted = [*versions.options(host, [REQUIREMENTS]), "-r", str(REQUIREMENTS)]
    return install(interpreter(venv), wanted, host / LOG, status, TITLE)
