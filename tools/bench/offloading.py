"""What offload saves and costs: the peak memory while a training runs, and its seconds per step, in a process of its own.

tools.bench.offloading COMFYUI BASE FOLDER OFFLOAD ROUND
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .peak_memory import forget_peak, megabytes_now, peak_megabytes_since, run_alone
from .rounds import Round
from .start import start_bench
from .timing import step_clock

if TYPE_CHECKING:
    from .bench import Bench


def measure_offload(bench: Bench, offload: str, round_: Round) -> tuple[float, float]:
    """Return the peak in MB, of the second step on and above the process without a model, and the seconds per step."""
    peak, seconds = run_alone("tools.bench.offloading", bench, offload, round_)
    return peak, seconds


def _measure(comfyui: str, base: str, folder: str, offload: str, round_: str) -> tuple[float, float]:
    bench = start_bench(Path(comfyui), Path(base), Path(folder), quick=False)
    from pack.nodes import host  # needs the host

    from .trainers import Ours

    before, plan = megabytes_now(), Round(**json.loads(round_))
    job = Ours(*bench.load(plan)).job(plan.steps)
    job = replace(job, config=replace(job.config, offload=offload))
    with step_clock() as clock, host.open_session(job, lambda session: None) as session:
        for step, _ in enumerate(session.steps()):
            if step == 0:  # the first one begins before the weights have gone to their file
                forget_peak()
        return peak_megabytes_since(before), clock.seconds_per_step(plan.steps)


if __name__ == "__main__":
    print(*_measure(*sys.argv[1:]))
