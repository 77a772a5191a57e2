"""Times this pack's trainings beside what people would use instead; runs in the host's Python.

tools.bench --comfyui COMFYUI --base BASE --folder FOLDER [--quick] [--only PART]

One table for each part. Contenders take turns, so that what else the machine does meets all of them alike; a figure is the
median, and behind it stands the spread, the way from the fastest to the slowest as a share of it.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from pathlib import Path

from ..terminal import StatusLine
from .host import import_pack
from .machine import describe_machine
from .rounds import Round


def main() -> int:
    """Measure; give the exit status."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__.splitlines()[0])
    for name in ("comfyui", "base", "folder"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="the smallest model, once")
    parser.add_argument("--only", default="", metavar="PART", help="only the parts with this in their name")
    parser.add_argument("--peak", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    import_pack(arguments.comfyui)
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore", message="In CPU autocast", category=UserWarning)  # the host's trainer in fp32
    import comfy.utils

    from .bench import Bench  # needs the host
    from .tables import PARTS

    comfy.utils.set_progress_bar_enabled(False)
    bench = Bench(arguments.comfyui, arguments.base, arguments.folder, arguments.quick, StatusLine())
    if arguments.peak:
        print(_peak(bench, *json.loads(arguments.peak)))
        return 0
    parts = [part for part in PARTS if arguments.only in part]
    if not parts:
        parser.error(f"--only {arguments.only}: no part has this in its name; there are {', '.join(PARTS)}")
    bench.status.keep(describe_machine())
    for part in parts:
        PARTS[part](bench)
    return 0


def _peak(bench, name: str, round_: dict, pictures: int | None = None) -> float:
    """Return the peak of one contender in MB; of ours also with a number of pictures."""
    from .bench import CONTENDERS
    from .memory import peak_megabytes

    def load():
        more = () if pictures is None else (pictures,)
        contender = CONTENDERS[name](*bench.load(Round(**round_)), *more)
        return lambda: contender.run(2)

    return peak_megabytes(load)


if __name__ == "__main__":
    sys.exit(main())
