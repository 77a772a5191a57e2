"""The loss of trainings as a chart."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ..trainer.files import whole_file
from .loss_table import smooth


def draw_losses(runs: Sequence[Sequence[float]], window: int) -> torch.Tensor:
    """Draw the runs into one chart (H, W, 3) in [0, 1]: the losses pale, their running mean on top."""
    figure = Figure(figsize=(9, 5), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    for number, losses in enumerate(runs, 1):
        steps = np.arange(1, len(losses) + 1)
        colour, marker = f"C{(number - 1) % 10}", "o" if len(losses) == 1 else ""
        if window > 1:
            axes.plot(steps, losses, color=colour, alpha=0.25, linewidth=1)
        axes.plot(
            steps,
            smooth(losses, window),
            color=colour,
            marker=marker,
            linewidth=2,
            label=f"run {number}, {len(losses)} steps",
        )
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


def save_picture(path: Path, image: torch.Tensor) -> Path:
    """Write a picture (H, W, 3) in [0, 1] as PNG, whole or not at all, and return its path."""
    with whole_file(path) as part:
        Image.fromarray((image * 255).round().byte().numpy()).save(part, "PNG")
    return path
