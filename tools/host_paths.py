"""Where ComfyUI is, and which Python runs it."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from .errors import ToolError

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Host:
    """A ComfyUI, its Python, and the folder for what we make ourselves."""

    folder: Path
    comfyui: Path
    python: Path

    @property
    def base(self) -> Path:
        """Name the base folder: models, input, output, and the link to the pack."""
        return self.folder / "base"


def host_folder() -> Path:
    """Name the folder of everything that the set-up makes: `.host`, or what TRAINTRAIN_HOST says."""
    return Path(os.environ.get("TRAINTRAIN_HOST") or ROOT / ".host").absolute()


def keep_bytecode(folder: Path) -> None:
    """Let the programs that we start keep the modules they compile, in `folder` if not beside the sources.

    Where PYTHONDONTWRITEBYTECODE is set, each of them would compile PyTorch anew, for seconds.
    """
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
        os.environ.setdefault("PYTHONPYCACHEPREFIX", str(folder))


def own_host(folder: Path) -> Host:
    """Describe the host that the set-up makes in `folder`."""
    return Host(folder, folder / "ComfyUI", interpreter(folder / "venv"))


def existing_host(folder: Path, comfyui: Path, python: Path | None) -> Host:
    """Describe a ComfyUI that is there already. Raises ToolError."""
    comfyui = comfyui.expanduser().absolute()
    if not all((comfyui / name).exists() for name in ("main.py", "nodes.py", "comfy/sd.py")):
        raise ToolError(
            f"--comfyui {comfyui} is no ComfyUI (main.py, nodes.py and comfy/ belong there): name the folder "
            "that holds its main.py."
        )
    python = python.expanduser().absolute() if python else _python_of(comfyui)
    if not python.is_file():
        raise ToolError(f"--python {python} does not exist: name the interpreter that runs your ComfyUI.")
    return Host(folder, comfyui, python)


def require_packages(python: Path, files: list[Path]) -> None:
    """Check that every package of the requirement files is installed. Raises ToolError with the command that helps."""
    names = {
        re.match(r"[\w-]+", line)[0]: file
        for file in files
        for line in file.read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    }
    code = (
        "import importlib.metadata as m, sys\n"
        "there = {d.metadata['Name'].lower().replace('_', '-') for d in m.distributions()}\n"
        "print(*(n for n in sys.argv[1:] if n.lower() not in there))"
    )
    answer = subprocess.run([str(python), "-c", code, *names], capture_output=True, text=True)
    if answer.returncode:
        raise ToolError(f"{python} cannot be run: {(answer.stderr.strip() or 'it said nothing').splitlines()[-1]}")
    if missing := answer.stdout.split():
        helps = " and ".join(
            f"`{python} -m pip install {install_options(file)}`"
            for file in files
            if any(names[name] == file for name in missing)
        )
        raise ToolError(f"{python} lacks {', '.join(missing)}: install with {helps}.")


def install_options(file: Path) -> str:
    """Give pip's options for a requirement file."""
    # Of comfy-cli we use one module, and its many requirements are not that module's.
    return f"--no-deps -r {file}" if file.name == "requirements-runner.txt" else f"-r {file}"


def python_command(host: Host, module: str, *arguments: str | Path) -> list[str]:
    """Give the command that runs a module of this repository in the host's Python."""
    return module_command(host.python, module, *arguments)


def module_command(python: Path | str, module: str, *arguments: str | Path) -> list[str]:
    """Give the command that runs a module of this repository in a Python."""
    # Not `-m`: the Python of ComfyUI's portable build does not look for modules in the working folder.
    code = f"import runpy, sys; sys.path.insert(0, {str(ROOT)!r}); runpy.run_module({module!r}, run_name='__main__')"
    return [str(python), "-c", code, *map(str, arguments)]


def interpreter(venv: Path) -> Path:
    """Name the interpreter of a virtual environment."""
    return venv / "Scripts" / "python.exe" if sys.platform == "win32" else venv / "bin" / "python"


@functools.cache
def has_nvidia_driver() -> bool:
    """Tell whether an NVIDIA driver answers on this machine."""
    program = shutil.which("nvidia-smi")
    return bool(program) and subprocess.run([program], capture_output=True).returncode == 0


def _python_of(comfyui: Path) -> Path:
    for folder in (comfyui, comfyui.parent):
        for python in (
            interpreter(folder / "venv"),
            interpreter(folder / ".venv"),
            folder / "python_embeded" / "python.exe",
        ):  # ComfyUI's portable build spells it like this
            if python.is_file():
                return python
    return Path(sys.executable)
