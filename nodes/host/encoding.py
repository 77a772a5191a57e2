"""Encodes the prompts and images of a graph for the trainer."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Collection, Iterator
from typing import Any, Sequence, TypeVar

import comfy.utils
import torch
from torch.utils.weak import WeakTensorKeyDictionary

from ...trainer import denoiser
from ...trainer.dataset.image_decoding import to_unit_range
from .host_denoiser import Patcher
from .literal_captions import with_literal_captions
from .preparation import CAPTIONS, IMAGES, announce

# Parts of a CONDITIONING that only affect sampling: where and when a prompt is used, and what other networks add.
SAMPLING_ONLY = {
    "area", "strength", "mask", "mask_strength", "set_area_to_bounds", "control", "control_apply_to_uncond", "hooks",
    "start_percent", "end_percent", "gligen", "default", "timestep_start", "timestep_end",
}  # fmt: skip

# The latest encoded prompts and images, so that a training with other settings needs no encoder. They are freed with the
# CLIP and with the images, which the host keeps while the graph before the training does not change.
_prompts: weakref.WeakKeyDictionary[Any, dict[str, denoiser.Conditioning]] = weakref.WeakKeyDictionary()
_latents = WeakTensorKeyDictionary()  # pixels -> (a reference to the VAE, the latent as it makes it)
LONGEST_CAPTION = 10_000  # characters; text encoders truncate after a few hundred
SHOWN = 60  # characters of a caption in a message
NAMES = 10  # images in a message
PROMPTS_KEPT = 256  # from large text encoders they take megabytes each

Item = TypeVar("Item")

logger = logging.getLogger(__name__)


class HostTextEncoder:
    """Makes a CLIP a TextEncoder of the trainer; keeps the latest prompts, so that they are not encoded again."""

    def __init__(self, clip: Any) -> None:
        self._clip = clip

    def encode(self, captions: Sequence[str]) -> list[denoiser.Conditioning]:
        """Return the conditioning of each caption, without gradients."""
        known = _prompts.get(self._clip, {})
        encoded = {text: known.get(text) or self._encode(text) for text in _counted(dict.fromkeys(captions), CAPTIONS)}
        _prompts[self._clip] = dict(list({**encoded, **known}.items())[:PROMPTS_KEPT])
        return [encoded[text] for text in captions]

    def _encode(self, text: str) -> denoiser.Conditioning:
        with torch.inference_mode():
            encoded = self._clip.encode_from_tokens_scheduled(tokenize(self._clip, text))[0]
        if not is_finite(encoded):
            raise ValueError(
                f"The text encoder makes NaN or Inf of the caption {text[:SHOWN]!r}: its file may be damaged, or start "
                "ComfyUI with --fp32-text-enc."
            )
        return clone_for_autograd(encoded)


def tokenize(clip: Any, caption: str) -> Any:
    """Return a caption's tokens for the CLIP. Raises ValueError if it is too long.

    A caption is literal: brackets (escaped or not) do not weight words as in a prompt, and `embedding:name` is text.
    """
    if len(caption) > LONGEST_CAPTION:
        raise ValueError(
            f"The caption {caption[:SHOWN]!r} ... has {len(caption)} characters: shorten it to {LONGEST_CAPTION} or fewer."
        )
    return with_literal_captions(clip).tokenize(caption)


def read_conditioning(conditioning: list, name: str = "The conditioning") -> list[denoiser.Conditioning]:
    """Return the prompts in a CONDITIONING. Warns about parts that training ignores. Raises ValueError if it is empty.

    name: of the input, for messages
    """
    if not conditioning:
        raise ValueError(f"{name} has no prompt: connect a CLIP Text Encode.")
    bad = [str(number) for number, prompt in enumerate(conditioning, 1) if not is_finite(prompt)]
    if bad:
        raise ValueError(
            f"{name} has NaN or Inf in prompt {', '.join(bad)} of {len(conditioning)}: check the nodes and the "
            "text encoder that it comes from."
        )
    left_out = sorted(set().union(*(extra for _, extra in conditioning)) & SAMPLING_ONLY)
    if left_out:
        logger.warning("Training uses only the prompt of a conditioning and ignores: %s", ", ".join(left_out))
    return clone_for_autograd(
        [[tensor, {k: v for k, v in extra.items() if k not in SAMPLING_ONLY}] for tensor, extra in conditioning]
    )


def encode_images(
    vae: Any, patcher: Patcher, images: Sequence[torch.Tensor], names: Sequence[str] | None = None
) -> list[torch.Tensor]:
    """Encode images (H, W, 3), uint8 or float32 in [0, 1], to latents (C, h, w) in the model's scale, on its device.

    An image that this VAE has encoded before is not encoded again.

    names: one per image, for messages; by default "image 1 of 2" and so on

    Raises ValueError if a size is not a multiple of the VAE's, or naming the images that have NaN or Inf, or get it from
    the VAE.
    """
    multiple = vae.spacial_compression_encode()
    _check_multiple([(image.shape[1], image.shape[0]) for image in images], multiple)
    names = names or [f"image {number} of {len(images)}" for number in range(1, len(images) + 1)]
    _refuse_non_finite(images, names, "The pixels have NaN or Inf in {}: check the nodes that the images come from.")
    latents = [_encode_image(vae, image) for image in _counted(images, IMAGES)]
    _refuse_non_finite(
        latents, names, "The VAE makes NaN or Inf of {}: start ComfyUI with --fp32-vae, or use another VAE."
    )
    return _to_model_scale(patcher, latents)


def _counted(items: Collection[Item], stage: str) -> Iterator[Item]:
    """Yield items, and show on the node that runs how many of them are done. stage: what is done with them

    Raises ComfyUI's InterruptProcessingException if the user has cancelled.
    """
    bar = comfy.utils.ProgressBar(len(items))
    for done, item in enumerate(items):
        announce(stage, done, len(items))
        yield item
        bar.update(1)


def _refuse_non_finite(tensors: Sequence[torch.Tensor], names: Sequence[str], message: str) -> None:
    bad = [name for name, tensor in zip(names, tensors) if not is_finite(tensor)]
    if bad:
        raise ValueError(
            message.format(", ".join(bad[:NAMES]) + (f" and {len(bad) - NAMES} more" if bad[NAMES:] else ""))
        )


def is_finite(value: Any) -> bool:
    """Return whether the tensors in a value have no NaN or Inf."""
    if isinstance(value, torch.Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    if isinstance(value, dict):
        return all(map(is_finite, value.values()))
    return all(map(is_finite, value)) if isinstance(value, (list, tuple)) else True


def _encode_image(vae: Any, image: torch.Tensor) -> torch.Tensor:
    by, latent = _latents.get(image, (None, None))
    if by is None or by() is not vae:
        with torch.inference_mode():
            latent = vae.encode(to_unit_range(image)[None])[0]
        _latents[image] = weakref.ref(vae), latent
    return latent


def scale_latents(patcher: Patcher, latents: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Convert latents (C, h, w), as a VAE makes them, to the model's scale and device, float32.

    Raises ValueError if they are for another kind of model, or have NaN or Inf.
    """
    names = [f"latent {number} of {len(latents)}" for number in range(1, len(latents) + 1)]
    _refuse_non_finite(latents, names, "There is NaN or Inf in {}: check the nodes that the latents come from.")
    return _to_model_scale(patcher, latents)


