"""Inputs that several nodes have, and what is asked of all."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

SHOWN = 50  # letters of a wrong word


def seed_input(tooltip: str) -> io.Input:
    return io.Int.Input("seed", default=0, min=0, max=2**63 - 1, control_after_generate=False, tooltip=tooltip)


def size_inputs(tooltip: str) -> list[io.Input]:
    """Return width and height of pictures that a model makes."""
    return [io.Int.Input(n, default=512, min=16, max=8192, step=8, tooltip=tooltip) for n in ("width", "height")]


def check_values(node: type, values: dict[str, Any]) -> None:
    """Raise ValueError for a number outside what a node's input takes, and for a word that is none of its choices.

    The host looks so at what is typed in, but not at what comes by wire, and NaN it lets pass.
    """
    for field in node.define_schema().inputs:
        given = values.get(field.id)
        for value in given if isinstance(given, list) else [given]:
            _check_value(field, value)


def _check_value(field: io.Input, value: Any) -> None:
    least, most = getattr(field, "min", None), getattr(field, "max", None)
    if isinstance(value, (int, float)) and least is not None and not least <= value <= most:
        raise ValueError(f"{field.id} is {value}: set it from {least} to {most}.")
    choices = getattr(field, "options", None)
    if isinstance(value, str) and choices and value not in choices:
        raise ValueError(f"{field.id} is {value[:SHOWN]!r}: choose one of {', '.join(map(str, choices))}.")
