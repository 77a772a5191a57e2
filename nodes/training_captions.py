"""The captions of a training: encoded before it, or in each step if the text encoder is trained; varied if that is asked for."""

from __future__ import annotations

import random
from typing import Any, Sequence

from comfy_api.latest import io

from ..trainer.caption_draw import CaptionConfig, CaptionDraw, captions_to_encode, split_tags
from ..trainer.dataset.image_captions import split_captions
from ..trainer.dataset.training_image import TrainingImage
from ..trainer.denoiser import Conditioning
from ..trainer.training_example import EncodedImage
from . import host


def caption_inputs() -> list[io.Input]:
    """Return the inputs on how captions vary from step to step."""
    return [
        io.Boolean.Input(
            "shuffle_tags",
            default=False,
            optional=True,
            advanced=True,
            tooltip="On: the tags of a caption, separated by commas, come in another order each time, so that none matters for "
            "its place. For captions of tags, not of sentences.",
        ),
        io.Int.Input(
            "keep_tags",
            default=1,
            min=0,
            max=1000,
            optional=True,
            advanced=True,
            tooltip="Tags at the start of a caption that shuffle_tags leaves in place. 1 keeps the trigger word in front.",
        ),
        io.Float.Input(
            "caption_dropout",
            default=0.0,
            min=0,
            max=1,
            step=0.01,
            optional=True,
            advanced=True,
            tooltip="Part of the images that are trained on the empty prompt instead of their caption, drawn in each step. 0.1 "
            "makes a style also appear without its words; 0 = off.",
        ),
    ]


class TrainingCaptions:
    """Makes conditioning of the captions of a training.

    clip: encodes them; None leaves them as text, for a text encoder in training
    guidance: goes with each prompt to a guidance-distilled model
    """

    def __init__(self, model: Any, clip: Any, guidance: float, config: CaptionConfig, seed: int) -> None:
        self._model, self._clip, self._guidance, self._config = model, clip, guidance, config
        self._seed, self._rng = seed, random.Random(seed)

    def fixed(self) -> TrainingCaptions:
        """Return the same for images whose captions do not vary."""
        return TrainingCaptions(self._model, self._clip, self._guidance, CaptionConfig(), self._seed)

    def check(self, images: Sequence[TrainingImage | EncodedImage]) -> None:
        """Raise ValueError if prompts are encoded already where captions as text are needed, or have no tags to shuffle."""
        if not any(isinstance(image, EncodedImage) for image in images):
            self._check_tags([text for image in images for text in split_captions(image.caption)])
            return
        if self._clip is None:
            raise ValueError(
                "The text encoder cannot be trained on prompts that are encoded already: remove BASE from blocks in LoRA "
                "Network, or connect images and captions through Bucket Images."
            )
        if self._config.shuffle_tags or self._config.dropout:
            raise ValueError(
                "shuffle_tags and caption_dropout need captions as text, and some prompts are encoded already: turn them "
                "off, or connect images and captions through Bucket Images."
            )

    def _check_tags(self, captions: Sequence[str]) -> None:
        keep = self._config.keep_tags
        if self._config.shuffle_tags and not any(len(split_tags(caption)) > keep + 1 for caption in captions):
            raise ValueError(
                f"shuffle_tags has nothing to shuffle, because no caption has two tags after the first {keep} that "
                "keep_tags leaves in place: separate tags by commas, lower keep_tags, or turn shuffle_tags off."
            )

    def encode(self, captions: Sequence[str]) -> list[list[Conditioning]]:
        """Return for each image what its captions become, encoded unless the text encoder is trained."""
        texts = [split_captions(caption) for caption in captions]
        if self._clip is None:
            return texts
        texts = [captions_to_encode(each, self._config, self._rng) for each in texts]
        encoded = iter(self._encode([text for each in texts for text in each]))
        return [[next(encoded) for _ in each] for each in texts]

    def encode_prompts(self, prompts: Sequence[str]) -> list[Conditioning]:
        """Return prompts that do not vary, encoded unless the text encoder is trained."""
        return list(prompts) if self._clip is None else self._encode(prompts)

    def with_guidance(self, prompts: Sequence[Conditioning]) -> list[list[Conditioning]]:
        """Return for each image its prompt, which is encoded already."""
        return [[prompt] for prompt in host.with_guidance(self._model, prompts, self._guidance)]

    def draw(self, choices: Sequence[Sequence[Conditioning]], varied: int) -> CaptionDraw | None:
        """Return what draws the captions of each batch, or None if they never vary.

        choices: of each image
        varied: images, the first ones, whose captions are shuffled and dropped
        """
        config = self._config
        if not (config.shuffle_tags or config.dropout or any(len(each) > 1 for each in choices)):
            return None
        empty = self.encode_prompts([""])[0] if config.dropout else None
        return CaptionDraw(choices, empty, config, self._seed, varied)

    def _encode(self, texts: Sequence[str]) -> list[Conditioning]:
        return host.with_guidance(self._model, host.HostTextEncoder(self._clip).encode(texts), self._guidance)