def _to_model_scale(patcher: Patcher, latents: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    check_channels(latents[0].shape[0], patcher)
    with torch.inference_mode():
        scaled = [patcher.model.process_latent_in(latent[None])[0] for latent in latents]
    return clone_for_autograd([latent.to(patcher.load_device, torch.float32) for latent in scaled])


def check_channels(channels: int, patcher: Patcher) -> None:
    """Raise ValueError if latents with so many channels are not for this model."""
    expected = patcher.model.latent_format.latent_channels
    if channels != expected:
        raise ValueError(
            f"The VAE makes latents with {channels} channels and the model needs {expected}: connect the VAE that "
            "belongs to the model."
        )


def latent_shape(patcher: Patcher, width: int, height: int) -> tuple[int, ...]:
    """Return the shape of one image's latent, (C, h, w) or (C, 1, h, w). Raises ValueError if the size does not fit."""
    layout = patcher.model.latent_format
    multiple = layout.spacial_downscale_ratio
    _check_multiple([(width, height)], multiple)
    frames = [1] * (layout.latent_dimensions - 2)
    return layout.latent_channels, *frames, height // multiple, width // multiple


def _check_multiple(sizes: Sequence[tuple[int, int]], multiple: int) -> None:
    odd = sorted({f"{width}x{height}" for width, height in sizes if width % multiple or height % multiple})
    if odd:
        raise ValueError(
            f"Images of {', '.join(odd)} do not fit this model, whose latents have one value per {multiple}x{multiple} "
            f"pixels: use a width and height that are multiples of {multiple} (in Bucket Images also buckets_step)."
        )


def clone_for_autograd(value: Any) -> Any:
    """Copy every tensor in a value for autograd, which rejects inference tensors: ComfyUI runs nodes in inference mode."""
    if isinstance(value, torch.Tensor):
        with torch.inference_mode(False):
            return value.clone()
    if isinstance(value, dict):
        return {key: clone_for_autograd(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(clone_for_autograd(item) for item in value)
    return value
