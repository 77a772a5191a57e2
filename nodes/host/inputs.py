"""Prompts and pictures of a graph for the trainer."""

from __future__ import annotations

import logging
import weakref
from typing import Any, Sequence

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from ...trainer import denoiser
from ...trainer.picture import to_unit_range
from .denoiser import Patcher
from .tokens import tokenize

# Parts of a CONDITIONING that steer sampling: where and when a prompt acts, and what other networks add.
SAMPLING_ONLY = {
    "area", "strength", "mask", "mask_strength", "set_area_to_bounds", "control", "control_apply_to_uncond", "hooks",
    "start_percent", "end_percent", "gligen", "default", "timestep_start", "timestep_end",
}  # fmt: skip

# What was encoded last, so that a training queued again with another setting needs neither encoder. It goes with the
# pictures, and with the CLIP: the host keeps both while the graph before the training stays as it is.
_prompts: weakref.WeakKeyDictionary[Any, dict[str, denoiser.Conditioning]] = weakref.WeakKeyDictionary()
_latents = WeakTensorKeyDictionary()  # pixels -> (a reference to the VAE, the latent as it makes it)
PROMPTS_KEPT = 256  # those of large text encoders take megabytes each

logger = logging.getLogger(__name__)


class HostTextEncoder:
    """A CLIP as the trainer's TextEncoder. Encodes a caption once, and not again where it was among the last ones."""

    def __init__(self, clip: Any) -> None:
        self._clip = clip

    def encode(self, captions: Sequence[str]) -> list[denoiser.Conditioning]:
        known = _prompts.get(self._clip, {})
        encoded = {text: known.get(text) or self._encode(text) for text in dict.fromkeys(captions)}
        _prompts[self._clip] = dict(list(encoded.items())[:PROMPTS_KEPT])
        return [encoded[text] for text in captions]

    def _encode(self, text: str) -> denoiser.Conditioning:
        with torch.inference_mode():
            encoded = self._clip.encode_from_tokens_scheduled(tokenize(self._clip, text))[0]
        return normal_tensors(encoded)


def read_conditioning(conditioning: list) -> list[denoiser.Conditioning]:
    """Return the prompts in a CONDITIONING for the trainer. Warns of what training leaves out. Raises ValueError if empty."""
    if not conditioning:
        raise ValueError("A CONDITIONING without a prompt was given: wire a CLIP Text Encode.")
    left_out = sorted(set().union(*(extra for _, extra in conditioning)) & SAMPLING_ONLY)
    if left_out:
        logger.warning("Training reads the prompt alone and leaves out of a CONDITIONING: %s", ", ".join(left_out))
    return normal_tensors(
        [[tensor, {k: v for k, v in extra.items() if k not in SAMPLING_ONLY}] for tensor, extra in conditioning]
    )


def encode_images(vae: Any, patcher: Patcher, images: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Encode pictures (H, W, 3), uint8 or float32 in [0, 1], to latents (C, h, w) in the model's scale, on its device.

    A picture that the VAE has encoded before is not encoded again. Raises ValueError for a size that the VAE cannot take
    whole.
    """
    multiple = vae.spacial_compression_encode()
    _check_multiple([(image.shape[1], image.shape[0]) for image in images], multiple)
    return scale_latents(patcher, [_encode_image(vae, image) for image in images])


def _encode_image(vae: Any, image: torch.Tensor) -> torch.Tensor:
    by, latent = _latents.get(image, (None, None))
    if by is None or by() is not vae:
        with torch.inference_mode():
            latent = vae.encode(to_unit_range(image)[None])[0]
        _latents[image] = weakref.ref(vae), latent
    return latent


def scale_latents(patcher: Patcher, latents: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Bring latents (C, h, w), as a VAE makes them, to the model's scale and device.

    Raises ValueError for latents of another kind of model.
    """
    check_channels(latents[0].shape[0], patcher)
    with torch.inference_mode():
        scaled = [patcher.model.process_latent_in(latent[None])[0] for latent in latents]
    return normal_tensors([latent.to(patcher.load_device, torch.float32) for latent in scaled])


def check_channels(channels: int, patcher: Patcher) -> None:
    """Raise ValueError if a VAE's latents are none of the model's."""
    expected = patcher.model.latent_format.latent_channels
    if channels != expected:
        raise ValueError(
            f"The VAE makes latents of {channels} channels and the model takes {expected}: wire the VAE that "
            "belongs to the model."
        )


def latent_shape(patcher: Patcher, width: int, height: int) -> tuple[int, ...]:
    """Return the shape of one picture's latent, (C, h, w) or (C, 1, h, w). Raises ValueError where the size does not fit."""
    layout = patcher.model.latent_format
    multiple = layout.spacial_downscale_ratio
    _check_multiple([(width, height)], multiple)
    frames = [1] * (layout.latent_dimensions - 2)
    return layout.latent_channels, *frames, height // multiple, width // multiple


def _check_multiple(sizes: Sequence[tuple[int, int]], multiple: int) -> None:
    odd = sorted({f"{width}x{height}" for width, height in sizes if width % multiple or height % multiple})
    if odd:
        raise ValueError(
            f"Pictures of {', '.join(odd)} do not fit this model, whose latents stand for {multiple}x{multiple} pixels: "
            f"make width and height multiples of {multiple} (for a folder, the frame and buckets_step in Bucket Images)."
        )


def normal_tensors(value: Any) -> Any:
    """Copy every tensor in a value so that autograd takes it: the executor runs nodes in inference mode."""
    if isinstance(value, torch.Tensor):
        with torch.inference_mode(False):
            return value.clone()
    if isinstance(value, dict):
        return {key: normal_tensors(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(normal_tensors(item) for item in value)
    return value
