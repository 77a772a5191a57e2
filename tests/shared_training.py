"""Trainings of a tiny model that several processes share: what each of them runs, and how a test starts them.

    shared_training.py FOLDER [METHOD ...]

Each process trains every method, then one training that its first process stops, then one in which the last process dies.
LoRAs are written to FOLDER as NAME_RANK.safetensors, the sizes of what was sent as `sent_RANK`, what ended the last
training as `ended`. With methods named, it trains by these and nothing else.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import conftest  # noqa: F401  makes the host and the pack importable
import folder_paths
import torch
import torch.distributed as dist
from pack.nodes import stopping
from pack.nodes.progress import TrainingProgress
from pack.trainer.config import TrainingConfig
from pack.trainer.dataset.training_image import TrainingImage
from pack.trainer.lora_file import LoRAWeights
from safetensors.torch import save_file
from tiny_host import TinyHost
from tiny_models import HEIGHT, WIDTH

STEPS, STOPPED_AT, DEAD_AT = 20, 5, 7
METHODS = ["LoRA", "LoRA that preserves", "iLECO", "copy machine", "difference", "ADDifT"]
PROMPT = {"2": {"class_type": "TrainTrain_TrainLoRA", "inputs": {}}}
# SGD, for Adam makes a whole step of a gradient that is nothing but rounding.
SETTINGS = TrainingConfig(optimizer="SGDNesterov", lr_scheduler="constant")
COMMON = {"steps": STEPS, "batch_size": 4, "learning_rate": 0.4, "settings": SETTINGS, "prompt": PROMPT}


def train(tiny: TinyHost, method: str, **inputs: object) -> LoRAWeights:
    """Train by a method on six pictures, in batches of four and two."""
    pictures = [tiny.picture.roll(8 * n, 1) for n in range(6)]
    images = {"training_images": [TrainingImage(p[0], "red", None, str(p), (WIDTH, HEIGHT)) for p in pictures]}
    own = {
        "LoRA": images,
        "LoRA that preserves": {**images, "preserve": "blue; green", "preserve_weight": 0.5},
        "ADDifT": {"original": torch.cat(pictures), "target": torch.cat([1 - picture for picture in pictures])},
    }
    outputs = tiny.train(method.split(" that ")[0], **{**COMMON, **own.get(method, {}), **inputs})
    return outputs[-2]


def train_methods(tiny: TinyHost, methods: Sequence[str] = METHODS) -> dict[str, LoRAWeights]:
    loras: dict[str, LoRAWeights] = {}
    for method in methods:
        loras[method] = train(tiny, method)
        tiny.copy = tiny.copy or loras.get("copy machine", {})  # for the difference
    return loras


def interrupted(tiny: TinyHost) -> LoRAWeights:
    """Train as the training that a process dies in."""
    return train(tiny, "LoRA", seed=11)


def stopped(tiny: TinyHost) -> LoRAWeights:
    """Train as the training that is stopped."""
    return train(tiny, "iLECO", seed=12)


def start(
    folder: Path, command: Sequence[str | Path], prefixes: Sequence[Sequence[str]] = ((), ()), **environment: str
):
    """Start two processes of a training as torchrun does, with prefixes to their commands.

    What they say is in FOLDER/RANK.log.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
    processes = []
    for rank, prefix in enumerate(prefixes):
        own = {**os.environ, **shared, "RANK": str(rank), "OMP_NUM_THREADS": "1", **environment}
        with open(folder / f"{rank}.log", "wb") as log:
            started = subprocess.Popen([*prefix, sys.executable, *command], env=own, stdout=log, stderr=log)
        processes.append(started)
    return processes


def at_step(step: int, do: Callable[[], None]) -> Callable:
    """Return what is called after each step, and does something after one of them."""
    return lambda progress, done: do() if done.number == step else None


def stop() -> None:
    stopping._running["2"] = True  # as the page's button does


def count_bytes() -> list[int]:
    """Return where the sizes of the messages of this process's steps will stand."""
    sent, all_reduce = [], dist.all_reduce
    dist.all_reduce = lambda tensor, **options: (sent.append(tensor.nbytes), all_reduce(tensor, **options))[1]
    return sent


def main(folder: Path, methods: Sequence[str]) -> None:
    folder_paths.output_directory = str(folder)
    rank, sent = int(os.environ["RANK"]), count_bytes()
    with tempfile.TemporaryDirectory() as models:
        tiny = TinyHost(Path(models))
    loras = train_methods(tiny, methods or METHODS)
    (folder / f"sent_{rank}").write_text(" ".join(map(str, sent)))
    if not methods:
        TrainingProgress.report = at_step(STOPPED_AT, stop) if rank == 0 else lambda *_: None
        loras["stopped"] = stopped(tiny)
    for name, lora in loras.items():
        save_file(dict(lora), folder / f"{name}_{rank}.safetensors")
    if not methods:
        die_in_the_middle(tiny, rank, folder)


def die_in_the_middle(tiny: TinyHost, rank: int, folder: Path) -> None:
    # Not waiting for anything, as a process that is killed.
    TrainingProgress.report = at_step(DEAD_AT, lambda: os._exit(9)) if rank == 1 else lambda *_: None
    try:
        interrupted(tiny)
    except RuntimeError as error:
        (folder / "ended").write_text(str(error))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
