"""Times this pack's trainings beside what people would use instead; runs in the host's Python.

tools.bench --comfyui COMFYUI --base BASE --folder FOLDER [--quick] [--only PART]

One table for each part. Contenders take turns, so that what else the machine does meets all of them alike; a figure is the
median, and behind it stands the spread, the way from the fastest to the slowest as a share of it.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
from pathlib import Path

from ..host import ROOT, module_command
from ..terminal import StatusLine
from .host import import_pack
from .machine import describe_machine, has_cuda
from .rounds import Round, list_rounds

NAMES = {
    "ours": "this pack",
    "host": "ComfyUI's Train LoRA, defaults",
    "fastest": "ComfyUI's Train LoRA, fastest",
    "diffusers": "diffusers, PEFT, AdamW",
    "limit": "the bare model",
}
ROW = "{:<9} {:>6} {:<5} {:>5} {:<5} {:<31} {:>9} {:>7} {:>9} {:>8} {:>7}"
PARTS = ("trainers", "memory", "ileco", "telemetry", "first step", "growth", "images")


class Bench:
    """Loads models for rounds, one at a time."""

    def __init__(self, arguments: argparse.Namespace, status: StatusLine) -> None:
        self.arguments, self.status = arguments, status

    def load(self, round_: Round):
        """Return the Subject and the Setting of a round."""
        import torch

        from .subjects import load_subject
        from .trainers import Setting

        folder = self.arguments.base / "models" / "checkpoints" if round_.subject == "Shapes" else self.arguments.folder
        subject = load_subject(round_.subject, folder, round_.side, getattr(torch, round_.dtype))
        return subject, Setting(round_.batch_size, checkpointing=round_.checkpointing)

    def contender(self, name: str, round_: Round):
        """Return a contender for a round, ready to run."""
        from .trainers import Diffusers, HostTrainer, Limit, Ours

        subject, setting = self.load(round_)
        if name in ("host", "fastest"):
            return HostTrainer(subject, setting, fastest=name == "fastest")
        return {"ours": Ours, "diffusers": Diffusers, "limit": Limit}[name](subject, setting)

    def contenders(self, round_: Round) -> list[str]:
        """Name the contenders that a round has: diffusers has no demonstration model and no SD3 in its old U-Net."""
        return [name for name in NAMES if name != "diffusers" or round_.subject in ("SD1.5",)]

    def time_trainers(self) -> None:
        """Print steps per second of each contender."""
        self.status.keep(
            ROW.format(
                "model",
                "pixels",
                "type",
                "batch",
                "ckpt",
                "trainer",
                "steps/s",
                "spread",
                "images/s",
                "ours is",
                "limit",
            )
        )
        for round_ in list_rounds(has_cuda(), self.arguments.quick):
            self._time_round(round_)

    def _time_round(self, round_: Round) -> None:
        from .timing import take_turns

        ready = {name: self.contender(name, round_) for name in self.contenders(round_)}
        steps = {name: round_.slow_steps if name in ("host", "fastest") else round_.steps for name in ready}

        def measure(name: str) -> float:
            self.status.show(f"{round_.subject}, batch {round_.batch_size}: {NAMES[name]} ...")
            return ready[name].run(steps[name])

        timed = take_turns(
            {name: (lambda name=name: measure(name)) for name in ready}, 1 if self.arguments.quick else round_.repeats
        )
        for name, each in timed.items():
            self.status.keep(
                ROW.format(
                    round_.subject,
                    round_.side,
                    {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}[round_.dtype],
                    round_.batch_size,
                    "on" if round_.checkpointing else "off",
                    NAMES[name],
                    f"{1 / each.median:.2f}",
                    f"{each.spread:.0%}",
                    f"{round_.batch_size / each.median:.2f}",
                    f"{each.median / timed['ours'].median:.2f}x",
                    f"{timed['limit'].median / each.median:.0%}",
                )
            )

    def measure_memory(self) -> None:
        """Print the peak of each contender, each in a process of its own."""
        from .memory import without_kept_memory

        rounds = list_rounds(has_cuda(), self.arguments.quick)
        for round_ in [r for r in rounds if r.subject == rounds[-1].subject or has_cuda()]:
            ours = None
            for name in self.contenders(round_):
                self.status.show(f"{round_.subject}, batch {round_.batch_size}: memory of {NAMES[name]} ...")
                command = self._again("--peak", json.dumps([name, vars(round_)]))
                done = subprocess.run(command, capture_output=True, text=True, env=without_kept_memory(), cwd=ROOT)
                if done.returncode:
                    self.status.keep(f"{NAMES[name]} failed: {(done.stderr.strip() or '?').splitlines()[-1]}")
                    continue
                peak = float(done.stdout.split()[-1])
                ours = ours or peak
                ckpt = "on" if round_.checkpointing else "off"
                self.status.keep(
                    f"{round_.subject:<9} batch {round_.batch_size} ckpt {ckpt:<4} {NAMES[name]:<31} {peak:8.0f} MB   ours is {ours / peak:.2f}x"
                )

    def measure_ileco(self) -> None:
        """Print the time of a step of iLECO against its passes."""
        from .overheads import measure_ileco

        for round_ in [r for r in list_rounds(has_cuda(), self.arguments.quick) if not r.checkpointing]:
            timed = measure_ileco(*self.load(round_), round_.steps, round_.repeats)
            ratio = timed["iLECO"].median / timed["two forward, one backward"].median
            self.status.keep(f"iLECO, {round_.subject}, batch {round_.batch_size}: {ratio:.2f} of its passes alone")

    def measure_telemetry(self) -> None:
        """Print what telling the page costs."""
        from .overheads import measure_telemetry

        step, message, share = measure_telemetry(seconds_per_step=0.1)
        self.status.keep(
            f"telemetry: {step * 1e6:.1f} us a step, {message * 1e6:.0f} us a message, {share:.3%} of a training of 10 steps/s"
        )

    def measure_first_step(self) -> None:
        """Print the time from the queue to the first step."""
        from .overheads import measure_first_step

        seconds, step = measure_first_step(
            self.arguments.comfyui, self.arguments.base, self.arguments.folder / "base", 3
        )
        self.status.keep(
            f"from the queue to the end of the first step: {seconds.median:.2f} s (spread {seconds.spread:.0%}), the step {step:.2f} s"
        )

    def measure_growth(self) -> None:
        """Print the time of a step with more and more pictures."""
        from .overheads import measure_growth

        round_ = list_rounds(has_cuda(), True)[0]
        timed = measure_growth(*self.load(round_), [8, 80, 800], round_.steps, round_.repeats)
        for count, each in timed.items():
            self.status.keep(f"{count:>5} pictures: {each.median:.3f} s a step (spread {each.spread:.0%})")

    def measure_images(self) -> None:
        """Print how fast a folder of photographs is loaded and cropped."""
        from .images import measure_images, table

        count, repeats = (40, 1) if self.arguments.quick else (1000, 3)
        folder = self.arguments.folder / "photographs"
        for line in table(measure_images(self.arguments.comfyui, count, folder, repeats=repeats)):
            self.status.keep(line)

    def _again(self, *arguments: str) -> list[str]:
        """Return the command that starts this program again with the same folders."""
        folders = [
            text for name in ("comfyui", "base", "folder") for text in (f"--{name}", getattr(self.arguments, name))
        ]
        return module_command(sys.executable, "tools.bench", *folders, *arguments)

    def peak(self, text: str) -> None:
        """Print the peak of one contender."""
        from .memory import peak_megabytes

        name, values = json.loads(text)
        round_ = Round(**values)

        def load():
            contender = self.contender(name, round_)
            return lambda: contender.run(2)

        print(peak_megabytes(load))


def main() -> int:
    """Measure; give the exit status."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__.splitlines()[0])
    for name in ("comfyui", "base", "folder"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="the smallest model, once")
    parser.add_argument("--only", default="", metavar="PART", help=f"one of {', '.join(PARTS)}")
    parser.add_argument("--peak", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    import_pack(arguments.comfyui)
    logging.disable(logging.WARNING)
    import comfy.utils

    comfy.utils.set_progress_bar_enabled(False)
    bench = Bench(arguments, StatusLine())
    if arguments.peak:
        bench.peak(arguments.peak)
        return 0
    bench.status.keep(describe_machine())
    for part in PARTS:
        if arguments.only in part:
            getattr(bench, {"trainers": "time_trainers"}.get(part, f"measure_{part.replace(' ', '_')}"))()
    return 0


if __name__ == "__main__":
    sys.exit(main())
