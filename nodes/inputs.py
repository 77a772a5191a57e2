"""Inputs that several nodes have, and what is asked of all."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

SHOWN = 50  # letters of a wrong word
WIDGETS = {"INT", "FLOAT", "BOOLEAN", "STRING", "COMBO", "LOSS_MAP", "COMFY_AUTOGROW_V3"}  # which JSON can hold


def seed_input(tooltip: str) -> io.Input:
    return io.Int.Input("seed", default=0, min=0, max=2**63 - 1, control_after_generate=False, tooltip=tooltip)


def size_inputs(tooltip: str) -> list[io.Input]:
    """Return width and height of pictures that a model makes."""
    return [io.Int.Input(n, default=512, min=16, max=8192, step=8, tooltip=tooltip) for n in ("width", "height")]


def check_values(node: type, values: dict[str, Any]) -> None:
    """Raise ValueError for a number outside what a node's input takes, for a word that is none of its choices, and for
    numbers and words where a node must be wired.

    The host looks so at numbers and words that are typed in, but not at what comes by wire, and NaN it lets pass.
    """
    schema = node.define_schema()
    for field in (field for field in schema.inputs if field.id in values):
        given = values[field.id]
        for value in given if schema.is_input_list and isinstance(given, list) else [given]:
            _check_value(field, value)


def _check_value(field: io.Input, value: Any) -> None:
    least, most = getattr(field, "min", None), getattr(field, "max", None)
    if isinstance(value, (int, float)) and least is not None and not least <= value <= most:
        raise ValueError(f"{field.id} is {value}: set it from {least} to {most}.")
    is_typed = _is_typed(value) and value != []  # an empty list may have been wired
    if field.io_type not in WIDGETS and (is_typed or (value is None and not field.optional)):
        raise ValueError(f"{field.id} is {str(value)[:SHOWN]}: wire a node's output into it.")
    choices = getattr(field, "options", None)
    if isinstance(value, str) and choices and value not in choices:
        raise ValueError(f"{field.id} is {value[:SHOWN]!r}: choose one of {', '.join(map(str, choices))}.")


def _is_typed(value: Any) -> bool:
    """Tell whether a value is of words and numbers alone, as JSON can hold it."""
    if isinstance(value, dict):
        return all(map(_is_typed, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_typed, value))
    return isinstance(value, (str, int, float))
