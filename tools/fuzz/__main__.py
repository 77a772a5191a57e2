"""Tries bad inputs on the pack and prints a table; runs in the host's Python.

tools.fuzz --comfyui COMFYUI --base FOLDER [--inputs N] [--seed N] [--only KIND]
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Run what the command line asks for; the exit status says whether anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--inputs", type=int, default=2400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", metavar="KIND", help="only the kinds with this in their name")
    options = parser.parse_args()
    _load_pack(options.comfyui.resolve())
    run = importlib.import_module("pack.tools.fuzz.run")
    return run.run(options.comfyui.resolve(), options.base.resolve(), options.inputs, options.seed, options.only)


def _load_pack(comfyui: Path) -> None:
    """Import the pack as `pack`, without running its __init__.py; its `nodes` would shadow the host's nodes.py."""
    sys.path[:] = [str(comfyui), *(path for path in sys.path if Path(path).resolve() != ROOT)]
    spec = importlib.util.spec_from_file_location("pack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    sys.modules["pack"] = importlib.util.module_from_spec(spec)
    sys.argv[1:] = []  # the host reads the command line when it is imported
    importlib.import_module("pack.tools.launch").prepare_torchvision()
    arguments = importlib.import_module("comfy.cli_args").args
    arguments.cpu = not importlib.import_module("torch").cuda.is_available()
    arguments.use_pytorch_cross_attention = True


if __name__ == "__main__":
    sys.exit(main())
