"""Draws the caption of each example anew in each step: one of several, its tags in another order, or the empty prompt."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Sequence

from .denoiser import Conditioning

ORDERS = 8  # of the tags of a caption that are encoded before training, if the text encoder is not trained


@dataclass(frozen=True)
class CaptionConfig:
    """Sets how captions vary from step to step. Raises ValueError for invalid values.

    shuffle_tags: whether the tags of a caption, which commas separate, come in random order
    keep_tags: tags at the start of a caption that stay in place, 0 or more
    dropout: probability that an example is trained on the empty prompt, 0 to 1
    """

    shuffle_tags: bool = False
    keep_tags: int = 1
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not self.keep_tags >= 0:
            raise ValueError(f"keep_tags is {self.keep_tags}: set it to 0 or more.")
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"caption_dropout is {self.dropout}: set it to a value from 0 to 1.")


class CaptionDraw:
    """Draws captions with a random generator of its own, so that noise and timesteps are the same without it.

    choices: the captions of each example, encoded, or as text for a text encoder in training
    empty: the empty prompt, likewise; None if the config never drops a caption
    varied: examples, the first ones, that the config applies to; None means all
    """

    def __init__(
        self,
        choices: Sequence[Sequence[Conditioning]],
        empty: Conditioning | None,
        config: CaptionConfig,
        seed: int,
        varied: int | None = None,
    ) -> None:
        self._choices, self._empty, self._config = choices, empty, config
        self._varied = len(choices) if varied is None else varied
        self._rng = random.Random(seed)

    def draw(self, batch: Sequence[int]) -> list[Conditioning]:
        """Return a caption for each example of a batch, given by their indices."""
        return [self._draw(index) for index in batch]

    def _draw(self, index: int) -> Conditioning:
        if index >= self._varied:
            return self._rng.choice(self._choices[index])
        if self._rng.random() < self._config.dropout:
            return self._empty
        caption = self._rng.choice(self._choices[index])
        if self._config.shuffle_tags and isinstance(caption, str):
            return shuffle_tags(caption, self._config.keep_tags, self._rng)
        return caption


def shuffle_tags(caption: str, keep: int, rng: random.Random) -> str:
    """Return a caption with its tags in random order, all but the first `keep`."""
    tags = split_tags(caption)
    kept, rest = tags[:keep], tags[keep:]
    rng.shuffle(rest)
    return ", ".join([*kept, *rest])


def split_tags(caption: str) -> list[str]:
    """Return the tags of a caption, which commas separate."""
    return [tag.strip() for tag in caption.split(",") if tag.strip()]


def captions_to_encode(captions: Sequence[str], config: CaptionConfig, rng: random.Random) -> list[str]:
    """Return the captions of an image that a text encoder which is not trained encodes before training.

    Encoding takes too long for each step, so shuffled tags come in ORDERS orders per caption.
    """
    if not config.shuffle_tags:
        return list(captions)
    return [shuffle_tags(caption, config.keep_tags, rng) for caption in captions for _ in range(ORDERS)]
