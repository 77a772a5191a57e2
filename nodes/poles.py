"""Matches the prompts of a slider."""

from __future__ import annotations

from typing import Any, Sequence

import torch

from ..trainer.denoiser import Conditioning
from ..trainer.methods.slider import Poles
from . import host

Prompts = Sequence[Conditioning]


def match_poles(positive: Prompts, negative: Prompts, target: Prompts = (), preserve: Prompts = ()) -> list[Poles]:
    """Return the poles in order, each once with every preserved prompt added.

    Without a target, the preserved prompts are acted on, and without those a blank prompt, which stands for everything.

    Raises ValueError if the numbers differ, a pole is its own opposite, or a pole is to be acted on or preserved.
    """
    rows = _match_counts({"positive": positive, "negative": negative} | ({"target": target} if target else {}))
    _refuse_same(rows, preserve)
    return [poles for row in rows for poles in _add_preserved(row, preserve)]


def _add_preserved(row: Prompts, preserve: Prompts) -> list[Poles]:
    """Return the poles of one row: positive, negative, and target if there is one."""
    if not preserve:
        return [Poles(*row, *([host.blank_prompt(row[0])] if len(row) == 2 else []))]
    return [
        Poles(*(host.join_prompts(prompt, kept) for prompt in row), *([kept] if len(row) == 2 else []))
        for kept in preserve
    ]


def _match_counts(prompts: dict[str, Prompts]) -> list[tuple[Conditioning, ...]]:
    """Return the prompts row by row; one prompt is for all rows."""
    count = max(map(len, prompts.values()))
    if any(len(each) not in (1, count) for each in prompts.values()):
        given = ", ".join(f"{name} {len(each)}" for name, each in prompts.items())
        raise ValueError(f"The numbers of prompts differ ({given}): connect one prompt for all, or as many everywhere.")
    return list(zip(*(list(each) * count if len(each) == 1 else each for each in prompts.values())))


def _refuse_same(rows: Sequence[tuple[Conditioning, ...]], preserve: Prompts) -> None:
    for positive, negative, *targets in rows:
        if _is_same(positive, negative):
            raise ValueError(
                "positive and negative are the same prompt, so there is no direction to learn: write two prompts that "
                "differ in what the slider should change."
            )
        for name, pole in (("positive", positive), ("negative", negative)):
            for wired, prompts in (("target", targets), ("preserve", preserve)):
                if any(_is_same(pole, prompt) for prompt in prompts):
                    raise ValueError(
                        f"{wired} and {name} are the same prompt: name in {wired} what both ends have in common, such as "
                        f"a person, or disconnect {wired}."
                    )


def _is_same(first: Any, second: Any) -> bool:
    """Return whether two values, such as prompts, hold equal tensors."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first, second)
    if isinstance(first, dict):
        return (
            isinstance(second, dict)
            and first.keys() == second.keys()
            and _is_same([*first.values()], [second[key] for key in first])
        )
    if isinstance(first, (list, tuple)):
        return isinstance(second, (list, tuple)) and len(first) == len(second) and all(map(_is_same, first, second))
    return first == second
