"""Installing packages: the output goes to a log, the terminal gets what is fetched and how much.

By uv, which took 40 seconds where pip took over five minutes, with pip's settings. Pip installs uv, and fetches what is
no package to install, which uv cannot.
"""

from __future__ import annotations

import ast
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

from .errors import ToolError
from .terminal import StatusLine

UV = "uv>=0.9"
# What pip is set to on a machine, under uv's names: mirrors, folders of wheels, certificates.
_UV_NAMES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "constraint": "UV_CONSTRAINT",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
}
_FETCHING = re.compile(r"\s*Downloading (?:\S*/)?(\S+) \(([\d.]+) ?(bytes|[kKMG]i?B)\)")
_MEGABYTES = {"b": 1e-6, "k": 1e-3, "m": 1.0, "g": 1e3}
_NO_NETWORK = re.compile(
    "NewConnectionError|NameResolutionError|ConnectTimeoutError|ReadTimeoutError|ProxyError|"
    "ProtocolError|Network is unreachable|name resolution|error sending request|dns error"
)
_NO_SPACE = re.compile(r"[Nn]o space left on device|os error 28|\[Errno 28\]|\[WinError 112\]")
_REASON = re.compile(r"\s*(?:ERROR|error|cause|Caused by): *(.+)")


def install(python: Path, arguments: list[str], log: Path, status: StatusLine, title: str) -> str:
    """Install packages by uv and return in a few words what it fetched. Raises ToolError."""
    command = [str(python), "-m", "uv", "pip", "install", "--python", str(python), *arguments]
    return _run(command, {**_settings_of_pip(python), **os.environ}, log, status, title)


def run_pip(python: Path, arguments: list[str], log: Path, status: StatusLine, title: str) -> str:
    """Run pip and return in a few words what it fetched. Raises ToolError."""
    quiet = ["--progress-bar", "off", "--no-input", "--disable-pip-version-check"]
    command = [str(python), "-m", "pip", *arguments, *quiet]
    return _run(command, os.environ | {"PYTHONUNBUFFERED": "1"}, log, status, title)


def _settings_of_pip(python: Path) -> dict[str, str]:
    """Return uv's variables for what pip is set to; uv itself reads none of it."""
    listed = subprocess.run([str(python), "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    found = {"UV_INDEX_STRATEGY": "unsafe-best-match", "UV_HTTP_TIMEOUT": "180"}  # the first: as pip chooses
    for line in listed.splitlines():  # those of the environment come first
        name, _, value = line.partition("=")
        if variable := _UV_NAMES.get(name.rpartition(".")[2]):
            separator = "," if variable == "UV_FIND_LINKS" else " "
            found.setdefault(variable, separator.join(ast.literal_eval(value).split()))
    return found


def _run(command: list[str], environment: dict[str, str], log: Path, status: StatusLine, title: str) -> str:
    log.parent.mkdir(parents=True, exist_ok=True)
    lines, megabytes = [], 0.0
    with open(log, "a", encoding="utf-8") as file:
        file.write(f"\n$ {' '.join(command)}\n")
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=environment,
        )
        try:
            for line in process.stdout:
                file.write(line)
                lines.append(line.rstrip())
                if found := _FETCHING.match(line):
                    megabytes += float(found[2]) * _MEGABYTES[found[3][0].lower()]
                    status.show(f"{title}: fetching {found[1]} ({found[2]} {found[3]})")
                elif line.startswith(("Installing collected", "Prepared")):
                    status.show(f"{title}: installing")
            code = process.wait()
        finally:
            if process.poll() is None:  # Ctrl-C, or our own end
                process.kill()
                process.wait()
    if code:
        raise ToolError(explain(title, lines, log))
    return f"{megabytes:.0f} MB fetched"


def explain(title: str, lines: list[str], log: Path) -> str:
    """Say in a sentence why an installation failed, from what pip or uv wrote."""
    text = "\n".join(lines)
    if _NO_SPACE.search(text):
        return f"{title}: the disk is full; make room and run the same command again. The output is in {log}."
    if _NO_NETWORK.search(text):
        return (
            f"{title}: no network, the package index cannot be reached; run the same command again when there is one. "
            f"The output is in {log}."
        )
    reasons = [found[1] for found in map(_REASON.match, lines) if found]
    reason = (reasons or [line for line in lines if line] or ["it said nothing"])[-1].rstrip(".")
    if re.search("No matching distribution|unsatisfiable", reason):  # Python is too new, or the machine of a rare kind
        reason += f" (Python {platform.python_version()}, {platform.system()} {platform.machine()})"
    return f"{title}: the installation failed: {reason}. The whole output is in {log}."


def forget_half_installed(venv: Path) -> None:
    """Have installed again what was being installed when pip or uv was killed.

    Both unpack a whole package before they write INSTALLER, and believe a package to be installed as soon as its
    METADATA is there. What an older version leaves while pip makes room is called ~something.
    """
    packages = site_packages(venv)
    half = [info for info in packages.glob("*.dist-info") if not (info / "INSTALLER").is_file()]
    for folder in {*half, *packages.glob("~*")}:
        shutil.rmtree(folder) if folder.is_dir() else folder.unlink()


def site_packages(venv: Path) -> Path:
    """Find the folder of a virtual environment's packages."""
    return next(venv.glob("lib/python*/site-packages"), venv / "Lib" / "site-packages")
