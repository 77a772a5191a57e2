"""Inputs that several nodes share, and checks of values that come through connections."""

from __future__ import annotations

from typing import Any

import comfy.samplers
from comfy_api.latest import io

SHOWN = 50  # characters of a wrong value
PLACED = "placed"  # option of an input: its value in a node that is placed on the page; the default is of saved graphs
WIDGETS = {"INT", "FLOAT", "BOOLEAN", "STRING", "COMBO", "LOSS_MAP", "COMFY_AUTOGROW_V3"}  # types that JSON can hold


def seed_input(tooltip: str) -> io.Input:
    """Return the input for a seed."""
    return io.Int.Input("seed", default=0, min=0, max=2**63 - 1, control_after_generate=False, tooltip=tooltip)


def size_inputs(tooltip: str) -> list[io.Input]:
    """Return the inputs width and height, in pixels, of images that a model generates."""
    return [io.Int.Input(side, default=512, min=16, max=8192, step=8, tooltip=tooltip) for side in ("width", "height")]


def sampling_inputs() -> list[io.Input]:
    """Return the inputs of ComfyUI's KSampler for samples that show what a LoRA does."""
    return [
        io.Int.Input(
            "steps",
            default=20,
            min=1,
            max=10000,
            tooltip="Sampling steps. 12 to 20 are enough to judge the LoRA.",
        ),
        io.Float.Input(
            "cfg",
            default=7.0,
            min=0,
            max=100,
            step=0.1,
            tooltip="CFG scale: how closely the samples follow the prompt. 7 for SD 1.5 and SDXL, 1 for Flux and other distilled models.",
        ),
        io.Combo.Input(
            "sampler_name",
            options=comfy.samplers.SAMPLER_NAMES,
            default="euler",
            tooltip="As in KSampler. euler suits most models.",
        ),
        io.Combo.Input(
            "scheduler",
            options=comfy.samplers.SCHEDULER_NAMES,
            default="normal",
            tooltip="As in KSampler. normal suits most models.",
        ),
    ]


def guidance_input() -> io.Input:
    """Return the input for the guidance of methods that learn images."""
    return io.Float.Input(
        "distilled_guidance",
        default=1.0,
        min=0,
        max=100,
        step=0.1,
        optional=True,
        advanced=True,
        tooltip="Only for guidance-distilled models, such as Flux.1 dev: the guidance they train at. 1 is right for images, which have no guidance in them; sample with 3.5 as usual.",
    )


def check_values(node: type, values: dict[str, Any]) -> None:
    """Check values against a node's inputs. ComfyUI checks typed values, but not those that come through connections.

    Raises ValueError for a number that is NaN or out of range, an unknown option, and a plain value where a node must be
    connected.
    """
    schema = node.define_schema()
    for field in (field for field in schema.inputs if field.id in values):
        given = values[field.id]
        for value in given if schema.is_input_list and isinstance(given, list) else [given]:
            _check_value(field, value)


def _check_value(field: io.Input, value: Any) -> None:
    least, most = getattr(field, "min", None), getattr(field, "max", None)
    if isinstance(value, (int, float)) and least is not None and not least <= value <= most:
        raise ValueError(f"{field.id} is {value}. Set it to a value from {least} to {most}.")
    is_plain = _is_plain(value) and value != []  # an empty list may come from a node
    if field.io_type not in WIDGETS and (is_plain or (value is None and not field.optional)):
        raise ValueError(f"{field.id} is {str(value)[:SHOWN]}. Connect a node's output to it.")
    choices = getattr(field, "options", None)
    if isinstance(value, str) and choices and value not in choices:
        raise ValueError(f"{field.id} is {value[:SHOWN]!r}. Choose one of: {', '.join(map(str, choices))}.")


def _is_plain(value: Any) -> bool:
    """Return whether a value consists only of text and numbers, so that JSON can hold it."""
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return isinstance(value, (str, int, float))
