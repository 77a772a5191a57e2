"""What all parts of the bench share: where its models are, how often to measure, and the line on the terminal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..terminal import StatusLine
from .machine import has_cuda
from .rounds import Round, list_rounds
from .subjects import Subject, load_subject
from .trainers import Diffusers, HostTrainer, Limit, Ours, Setting

NAMES = {
    "ours": "this pack",
    "host": "ComfyUI's Train LoRA, defaults",
    "fastest": "ComfyUI's Train LoRA, fastest",
    "diffusers": "diffusers, PEFT, AdamW",
    "limit": "the bare model",
}
CONTENDERS: dict[str, Callable[[Subject, Setting], Any]] = {
    "ours": Ours,
    "host": HostTrainer,
    "fastest": partial(HostTrainer, fastest=True),
    "diffusers": Diffusers,
    "limit": Limit,
}


@dataclass(frozen=True)
class Bench:
    """A run of the bench.

    comfyui, base: the host and its base folder, with the demonstration model
    folder: for what the bench makes itself
    quick: whether only the smallest model is measured, once
    """

    comfyui: Path
    base: Path
    folder: Path
    quick: bool
    status: StatusLine

    @property
    def checkpoints(self) -> Path:
        return self.base / "models" / "checkpoints"

    def rounds(self) -> list[Round]:
        return list_rounds(has_cuda(), self.quick)

    def repeats(self, round_: Round) -> int:
        return 1 if self.quick else round_.repeats

    def load(self, round_: Round) -> tuple[Subject, Setting]:
        """Return the model of a round, and the setting of all contenders."""
        folder = self.checkpoints if round_.subject == "Shapes" else self.folder
        subject = load_subject(round_.subject, folder, round_.side, getattr(torch, round_.dtype))
        return subject, Setting(round_.batch_size, checkpointing=round_.checkpointing)

    def contenders(self, round_: Round) -> list[str]:
        """Name the contenders of a round: diffusers has no demonstration model and no SD3 in its old U-Net."""
        return [name for name in NAMES if name != "diffusers" or round_.subject == "SD1.5"]
