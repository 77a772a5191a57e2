"""What `evaluate` trains, and what it asks of the samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from .shapes.classify import classify
from .shapes.pairs import PAIRS, Pair
from .shapes.world import BACKGROUNDS, COLOURS, SHAPES, Scene

# (scenes, samples, samples of the bare model from the same noise or references) -> success and damage in words
Judge = Callable[[Sequence[Scene], Sequence[Image.Image], Sequence[Image.Image]], tuple[str, str]]
Question = Callable[[Scene, Image.Image], bool]


# What pairs want that the workflow's values, which suit the background, do not give.
DIFFERENCE_VALUES = {"colour": {"LoRA Network.rank": 16, "LoRA Network.alpha": 16.0}}
ADDIFT_VALUES = {name: {"Train ADDifT.learning_rate": 9e-4} for name in ("colour", "part")}


@dataclass(frozen=True)
class Figure:
    """One measurement of a trained LoRA.

    name: which samples
    prompts: each with the scene that it describes; taken in turn
    judge: what the samples are worth
    compared: whether the judge needs the bare model's samples
    reference: a picture that the judge gets, as the autoencoder renders it, in the place of the bare model's samples
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


def list_experiments(quick: bool) -> list[Experiment]:
    """List the trainings in the order of the table."""
    every = [*_replacements(), *_erasures(), *_differences()]
    return [experiment for experiment in every if experiment.quick or not quick]


def _replacements() -> Iterator[Experiment]:
    red = [
        _ileco(
            "red prompts",
            _sentences(["red"]),
            _shares(_all(_shows(colour="blue"), _keeps("shape")), _keeps("background")),
        ),
        _ileco("green and yellow prompts", _sentences(["green", "yellow"]), _unharmed("colour")),
    ]
    yield Experiment("red to blue", "ileco_replace", red, quick=True)
    circle = [
        _ileco(
            "circle prompts",
            _sentences(shapes=["circle"]),
            _shares(_shows(shape="square"), _keeps("colour", "background")),
        ),
        _ileco("triangle prompts", _sentences(shapes=["triangle"]), _unharmed("shape")),
    ]
    words = {"1": "{}", "2": "a {}", "3": "a red {}"}
    values = {f"Original {number}.text": text.format("circle") for number, text in words.items()}
    values |= {f"Target {number}.text": text.format("square") for number, text in words.items()}
    yield Experiment("circle to square", "ileco_replace", circle, values)


def _erasures() -> Iterator[Experiment]:
    triangle = [
        _ileco(
            "triangle prompts",
            _sentences(shapes=["triangle"]),
            _shares(_not(_shows(shape="triangle")), _keeps("colour", "background")),
        ),
        _ileco(
            "circle, square prompts",
            _sentences(shapes=["circle", "square"]),
            _unharmed("colour", "shape", "background"),
        ),
    ]
    yield Experiment("erase triangle", "ileco_erase", triangle)
    red_circle = _sentences(["red"], ["circle"])
    neighbours = [*_sentences(["red"], ["square", "triangle"]), *_sentences(["green", "blue", "yellow"], ["circle"])]
    figures = [
        _ileco(
            "red circle prompts", red_circle, _shares(_not(_shows(colour="red", shape="circle")), _keeps("background"))
        ),
        _ileco("red and circle prompts", neighbours, _unharmed("colour", "shape")),
    ]
    words = {"Original 1.text": "red circle", "Original 2.text": "a red circle", "Train iLECO.guidance": 2.0}
    kept = {"Preserve 1.text": "a red square", "Preserve 2.text": "a blue circle"}
    yield Experiment("erase red circle", "ileco_erase", figures, words | {"Train iLECO.preserve": None})
    yield Experiment("... with preserve", "ileco_erase", figures, words | kept)


