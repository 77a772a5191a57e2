"""The losses of trainings as a CSV table."""

from __future__ import annotations

import csv
from io import StringIO
from pathlib import Path
from typing import Sequence

import numpy as np

from ..trainer.files import whole_file

COLUMNS = ["run", "step", "loss", "smoothed loss"]


def smooth(losses: Sequence[float], window: int) -> np.ndarray:
    """Return at each step the mean of the last `window` losses, or of as many as there are."""
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(losses, dtype=np.float64))])
    ends = np.arange(1, len(losses) + 1)
    starts = np.maximum(0, ends - window)
    return (sums[ends] - sums[starts]) / (ends - starts)


def write_losses(path: Path, runs: Sequence[Sequence[float]], window: int) -> None:
    """Write the runs as a table: run, step, loss, smoothed loss. Whole or not at all."""
    rows: list[list] = [COLUMNS]
    for number, losses in enumerate(runs, 1):
        rows += [
            [number, step, loss, mean]
            for step, (loss, mean) in enumerate(zip(losses, smooth(losses, window).tolist()), 1)
        ]
    text = StringIO(newline="")
    csv.writer(text).writerows(rows)
    with whole_file(path) as part:
        part.write_text(text.getvalue(), encoding="utf-8", newline="")


def read_losses(path: Path) -> list[float]:
    """Return the losses of a table with one run. Raises OSError or ValueError for a file that is none."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        return [float(row["loss"]) for row in rows]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path.name} is no table of losses.") from error
