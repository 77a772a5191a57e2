"""A training for other processes to watch and to kill: python killed_training.py FOLDER

Loads a tiny model once. Each line that comes in then has trainings, as in `SEED:STEPS SEED:STEPS`, which copies of this
process run, all at once: Train LoRA and Save LoRA, as in a graph, with FOLDER/output as the host's output folder. What is told: `started`
and a copy's process id, `step` and its number when it is done, `saved`, and `gone` when all copies have ended.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import conftest  # noqa: F401  makes the host and the pack importable
import folder_paths
import torch
from pack.nodes.files import SaveLoRA
from pack.nodes.progress import TrainingProgress
from pack.trainer.config import NetworkConfig, TrainingConfig
from tiny_host import TinyHost

SAVE_EVERY = 2
PROMPT = {
    "2": {"class_type": "TrainTrain_TrainLoRA", "inputs": {}},
    "3": {"class_type": "TrainTrain_SaveLoRA", "inputs": {"lora": ["2", 2], "name": "mine", "save_precision": "fp16"}},
}


def tell(what: object) -> None:
    os.write(1, f"{what}\n".encode())  # at once, and in one piece


def train(tiny: TinyHost, seed: int, steps: int) -> None:
    settings = TrainingConfig(save_every=SAVE_EVERY, lr_scheduler="constant")
    *_, lora, _ = tiny.train("LoRA", steps=steps, seed=seed, settings=settings, prompt=PROMPT)
    SaveLoRA.hidden = SimpleNamespace(prompt=PROMPT, extra_pnginfo=None)
    SaveLoRA.execute(lora, "mine", "fp16", 1.0, overwrite=True)


def main(folder: Path) -> None:
    torch.set_num_threads(1)  # a copy of a process has none of its other threads
    folder_paths.output_directory = str(folder / "output")
    tiny = TinyHost(folder)
    tiny.network = NetworkConfig(rank=32, alpha=32)  # large, so that writing takes its time
    TrainingProgress.__call__ = lambda _, step, *figures: tell(f"step {step}")
    for line in sys.stdin:
        copies = [os.fork() or run_copy(tiny, *map(int, each.split(":"))) for each in line.split()]
        for copy in copies:
            os.waitpid(copy, 0)
        tell("gone")


def run_copy(tiny: TinyHost, seed: int, steps: int) -> NoReturn:
    try:
        tell(f"started {os.getpid()}")
        train(tiny, seed, steps)
        tell("saved")
    finally:
        os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
