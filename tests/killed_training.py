"""Trainings for another process to watch and to kill.

Loads a tiny model once. Each line that comes in then has trainings, as in `SEED:STEPS:FOLDER SEED:STEPS:FOLDER`, which copies
of this process run, all at once: Train LoRA and Save LoRA, as in a graph, with FOLDER as the host's output folder. What is reported:
`started` and a copy's process id, `step` and its number when it is done, `saved`, and `gone` when all copies have ended.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import conftest  # noqa: F401  makes the host and the pack importable
import folder_paths
import torch
from pack.nodes.progress import TrainingProgress
from pack.nodes.save_lora import SaveLoRA
from pack.trainer.config import NetworkConfig, TrainingConfig
from tiny_host import TinyHost

SAVE_EVERY = 2
PROMPT = {
    "2": {"class_type": "TrainTrain_TrainLoRA", "inputs": {}},
    "3": {"class_type": "TrainTrain_SaveLoRA", "inputs": {"lora": ["2", 2], "name": "mine", "save_precision": "fp16"}},
}


def report(what: object) -> None:
    os.write(1, f"{what}\n".encode())  # at once, and in one piece


def train(tiny: TinyHost, seed: int, steps: int, folder: str) -> None:
    folder_paths.output_directory = folder
    settings = TrainingConfig(save_every=SAVE_EVERY, lr_scheduler="constant")
    *_, lora, _ = tiny.train("LoRA", steps=steps, seed=seed, settings=settings, prompt=PROMPT)
    SaveLoRA.hidden = SimpleNamespace(prompt=PROMPT, extra_pnginfo=None)
    SaveLoRA.execute(lora, "mine", "fp16", 1.0, overwrite=True)


def main() -> None:
    torch.set_num_threads(1)  # a copy of a process has none of its other threads
    with tempfile.TemporaryDirectory() as folder:
        tiny = TinyHost(Path(folder))
    tiny.network = NetworkConfig(rank=32, alpha=32)  # large, so that writing takes its time
    TrainingProgress.report = lambda _, step: report(f"step {step.number}")
    for line in sys.stdin:
        copies = [os.fork() or run_copy(tiny, each) for each in line.split()]
        for copy in copies:
            os.waitpid(copy, 0)
        report("gone")


def run_copy(tiny: TinyHost, training: str) -> NoReturn:
    try:
        report(f"started {os.getpid()}")
        seed, steps, folder = training.split(":", 2)
        train(tiny, int(seed), int(steps), folder)
        report("saved")
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