def _differences() -> Iterator[Experiment]:
    for name, pair in PAIRS.items():
        values = {"Original.image": f"pair_{name}.png", "Target.image": f"pair_{name}_target.png"}
        values["What both show.text"] = pair.caption
        copy = Figure(
            "any prompts",
            [prompt for prompt in _sentences() if prompt[0] != pair.caption],
            _median_psnr,
            "copy machine",
            ("Train Copy Machine",),
            lora="Save copy machine",
            reference=pair.original,
        )
        both, quick = ("Train Copy Machine", "Train Difference"), name == "background"
        figures = [copy, *_both_ways(pair, "difference", both)]
        yield Experiment(name, "copy_machine_difference", figures, values | DIFFERENCE_VALUES.get(name, {}), quick)
        figures = _both_ways(pair, "ADDifT", ("Train ADDifT",))
        yield Experiment(name, "addift", figures, values | ADDIFT_VALUES.get(name, {}), quick)


def _both_ways(pair: Pair, method: str, trained_by: tuple[str, ...]) -> list[Figure]:
    kept = lambda scene, image: _keeps(*pair.kept)(scene, pair.cleaned(image))  # noqa: E731
    return [
        Figure("strength 1", pair.prompts, _shares(lambda _, image: pair.has(image), kept), method, trained_by),
        Figure("strength -1", pair.prompts, _not_towards(pair, kept), method, trained_by, strength=-1.0, compared=True),
    ]


def _ileco(name: str, prompts: list[tuple[str, Scene]], judge: Judge) -> Figure:
    return Figure(name, prompts, judge, "iLECO", ("Train iLECO",))


def _sentences(
    colours: Sequence[str] = tuple(COLOURS),
    shapes: Sequence[str] = SHAPES,
    backgrounds: Sequence[str] = tuple(BACKGROUNDS),
) -> list[tuple[str, Scene]]:
    """List whole-sentence prompts of all scenes with these words."""
    scenes = [Scene(c, s, b) for b in backgrounds for s in shapes for c in colours]
    return [(scene.caption(), scene) for scene in scenes]


def _keeps(*attributes: str) -> Question:
    """Ask whether a sample has these attributes of its scene."""

    def ask(scene: Scene, image: Image.Image) -> bool:
        seen = classify(image)
        return all(getattr(seen, name) == getattr(scene, name) for name in attributes)

    return ask


def _shows(**wanted: str) -> Question:
    """Ask whether a sample shows these values."""
    return lambda _, image: all(getattr(classify(image), name) == value for name, value in wanted.items())


def _all(*questions: Question) -> Question:
    return lambda scene, image: all(question(scene, image) for question in questions)


def _not(question: Question) -> Question:
    return lambda scene, image: not question(scene, image)


def _shares(success: Question, kept: Question) -> Judge:
    """Judge by the share of samples that show the success, and of those that lose what they should keep."""
    return lambda scenes, images, _: (_share(success, scenes, images), _share(_not(kept), scenes, images))


def _unharmed(*attributes: str) -> Judge:
    """Judge prompts that the training should leave alone."""
    return lambda scenes, images, _: ("", _share(_not(_keeps(*attributes)), scenes, images))


def _not_towards(pair: Pair, kept: Question) -> Judge:
    """Judge the other direction: a sample is a success unless it has the difference and the bare model's has not."""

    def judge(scenes: Sequence[Scene], images: Sequence[Image.Image], before: Sequence[Image.Image]) -> tuple[str, str]:
        fine = [not pair.has(after) or pair.has(bare) for after, bare in zip(images, before)]
        return f"{np.mean(fine):.0%}", _share(_not(kept), scenes, images)

    return judge


def _median_psnr(
    _: Sequence[Scene], images: Sequence[Image.Image], references: Sequence[Image.Image]
) -> tuple[str, str]:
    """Judge by the median PSNR of the samples to their references."""
    pairs = [[np.asarray(image, dtype=np.float64) for image in pair] for pair in zip(images, references)]
    errors = [np.mean((image - reference) ** 2) for image, reference in pairs]
    return f"{np.median(10 * np.log10(255**2 / np.asarray(errors))):.1f} dB", ""


def _share(question: Question, scenes: Sequence[Scene], images: Sequence[Image.Image]) -> str:
    return f"{np.mean([question(*sample) for sample in zip(scenes, images)]):.0%}"
