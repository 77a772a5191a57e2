"""Inputs that several nodes have."""

from __future__ import annotations

from comfy_api.latest import io


def seed_input(tooltip: str) -> io.Input:
    return io.Int.Input("seed", default=0, min=0, max=2**63 - 1, control_after_generate=False, tooltip=tooltip)


def size_inputs(tooltip: str) -> list[io.Input]:
    """Return width and height of pictures that a model makes."""
    return [io.Int.Input(n, default=512, min=16, max=8192, step=8, tooltip=tooltip) for n in ("width", "height")]
