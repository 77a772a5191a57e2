"""How far a LoRA moves an image at each strength, and from where on more strength adds nothing or breaks it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

LITTLE = 0.25  # of the fastest change
BROKEN = 4.0  # times the size of the latents, or of the edges, of the image without the LoRA
NOTHING = 0.01  # effect: a hundredth of the latents' size cannot be seen
TINY = 1e-30  # instead of 0, to divide by
RULE = (
    "Adds little: with more strength, the latents change less than a quarter as fast as at their fastest. Breaks the image: "
    "its latents or its edges are more than four times as strong as without the LoRA, or its edges less than a quarter."
)


@dataclass(frozen=True)
class Effect:
    """Measures a LoRA at one strength. Differences are root mean squares, divided by that of the latents without the LoRA.

    distance: between the latents and those without the LoRA
    change: between the latents and those at the strength before, on the way from 0
    is_broken: whether the image counts as broken
    """

    strength: float
    distance: float
    change: float
    is_broken: bool = False


def measure_effects(
    strengths: Sequence[float], latents: Sequence[torch.Tensor], images: Sequence[torch.Tensor]
) -> list[Effect]:
    """Measure the samples of one LoRA: latents of any one shape, images (H, W, 3).

    strengths: ascending, 0 among them
    """
    zero = strengths.index(0)
    size = max(_size(latents[zero]), TINY)
    effects = []
    for place, strength in enumerate(strengths):
        before = place - (place > zero) + (place < zero)
        distance, change = (_size(latents[place] - latents[other]) / size for other in (zero, before))
        is_broken = _is_broken(_size(latents[place]) / size, max(_edges(images[place]), TINY), _edges(images[zero]))
        effects.append(Effect(strength, distance, change, is_broken))
    return effects


def describe_effect(effects: Iterable[Effect], can_be_saved: bool = True) -> list[str]:
    """Return what the curve of one LoRA says, a sentence or two for its positive and its negative strengths.

    Only the positive side advises a strength to save the LoRA with: a file has one.

    effects: at ascending strengths, 0 among them
    can_be_saved: whether Save LoRA can save the LoRA at another strength
    """
    effects = list(effects)
    sides = {
        "positive": [effect for effect in effects if effect.strength >= 0],
        "negative": [effect for effect in reversed(effects) if effect.strength <= 0],
    }
    return [f"{name}: {_describe_side(side, can_be_saved)}" for name, side in sides.items() if len(side) > 1]


def _describe_side(effects: list[Effect], can_be_saved: bool) -> str:
    """Describe effects at strengths that lead away from 0."""
    broken = next((place for place, effect in enumerate(effects) if place and effect.is_broken), len(effects))
    usable = effects[:broken]
    broken_at = [f"breaks the image from {effect.strength:g} on" for effect in effects[broken : broken + 1]]
    if len(usable) == 1:
        return f"{effects[broken].strength:g} breaks the image. Compare smaller strengths."
    if max(effect.distance for effect in usable) < NOTHING:
        return " and ".join([f"changes nothing that can be seen up to {usable[-1].strength:g}", *broken_at]) + "."
    grown = _grown_at(usable)
    findings = [f"adds little from {usable[grown].strength:g} on"] * (grown < len(usable) - 1) + broken_at
    if not findings:
        return f"the image still changes at {usable[-1].strength:g}, the last strength compared."
    best = usable[grown].strength
    is_advised = can_be_saved and best > 0 and best != 1
    advice = f" Saved with strength {best:g} in Save LoRA, 1 acts like {best:g} here." if is_advised else ""
    return f"more strength {' and '.join(findings)}.{advice}"


def _grown_at(effects: list[Effect]) -> int:
    """Return the place of the first effect after which all change is slow."""
    speeds = [b.change / abs(b.strength - a.strength) for a, b in zip(effects, effects[1:])]
    return max(place for place, speed in enumerate(speeds, 1) if speed >= LITTLE * max(speeds))


def _is_broken(size: float, edges: float, plain_edges: float) -> bool:
    ratio = edges / max(plain_edges, TINY)
    return not (math.isfinite(size) and size <= BROKEN and 1 / BROKEN <= ratio <= BROKEN)


def _size(latent: torch.Tensor) -> float:
    """Return the root mean square of a latent."""
    return latent.double().square().mean().sqrt().item()


def _edges(image: torch.Tensor) -> float:
    """Return the mean difference of neighboring pixels in an image (H, W, 3)."""
    image = image.double()
    return (image.diff(dim=0).abs().mean() + image.diff(dim=1).abs().mean()).item()
