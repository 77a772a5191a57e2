"""Reads the strengths that LoRAs are compared at."""

from __future__ import annotations

import re

from .input_checks import SHOWN

STRONGEST = 100  # as in ComfyUI's own loaders
MOST = 32  # strengths
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)")


def read_strengths(text: str) -> list[float]:
    """Return the strengths in a text such as "-2, -1, 0, 1, 2", ascending, each once, and always with 0.

    Raises ValueError for an entry that is not a number from -100 to 100, for no strength other than 0, and for more than 32.
    """
    words = [word for word in re.split(r"[,;\s]+", text.replace("\N{MINUS SIGN}", "-")) if word]
    wrong = next((word for word in words if not _NUMBER.fullmatch(word) or abs(float(word)) > STRONGEST), None)
    if wrong is not None:
        raise ValueError(
            f"strengths has {wrong[:SHOWN]!r}, which is not a number from -{STRONGEST} to {STRONGEST}: write numbers "
            "separated by commas, such as -1, 0, 0.5, 1."
        )
    strengths = sorted({0.0, *map(float, words)})
    if len(strengths) == 1:
        raise ValueError(
            f"strengths is {text.strip()[:SHOWN]!r}, which leaves nothing to compare: write numbers other than 0, such as "
            "-1, 0, 0.5, 1."
        )
    if len(strengths) > MOST:
        raise ValueError(f"strengths has {len(strengths)} different numbers, with 0: use {MOST} or fewer.")
    return strengths


def describe_strength(strength: float) -> str:
    """Return a strength as a label: "strength 0.5", and "no LoRA" for 0."""
    return f"strength {strength:g}" if strength else "no LoRA"
