"""One training of the evaluation, and what is measured of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from .judges import Judge
from .shapes.scenes import Scene


@dataclass(frozen=True)
class Figure:
    """One measurement of a trained LoRA.

    name: which samples
    prompts: each with the scene that it describes; taken in turn
    judge: what the samples are worth
    compared: whether the judge needs the bare model's samples
    reference: an image that the judge gets, as the autoencoder renders it, instead of the bare model's samples
    strength: of the LoRA
    method, trained_by: the method, and the titles of the nodes that train it
    lora: title of the node that saves the LoRA
    """

    name: str
    prompts: list[tuple[str, Scene]]
    judge: Judge
    method: str
    trained_by: tuple[str, ...]
    strength: float = 1.0
    compared: bool = False
    reference: Image.Image | None = None
    lora: str = "Save LoRA"


@dataclass(frozen=True)
class Experiment:
    """One run of an example workflow with other values ("NODE.INPUT"), and its figures."""

    name: str
    workflow: str
    figures: list[Figure]
    values: dict[str, Any] = field(default_factory=dict)
    quick: bool = False  # whether the rough table has it
    nodes: dict[str, Any] = field(default_factory=dict)  # more nodes in API format, for links in `values`
