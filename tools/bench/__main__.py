"""Times this pack's trainings beside what people would use instead; runs in the host's Python.

tools.bench --comfyui COMFYUI --base BASE --folder FOLDER [--quick] [--only PART]

One table for each part. Contenders take turns, so that what else the machine does meets all of them alike; a figure is the
median, and behind it stands the spread, the way from the fastest to the slowest as a share of it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

# In the order of the run; tables.py has a function for each.
PARTS = ("trainers", "memory", "ileco", "offload", "underflow", "telemetry", "first step")


def main() -> int:
    """Measure; give the exit status."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__.splitlines()[0])
    for name in ("comfyui", "base", "folder"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="the smallest model, once")
    parser.add_argument("--only", default="", metavar="PART", help="only the parts with this in their name")
    arguments = parser.parse_args()
    parts = [part for part in PARTS if arguments.only in part]
    if not parts:
        parser.error(f"--only {arguments.only}: no part has this in its name; there are {', '.join(PARTS)}")
    from .machine import describe_machine
    from .start import start_bench

    bench = start_bench(arguments.comfyui, arguments.base, arguments.folder, arguments.quick)
    from . import tables  # needs the host

    bench.status.keep(describe_machine())
    for part in parts:
        getattr(tables, f"show_{part.replace(' ', '_')}")(bench)
    return 0


if __name__ == "__main__":
    sys.exit(main())
