"""The newest of everything that can be had, as a host in a folder beside the pinned one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from .build_steps import replace_folder
from .errors import ToolError
from .host_paths import own_host
from .host_setup import PINNED, Versions
from .terminal import StatusLine

REPOSITORY = "https://github.com/comfyanonymous/ComfyUI"
_ENDS_WITHIN = 600  # seconds; without a network, git may wait for much longer
_TAG = re.compile(r"refs/tags/(v(\d+)\.(\d+)\.(\d+))$", re.MULTILINE)
_PIN = re.compile(r"([\w.-]+) *==")


def newest_folder(pinned: Path) -> Path:
    """Name the folder of the newest host: `.host-newest` beside `.host`."""
    return pinned.with_name(pinned.name + "-newest")


def newest_versions() -> Versions:
    """Describe a host of the newest versions; what they are is looked up once a day."""
    return Versions(
        "ComfyUI", "torch", "torchvision", "torchaudio", unpack_newest, REPOSITORY, [str(date.today())], free_pins
    )


def free_pins(folder: Path, files: Sequence[Path]) -> list[str]:
    """Give uv's options to install the newest of each package, also of those that the requirement files pin."""
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    freed = folder / "freed.txt"
    freed.write_text("".join(f"{pin[1]}\n" for pin in map(_PIN.match, lines) if pin), encoding="utf-8")
    return ["--upgrade", "--override", str(freed)]


def unpack_newest(folder: Path, status: StatusLine, repository: str = REPOSITORY) -> str:
    """Fetch the newest tag of ComfyUI, or take the pinned ComfyUI if it cannot be had; say which it was."""
    comfyui = own_host(folder).comfyui
    part = comfyui.with_name(comfyui.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        tag = newest_tag(repository)
        _git("clone", "--quiet", "--depth", "1", "--branch", tag, repository, str(part))
    except ToolError as error:
        PINNED.unpack(folder, status)
        return f"the pinned {PINNED.comfyui}, because its repository cannot be read ({error})"
    replace_folder(part, comfyui)
    return tag


def newest_tag(repository: str) -> str:
    """Ask a repository for the tag of its newest release. Raises ToolError."""
    tags = _TAG.findall(_git("ls-remote", "--tags", "--refs", repository))
    if not tags:
        raise ToolError(f"{repository} has no tag such as v1.2.3")
    return max(tags, key=lambda tag: tuple(map(int, tag[1:])))[0]


def _git(*arguments: str) -> str:
    command = ["git", "-c", "advice.detachedHead=false", *arguments]
    environment = os.environ | {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    try:
        return subprocess.run(
            command, check=True, capture_output=True, text=True, env=environment, timeout=_ENDS_WITHIN
        ).stdout
    except subprocess.CalledProcessError as error:
        said = [line for line in error.stderr.splitlines() if line.startswith("fatal: ")]  # the first one is the cause
        raise ToolError(said[0] if said else "git said nothing") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolError(str(error)) from error
