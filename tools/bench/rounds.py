"""What is measured on a machine: which models, in which settings, how often."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Round:
    """One model in one setting, and how often it is measured."""

    subject: str
    side: int  # pixels
    dtype: str
    batch_size: int
    checkpointing: bool = False
    steps: int = 3  # of a run, the first one to warm up
    slow_steps: int = 2  # of a contender that takes several times as long
    repeats: int = 3


def list_rounds(cuda: bool, quick: bool) -> list[Round]:
    """Return what is measured on this machine."""
    if not cuda:
        shapes = [Round("Shapes", 128, "float32", batch, steps=9, slow_steps=5) for batch in (1, 4)]
        real = [Round("SD1.5", 128, "float32", batch) for batch in (1, 4)]
        checkpointed = [Round("Shapes", 128, "float32", 4, True, steps=9, slow_steps=5)]
        return shapes[1:] if quick else shapes + checkpointed + real
    models = [("SD1.5", 512), ("SDXL", 1024), ("SD3", 1024)][: 1 if quick else 3]
    kinds = [
        (dtype, batch, checkpointing)
        for dtype in ("bfloat16", "float16")[: 1 if quick else 2]
        for batch in (1, 4)
        for checkpointing in (False, True)
    ]
    return [Round(name, side, *kind, steps=21, slow_steps=6) for name, side in models for kind in kinds]


def list_offload_rounds(cuda: bool, quick: bool) -> list[Round]:
    """Return the models whose weights wait outside the device, with checkpointing, on this machine."""
    models = [("SDXL", 1024), ("SD3", 1024)] if cuda else [("SD1.5", 128), ("SD3", 128)]
    dtype = "bfloat16" if cuda else "float32"
    return [Round(name, side, dtype, 1, True, steps=4) for name, side in models[: 1 if quick else 2]]
