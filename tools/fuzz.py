"""Tries bad inputs on the pack and prints a table; runs in the host's Python.

    python -m tools.fuzz --comfyui .host/ComfyUI --base .host/base [--inputs N] [--seed N] [--only KIND]

A failure is shrunk to its smallest input and remembered in .host/fuzz, from where the next run tries it first.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from .load_pack import load_pack


def main() -> int:
    """Run what the command line asks for; the exit status says whether anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--inputs", type=int, default=2400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", metavar="KIND", help="only the kinds with this in their name")
    options = parser.parse_args()
    load_pack(options.comfyui.resolve())
    campaign = importlib.import_module("pack.tools.fuzzing.campaign")
    return campaign.run(options.comfyui.resolve(), options.base.resolve(), options.inputs, options.seed, options.only)


if __name__ == "__main__":
    sys.exit(main())
