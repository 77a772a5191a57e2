"""The loss of trainings as a chart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from ..trainer.history import smooth
from ..trainer.writing import whole_file
from .loss_table import Runs

LONGEST_NAME = 40  # letters in the legend


def draw_losses(runs: Runs, window: int, logarithmic: bool = False) -> torch.Tensor:
    """Draw the runs into one chart (H, W, 3) in [0, 1]: the losses pale, their running mean on top."""
    figure = Figure(figsize=(9, 5), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    above = {"zorder": 3, "clip_on": False}  # a loss of 0 lies on the frame
    for number, (name, run) in enumerate(runs.items()):
        steps = np.arange(1, len(run) + 1)
        colour, marker = f"C{number % 10}", "o" if len(run) == 1 else ""
        if window > 1:
            axes.plot(steps, run.losses, color=colour, alpha=0.25, linewidth=1)
        label = f"{name[:LONGEST_NAME]}, {len(run)} step{'s' * (len(run) != 1)}"
        axes.plot(steps, smooth(run.losses, window), color=colour, marker=marker, linewidth=2, label=label, **above)
    axes.set_xlabel("step")
    axes.set_ylabel("loss" if window == 1 else f"loss and its mean over {window} steps")
    axes.set_xlim(0, 1.02 * max(2, *map(len, runs.values())))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    highest = max(loss for run in runs.values() for loss in run.losses)
    if logarithmic and highest > 0:
        axes.set_yscale("log", nonpositive="mask")
    else:
        axes.set_ylim(0, 1.1 * highest or 1)
    axes.grid(alpha=0.3, which="both" if logarithmic else "major")
    axes.legend(loc="upper right")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3].astype(np.float32) / 255)


def save_picture(path: Path, image: torch.Tensor) -> Path:
    """Write a picture (H, W, 3) in [0, 1] as PNG, whole or not at all, and return its path."""
    with whole_file(path) as part:
        Image.fromarray((image * 255).round().byte().numpy()).save(part, "PNG")
    return path
