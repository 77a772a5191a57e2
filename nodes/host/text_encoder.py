"""A CLIP whose text encoder is trained."""

from __future__ import annotations

from typing import Any, Callable, Sequence

import comfy.lora
import comfy.sd
import torch

from ...trainer import denoiser
from ...trainer.blocks import TEXT_ENCODER

_PREFIXES = ("lora_te", "text_encoder")  # of kohya's keys, and of the others'

Clip = Any  # comfy.sd.CLIP, the CLIP of a graph


class TrainedTextEncoder:
    """A CLIP as the trainer's TextEncoder, with gradients. Works where its model is loaded for training."""

    def __init__(self, clip: Clip) -> None:
        self._clip = clip
        self._tokens: dict[str, Any] = {}

    def encode(self, captions: Sequence[str]) -> list[denoiser.Conditioning]:
        return [self._encode(caption) for caption in captions]

    def _encode(self, caption: str) -> denoiser.Conditioning:
        if caption not in self._tokens:
            self._tokens[caption] = self._clip.tokenize(caption)
        model = self._clip.cond_stage_model
        model.reset_clip_options()
        if self._clip.layer_idx is not None:
            model.set_clip_options({"layer": self._clip.layer_idx})
        model.set_clip_options({"execution_device": self._clip.patcher.load_device})
        tensor, pooled, *more = model.encode_token_weights(self._tokens[caption])
        return [tensor, {"pooled_output": pooled, **(more[0] if more else {})}]


def text_key_of(clip: Clip) -> Callable[[str], str]:
    """Return the function that names a layer of the text encoder as kohya's files do."""
    model = clip.cond_stage_model
    several = sum(hasattr(model, name) for name in ("clip_l", "clip_g")) > 1
    names: dict[str, str] = {}
    for key, weight in comfy.lora.model_lora_keys_clip(model, {}).items():
        # One encoder is lora_te_, two are lora_te1_ and lora_te2_; what has no such name takes the host's.
        if key.startswith("lora_te") and key.startswith("lora_te_") != several:
            names[weight] = key
        elif key.startswith("text_encoders."):
            names.setdefault(weight, key)
    return lambda layer: names[f"{layer.removeprefix(f'{TEXT_ENCODER}.')}.weight"]


def has_text_encoder(lora: dict[str, torch.Tensor]) -> bool:
    """Tell whether a LoRA has layers of a text encoder."""
    return any(key.startswith(_PREFIXES) for key in lora)


def clip_with_lora(clip: Clip, lora: dict[str, torch.Tensor]) -> Clip:
    """Return the CLIP with the LoRA's text encoder layers, if it has any, at strength 1."""
    text = {key: tensor for key, tensor in lora.items() if key.startswith(_PREFIXES)}
    return comfy.sd.load_lora_for_models(None, clip, text, 0.0, 1.0)[1] if text else clip.clone()
