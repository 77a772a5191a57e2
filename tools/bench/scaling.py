"""Measures weak scaling: a process of a training on each core, or GPU, every one with a batch of its own.

`one` trains alone. `side by side` are two such, which know nothing of one another: what the machine itself loses when both
cores work. `together` are two processes that train one LoRA, on twice the batch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..host import ROOT, module_command
from .host import import_pack
from .machine import cores, has_cuda
from .timing import Timed, take_turns

BATCH = 4  # of each process
PROCESSES = 2


def measure_scaling(comfyui: Path, checkpoints: Path, steps: int, repeats: int) -> dict[str, Timed]:
    """Time a step of the demonstration model by one process and by two, each pinned to a core, or on a GPU, of its own."""
    command = module_command(sys.executable, "tools.bench.scaling", comfyui, checkpoints, str(steps))
    contenders = {
        "one": lambda: _run([(command, 0, 1)]),
        "side by side": lambda: _run([(command, place, 1) for place in range(PROCESSES)]),
        "together": lambda: _run([(command, place, PROCESSES) for place in range(PROCESSES)]),
    }
    return take_turns(contenders, repeats)


def _run(processes: Sequence[tuple[list[str], int, int]]) -> float:
    """Run processes at once; return the seconds of a step of the slowest. Each is a command, a place and how many train together."""
    started = []
    with tempfile.TemporaryDirectory() as folder:
        for command, place, count in processes:
            environment = {
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "CUDA_VISIBLE_DEVICES": str(place),
                "BENCH_PLACE": str(place),
                "BENCH_COUNT": str(count),
                "BENCH_MEETING": str(Path(folder) / "meeting"),
            }
            started.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True))
        return max(json.loads(process.communicate()[0].splitlines()[-1]) for process in started)


def _measure(comfyui: Path, checkpoints: Path, steps: int) -> float:
    """Return the seconds of a step of this process."""
    place, count = (int(os.environ[f"BENCH_{name}"]) for name in ("PLACE", "COUNT"))
    if not has_cuda() and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {cores()[place]})
    import_pack(comfyui)
    import torch
    import torch.distributed as dist
    from pack.nodes import host
    from pack.trainer.processes import ALONE, Processes

    from .subjects import load_subject
    from .timing import step_clock
    from .trainers import Ours, Setting, Silent

    subject = load_subject("Shapes", checkpoints, 128, torch.float32)
    processes = ALONE
    if count > 1:
        backend = dist.get_default_backend_for_device(subject.model.load_device)
        meeting = Path(os.environ["BENCH_MEETING"]).as_uri()
        dist.init_process_group(backend, init_method=meeting, rank=place, world_size=count)
        processes = Processes(place, count, subject.model.load_device)
    training = replace(Ours(subject, Setting(BATCH * count)).training(steps), processes=processes)
    with step_clock() as clock:
        host.train_lora(training, Silent(), lambda *_: None)
        return clock.seconds_per_step(steps)


if __name__ == "__main__":  # one process
    print(json.dumps(_measure(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))))
