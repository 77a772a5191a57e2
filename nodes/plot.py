"""The loss of trainings as a chart and as a table."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Sequence

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def smooth(losses: Sequence[float], window: int) -> np.ndarray:
    """Return at each step the mean of the last `window` losses, or of as many as there are."""
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(losses, dtype=np.float64))])
    ends = np.arange(1, len(losses) + 1)
    starts = np.maximum(0, ends - window)
    return (sums[ends] - sums[starts]) / (ends - starts)


def draw_losses(runs: Sequence[Sequence[float]], window: int) -> torch.Tensor:
    """Draw the runs into one chart (H, W, 3) in [0, 1]: the losses pale, their running mean on top."""
    figure = Figure(figsize=(9, 5), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    for number, losses in enumerate(runs, 1):
        steps = np.arange(1, len(losses) + 1)
        colour, marker = f"C{(number - 1) % 10}", "o" if len(losses) == 1 else ""
        if window > 1:
            axes.plot(steps, losses, color=colour, alpha=0.25, linewidth=1)
        axes.plot(steps, smooth(losses, window), color=colour, marker=marker, linewidth=2, label=f"run {number}, {len(losses)} steps")
    axes.set_xlabel("step")
    axes.set_ylabel("loss" if window == 1 else f"loss and its mean over {window} steps")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    if len(runs) > 1:
        axes.legend()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3].astype(np.float32) / 255)


def write_losses(path: Path, runs: Sequence[Sequence[float]], window: int) -> None:
    """Write the runs as a CSV table: run, step, loss, smoothed loss. Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["run", "step", "loss", "smoothed loss"])
            for number, losses in enumerate(runs, 1):
                table.writerows([number, step, loss, mean] for step, (loss, mean) in enumerate(zip(losses, smooth(losses, window).tolist()), 1))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
