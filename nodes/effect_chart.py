"""Draws the effect of LoRAs against their strength as a chart."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .effect_curve import Effect
from .loss_chart import LONGEST_NAME, to_image

LINE_LENGTH = 135  # characters of the text below the chart
LINE_HEIGHT = 0.2  # inches


def draw_effects(
    curves: Mapping[str, Sequence[Effect]],
    text: str,
    similarities: Mapping[str, Sequence[float]] | None = None,
) -> torch.Tensor:
    """Draw the effect of each LoRA against strength, and a text below, into one chart (H, W, 3) in [0, 1].

    similarities: of the images to a reference, drawn as a second chart
    """
    lines = [line for part in text.splitlines() for line in textwrap.wrap(part, LINE_LENGTH)]
    count = 1 if similarities is None else 2
    figure = Figure(figsize=(9, 4.5 * count + LINE_HEIGHT * (len(lines) + 1)), dpi=100, layout="constrained")
    axes = figure.subplots(count, squeeze=False)[:, 0]
    for number, (name, curve) in enumerate(curves.items()):
        style = {"color": f"C{number % 10}", "label": name[:LONGEST_NAME], "marker": "o", "linewidth": 2}
        _draw_effect(axes[0], curve, style)
        if similarities is not None:
            axes[1].plot([effect.strength for effect in curve], similarities[name], **style)
    axes[0].set_ylabel("effect: distance to the image without LoRA")
    axes[0].set_ylim(bottom=0)
    axes[-1].set_ylabel("similarity to the reference" if similarities is not None else axes[0].get_ylabel())
    for each in axes:
        each.set_xlabel("strength")
        each.grid(alpha=0.3)
        each.legend(loc="best", framealpha=0.8)
    figure.supxlabel("\n".join(lines), x=0.02, ha="left", fontsize=9)
    return to_image(figure)


def _draw_effect(axes: Axes, curve: Sequence[Effect], style: dict) -> None:
    """Draw one curve, with a cross on what is broken."""
    axes.plot([effect.strength for effect in curve], [effect.distance for effect in curve], **style)
    broken = [effect for effect in curve if effect.is_broken]
    places = [effect.strength for effect in broken], [effect.distance for effect in broken]
    axes.plot(*places, linestyle="", marker="x", color="black", markersize=11, markeredgewidth=2)
