"""What the evaluation asks of samples: whether they show what a training was for, and what they lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from .shapes.classify import classify
from .shapes.scenes import Scene
from .shapes.shape_pairs import Pair

# (scenes, samples, samples of the bare model from the same noise or references) -> success and damage in words
Judge = Callable[[Sequence[Scene], Sequence[Image.Image], Sequence[Image.Image]], tuple[str, str]]
Question = Callable[[Scene, Image.Image], bool]


def keeps(*attributes: str) -> Question:
    """Ask whether a sample has these attributes of its scene."""

    def ask(scene: Scene, image: Image.Image) -> bool:
        seen = classify(image)
        return all(getattr(seen, name) == getattr(scene, name) for name in attributes)

    return ask


def shows(**wanted: str) -> Question:
    """Ask whether a sample shows these values."""
    return lambda _, image: all(getattr(classify(image), name) == value for name, value in wanted.items())


def all_of(*questions: Question) -> Question:
    return lambda scene, image: all(question(scene, image) for question in questions)


def negate(question: Question) -> Question:
    return lambda scene, image: not question(scene, image)


def shares(success: Question, kept: Question) -> Judge:
    """Judge by the share of samples that show the success, and of those that lose what they should keep."""
    return lambda scenes, images, _: (_share(success, scenes, images), _share(negate(kept), scenes, images))


def unharmed(*attributes: str) -> Judge:
    """Judge prompts that the training should leave alone."""
    return lambda scenes, images, _: ("", _share(negate(keeps(*attributes)), scenes, images))


def unmoved(attribute: str) -> Judge:
    """Judge prompts that the training should leave alone and that do not name the attribute: by the bare model's samples."""

    def judge(_: Sequence[Scene], images: Sequence[Image.Image], before: Sequence[Image.Image]) -> tuple[str, str]:
        seen = [[getattr(classify(image), attribute) for image in pair] for pair in zip(images, before)]
        return "", f"{np.mean([after != bare for after, bare in seen]):.0%}"

    return judge


def not_towards(pair: Pair, kept: Question) -> Judge:
    """Judge the other direction: a sample is a success unless it has the difference and the bare model's has not."""

    def judge(scenes: Sequence[Scene], images: Sequence[Image.Image], before: Sequence[Image.Image]) -> tuple[str, str]:
        fine = [not pair.has(after) or pair.has(bare) for after, bare in zip(images, before)]
        return f"{np.mean(fine):.0%}", _share(negate(kept), scenes, images)

    return judge


def median_psnr(
    _: Sequence[Scene], images: Sequence[Image.Image], references: Sequence[Image.Image]
) -> tuple[str, str]:
    """Judge by the median PSNR of the samples to their references."""
    pairs = [[np.asarray(image, dtype=np.float64) for image in pair] for pair in zip(images, references)]
    errors = [np.mean((image - reference) ** 2) for image, reference in pairs]
    return f"{np.median(10 * np.log10(255**2 / np.asarray(errors))):.1f} dB", ""


def _share(question: Question, scenes: Sequence[Scene], images: Sequence[Image.Image]) -> str:
    return f"{np.mean([question(*sample) for sample in zip(scenes, images)]):.0%}"
