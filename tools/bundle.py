"""Packs what a machine with a GPU and without a network needs to run the bench and the precision tests.

tools.bundle --comfyui COMFYUI FOLDER [--has FILE] [--python-version 3.12]

Runs in the host's Python. Writes FOLDER/traintrain.tar.gz.1, .2 and so on. There, in an empty folder:

    cat traintrain.tar.gz.* | tar xz && sh run.sh
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import ToolError
from .host_paths import ROOT

PART = 60_000_000  # bytes; most that small uploads take
# On every machine with a GPU; of no use without a browser; for other tests.
LEFT_OUT = re.compile(
    "torch(vision|audio)?$|triton|nvidia-|cuda-|pip$|setuptools$|wheel$|uv$|"
    "playwright$|comfyui-.*(frontend|templates|docs)|bitsandbytes$|scikit-image$|comfy-cli$|hypothesis$"
)
PLATFORMS = [f"manylinux{tag}_x86_64" for tag in ("1", "2010", "2014", "_2_17", "_2_24", "_2_27", "_2_28", "_2_34")]
NOT_PACKED = {".git", "__pycache__", "tests-unit", "blueprints", "models", "input", "output", "temp", "user"}
RUN = """\
set -e
python=$(command -v "${PYTHON:-python3}")
[ -d site ] || [ -z "$(ls wheels)" ] || "$python" -m pip install -q --no-index --no-deps --target site wheels/*.whl
export PYTHONPATH="$PWD/site" TRAINTRAIN_HOST="$PWD/host" TRAINTRAIN_COMFYUI="$PWD/ComfyUI"
cd pack
"$python" dev.py bench --quick --comfyui ../ComfyUI --python "$python" "$@"
"$python" -m pytest -q --long tests/test_precision.py
"""


def main() -> int:
    """Write the parts; give the exit status."""
    parser = argparse.ArgumentParser(prog="bundle", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--has", type=Path, metavar="FILE", help="what `pip freeze` prints there: these are not packed")
    parser.add_argument("--python-version", default="3.12", metavar="X.Y", help="the Python there")
    arguments = parser.parse_args()
    has = package_names(arguments.has.read_text(encoding="utf-8")) if arguments.has else set()
    try:
        with tempfile.TemporaryDirectory() as wheels:
            download(packages_to_pack(has), arguments.python_version, Path(wheels))
            for part in write_parts(arguments.folder, arguments.comfyui, Path(wheels)):
                print(f"{part} ({part.stat().st_size / 1e6:.0f} MB)")
    except ToolError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def package_names(listed: str) -> set[str]:
    """Return the names in what `pip freeze` or `pip list` prints, as indexes write them."""
    return {_normalized(match[0]) for line in listed.splitlines() if (match := re.match(r"[A-Za-z][\w.-]*", line))}


def packages_to_pack(has: set[str]) -> list[str]:
    """Return NAME==VERSION of what is installed here and neither there nor left out."""
    versions = {_normalized(each.metadata["Name"]): each.version for each in importlib.metadata.distributions()}
    return sorted(f"{n}=={v}" for n, v in versions.items() if n not in has and not LEFT_OUT.match(n))


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def download(packages: list[str], python: str, folder: Path) -> None:
    """Fetch wheels for Linux on x86-64. Raises ToolError."""
    options = ["--no-deps", "--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    command = [sys.executable, "-m", "pip", "download", "-q", *options, *platforms, "-d", str(folder), *packages]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ToolError(
            f"pip could not fetch the wheels: {(done.stderr.strip() or 'it said nothing').splitlines()[-1]}"
        )


def write_parts(folder: Path, comfyui: Path, wheels: Path) -> list[Path]:
    """Pack the repository, ComfyUI and the wheels, and return the parts."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile() as packed:
        with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=6) as tar:
            _add_text(tar, "run.sh", RUN)
            for name in _tracked_files():
                tar.add(ROOT / name, f"pack/{name}")
            tar.add(comfyui, "ComfyUI", filter=_wanted)
            tar.add(wheels, "wheels")
        packed.seek(0)
        return list(_split(packed, folder))


def _split(packed: io.BufferedIOBase, folder: Path) -> Iterator[Path]:
    number = 0
    while data := packed.read(PART):
        number += 1
        part = folder / f"traintrain.tar.gz.{number}"
        part.write_bytes(data)
        yield part


def _tracked_files() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name]


def _wanted(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    parts = Path(entry.name).parts
    return None if len(parts) == 2 and parts[1] in NOT_PACKED or parts[-1] == "__pycache__" else entry


def _add_text(tar: tarfile.TarFile, name: str, text: str) -> None:
    entry, data = tarfile.TarInfo(name), text.encode()
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


if __name__ == "__main__":
    sys.exit(main())
