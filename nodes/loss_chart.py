"""Draws the loss of trainings as a chart."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from ..trainer.atomic_write import write_atomically
from ..trainer.history import smooth
from .loss_table import Runs

LONGEST_NAME = 40  # characters in the legend


def draw_losses(runs: Runs, window: int, logarithmic: bool = False) -> torch.Tensor:
    """Draw runs into one chart (H, W, 3) in [0, 1]: raw losses pale, their mean over `window` steps on top, validation dashed."""
    figure = Figure(figsize=(9, 5), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    above = {"zorder": 3, "clip_on": False}  # a loss of 0 is on the border
    for number, (name, run) in enumerate(runs.items()):
        steps = np.arange(1, len(run) + 1)
        colour, marker = f"C{number % 10}", "o" if len(run) == 1 else ""
        if window > 1:
            axes.plot(steps, run.losses, color=colour, alpha=0.25, linewidth=1)
        label = f"{name[:LONGEST_NAME]}, {len(run)} step{'s' * (len(run) != 1)}"
        label += f", {len(run.skipped)} skipped" if run.skipped else ""
        axes.plot(steps, smooth(run.losses, window), color=colour, marker=marker, linewidth=2, label=label, **above)
        if run.validation:
            label = f"{name[:LONGEST_NAME]}, validation: lowest after step {run.best_step()}"
            axes.plot(
                *zip(*sorted(run.validation.items())), color=colour, linestyle="--", marker=".", label=label, **above
            )
    axes.set_xlabel("step")
    axes.set_ylabel("loss" if window == 1 else f"loss and its mean over {window} steps")
    axes.set_xlim(0, 1.02 * max(2, *map(len, runs.values())))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    losses = [loss for run in runs.values() for loss in (*run.losses, *run.validation.values())]
    highest = max(filter(math.isfinite, losses), default=0)
    if logarithmic and highest > 0:
        axes.set_yscale("log", nonpositive="mask")
    else:
        axes.set_ylim(0, 1.1 * highest or 1)
    axes.grid(alpha=0.3, which="both" if logarithmic else "major")
    axes.legend(loc="upper right")
    return to_image(figure)


def to_image(figure: Figure) -> torch.Tensor:
    """Return a figure as an image (H, W, 3) in [0, 1]."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3].astype(np.float32) / 255)


def save_png(path: Path, image: torch.Tensor) -> Path:
    """Save an image (H, W, 3) in [0, 1] as PNG, atomically, and return its path."""
    with write_atomically(path) as part:
        Image.fromarray((image * 255).round().byte().numpy()).save(part, "PNG")
    return path
