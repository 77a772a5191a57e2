"""The parts of the bench, show_PART: each measures and prints its lines."""

from __future__ import annotations

import gc
from functools import partial

import torch
from pack.trainer.offload import give_back_freed_memory

from ..errors import ToolError
from . import overheads
from .bench import CONTENDERS, NAMES, Bench
from .machine import has_cuda
from .offloading import measure_offload
from .peak_memory import measure_peak
from .rounds import Round, list_offload_rounds
from .subjects import load_subject
from .timing import Timed, take_turns
from .underflow import measure_underflow

ROW = "{:<9} {:>6} {:<5} {:>5} {:<5} {:<31} {:>9} {:>7} {:>9} {:>8} {:>7}"
HEAD = ("model", "pixels", "type", "batch", "ckpt", "trainer", "steps/s", "spread", "images/s", "ours is", "limit")
TYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


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
    gc.collect()
    give_back_freed_memory()  # what the one before has left behind, or there would be no room
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
            try:
                peaks[name] = measure_peak(bench, name, round_)
            except ToolError as error:
                bench.status.keep(f"{NAMES[name]} failed: {error}")
                continue
            share = f"ours is {peaks['ours'] / peaks[name]:.2f}x" if "ours" in peaks else ""
            what = f"{round_.subject:<9} batch {round_.batch_size} ckpt {_checkpointing(round_):<4} {NAMES[name]:<31}"
            bench.status.keep(f"{what} {peaks[name]:8.0f} MB   {share}")


def show_offload(bench: Bench) -> None:
    """What offload saves and costs, each setting in a process of its own."""
    for round_ in list_offload_rounds(has_cuda(), bench.quick):
        plain: tuple[float, float] | None = None
        for offload in ("none", "blocks", "all"):
            bench.status.show(f"{round_.subject}: offload {offload} ...")
            try:
                peak, seconds = measure_offload(bench, offload, round_)
            except ToolError as error:
                bench.status.keep(f"{round_.subject}, offload {offload} failed: {error}")
                continue
            plain = plain or (peak, seconds)
            bench.status.keep(
                f"{round_.subject:<6} {TYPES[round_.dtype]} {round_.side} pixels, offload {offload:<6} {peak:8.0f} MB "
                f"{peak / plain[0]:.2f}x, {seconds:6.2f} s a step {seconds / plain[1]:.2f}x"
            )


def show_ileco(bench: Bench) -> None:
    """The time of a step of iLECO against its passes."""
    for round_ in [r for r in bench.rounds() if not r.checkpointing]:
        timed = overheads.measure_ileco(*bench.load(round_), round_.steps, bench.repeats(round_))
        ratio = timed["iLECO"].median / timed["two forward, one backward"].median
        bench.status.keep(f"iLECO, {round_.subject}, batch {round_.batch_size}: {ratio:.2f} of its passes alone")


def show_telemetry(bench: Bench) -> None:
    """The cost of reporting to the page."""
    step, message, share = overheads.measure_telemetry(seconds_per_step=0.1)
    bench.status.keep(
        f"telemetry: {step * 1e6:.1f} us a step, {message * 1e6:.0f} us a message, {share:.3%} of a training of 10 steps/s"
    )


def show_underflow(bench: Bench) -> None:
    """The share of a gradient that fp16 flushes to zero, of an SD1.5 that computes in fp16."""
    side = 1024 if has_cuda() else 512
    subject = load_subject("SD1.5", bench.folder, side, torch.float16 if has_cuda() else torch.float32)
    bench.status.show(f"SD1.5, {side} pixels in fp16: gradients ...")
    for name, (zero, broken) in measure_underflow(subject, 1024).items():
        bench.status.keep(f"fp16, factor {name}: {zero:.2%} of the gradient is 0, {broken:.2%} is not finite")


def show_first_step(bench: Bench) -> None:
    """The time from the queue to the first step."""
    seconds, step = overheads.measure_first_step(bench.comfyui, bench.base, bench.folder / "base", 3)
    bench.status.keep(
        f"from the queue to the end of the first step: {seconds.median:.2f} s (spread {seconds.spread:.0%}), the step {step:.2f} s"
    )
