"""The parts of the bench: each measures and prints its lines."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from functools import partial

from ..host import ROOT
from . import images, overheads
from .bench import CONTENDERS, NAMES, Bench
from .machine import count_places, has_cuda
from .memory import give_back_memory, without_kept_memory
from .rounds import Round
from .scaling import PROCESSES, measure_scaling
from .timing import Timed, take_turns

ROW = "{:<9} {:>6} {:<5} {:>5} {:<5} {:<31} {:>9} {:>7} {:>9} {:>8} {:>7}"
HEAD = ("model", "pixels", "type", "batch", "ckpt", "trainer", "steps/s", "spread", "images/s", "ours is", "limit")
TYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
PICTURES = (8, 80, 800)  # of a training, to see what grows with them


def show_trainers(bench: Bench) -> None:
    """Steps per second of each contender."""
    bench.status.keep(ROW.format(*HEAD))
    for round_ in bench.rounds():
        models = bench.load(round_)  # once for all: with one for each, SD1.5 in fp32 does not fit into 24 GB
        ready = {name: CONTENDERS[name](*models) for name in bench.contenders(round_)}
        turns = {name: partial(_run, bench, round_, name, contender) for name, contender in ready.items()}
        timed = take_turns(turns, bench.repeats(round_))
        for name, each in timed.items():
            bench.status.keep(_row(round_, name, each, timed))


def _run(bench: Bench, round_: Round, name: str, contender) -> float:
    bench.status.show(f"{round_.subject}, batch {round_.batch_size}: {NAMES[name]} ...")
    give_back_memory()  # what the one before has left behind, or there would be no room
    return contender.run(round_.slow_steps if name in ("host", "fastest") else round_.steps)


def _row(round_: Round, name: str, each: Timed, timed: dict[str, Timed]) -> str:
    return ROW.format(
        round_.subject,
        round_.side,
        TYPES[round_.dtype],
        round_.batch_size,
        _checkpointing(round_),
        NAMES[name],
        f"{1 / each.median:.3g}",
        f"{each.spread:.0%}",
        f"{round_.batch_size / each.median:.3g}",
        f"{each.median / timed['ours'].median:.2f}x",
        f"{timed['limit'].median / each.median:.0%}",
    )


def _checkpointing(round_: Round) -> str:
    return "on" if round_.checkpointing else "off"


def show_memory(bench: Bench) -> None:
    """The peak of each contender, each in a process of its own."""
    rounds = bench.rounds()
    for round_ in rounds if has_cuda() else [r for r in rounds if r.subject == rounds[-1].subject]:
        peaks: dict[str, float] = {}
        for name in bench.contenders(round_):
            bench.status.show(f"{round_.subject}, batch {round_.batch_size}: memory of {NAMES[name]} ...")
            done = _alone(bench, "--peak", json.dumps([name, vars(round_)]))
            if done.returncode:
                bench.status.keep(f"{NAMES[name]} failed: {(done.stderr.strip() or '?').splitlines()[-1]}")
                continue
            peaks[name] = float(done.stdout.split()[-1])
            share = f"ours is {peaks['ours'] / peaks[name]:.2f}x" if "ours" in peaks else ""
            what = f"{round_.subject:<9} batch {round_.batch_size} ckpt {_checkpointing(round_):<4} {NAMES[name]:<31}"
            bench.status.keep(f"{what} {peaks[name]:8.0f} MB   {share}")


def _alone(bench: Bench, *arguments: str) -> subprocess.CompletedProcess:
    """Run the bench again in a process of its own, which gives freed memory back."""
    return subprocess.run(bench.again(*arguments), capture_output=True, text=True, env=without_kept_memory(), cwd=ROOT)


def show_ileco(bench: Bench) -> None:
    """The time of a step of iLECO against its passes."""
    for round_ in [r for r in bench.rounds() if not r.checkpointing]:
        timed = overheads.measure_ileco(*bench.load(round_), round_.steps, bench.repeats(round_))
        ratio = timed["iLECO"].median / timed["two forward, one backward"].median
        bench.status.keep(f"iLECO, {round_.subject}, batch {round_.batch_size}: {ratio:.2f} of its passes alone")


def show_telemetry(bench: Bench) -> None:
    """What telling the page costs."""
    step, message, share = overheads.measure_telemetry(seconds_per_step=0.1)
    bench.status.keep(
        f"telemetry: {step * 1e6:.1f} us a step, {message * 1e6:.0f} us a message, {share:.3%} of a training of 10 steps/s"
    )


def show_first_step(bench: Bench) -> None:
    """The time from the queue to the first step."""
    seconds, step = overheads.measure_first_step(bench.comfyui, bench.base, bench.folder / "base", 3)
    bench.status.keep(
        f"from the queue to the end of the first step: {seconds.median:.2f} s (spread {seconds.spread:.0%}), the step {step:.2f} s"
    )


def show_growth(bench: Bench) -> None:
    """The time of a step and the memory with more and more pictures."""
    round_ = bench.smallest_round()
    timed = overheads.measure_growth(*bench.load(round_), PICTURES, round_.steps, round_.repeats)
    for count, each in timed.items():
        peak = float(_alone(bench, "--peak", json.dumps(["ours", vars(round_), count])).stdout.split()[-1])
        bench.status.keep(f"{count:>5} pictures: {each.median:.3f} s a step (spread {each.spread:.0%}), {peak:.0f} MB")


def show_images(bench: Bench) -> None:
    """How fast a folder of photographs is loaded and cropped."""
    count, repeats = (40, 1) if bench.quick else (1000, 3)
    measured = images.measure_images(bench.comfyui, count, bench.folder / "photographs", repeats=repeats)
    for line in images.table(measured):
        bench.status.keep(line)


def show_scaling(bench: Bench) -> None:
    """The time of a step of one process, and of two with twice the batch."""
    if count_places() < PROCESSES:
        return bench.status.keep("scaling: not measured, for it needs two GPUs, or two processor cores")
    timed = measure_scaling(bench.comfyui, bench.checkpoints, steps=9, repeats=1 if bench.quick else 3)
    for name, each in timed.items():
        share = f"{timed['one'].median / each.median:.2f} of one"
        bench.status.keep(f"{name:<13} {each.median:.3f} s a step (spread {each.spread:.0%}), {share}")


PARTS: dict[str, Callable[[Bench], None]] = {
    "trainers": show_trainers,
    "memory": show_memory,
    "ileco": show_ileco,
    "telemetry": show_telemetry,
    "first step": show_first_step,
    "growth": show_growth,
    "images": show_images,
    "scaling": show_scaling,
}
