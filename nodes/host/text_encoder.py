"""A CLIP whose text encoder is trained."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Callable, Iterator, Sequence

import comfy.lora
import comfy.sd
import torch

from ...trainer import denoiser
from ...trainer.blocks import TEXT_ENCODER
from .lora import damage_told
from .tokens import tokenize

_PREFIXES = ("lora_te", "text_encoder")  # in the keys of kohya, and of the others

Clip = Any  # comfy.sd.CLIP, the CLIP of a graph


class TrainedTextEncoder:
    """A CLIP as the trainer's TextEncoder, with gradients. Works where its model is loaded for training."""

    def __init__(self, clip: Clip) -> None:
        self._clip = clip
        self._tokens: dict[str, Any] = {}

    def encode(self, captions: Sequence[str]) -> list[denoiser.Conditioning]:
        encoded = {caption: self._encode(caption) for caption in dict.fromkeys(captions)}
        return [encoded[caption] for caption in captions]

    def _encode(self, caption: str) -> denoiser.Conditioning:
        if caption not in self._tokens:
            self._tokens[caption] = tokenize(self._clip, caption)
        model = self._clip.cond_stage_model
        model.reset_clip_options()
        if self._clip.layer_idx is not None:
            model.set_clip_options({"layer": self._clip.layer_idx})
        model.set_clip_options({"execution_device": self._clip.patcher.load_device})
        tensor, pooled, *more = model.encode_token_weights(self._tokens[caption])
        return [tensor, {"pooled_output": pooled, **(more[0] if more else {})}]


def plain_clip(clip: Clip) -> Clip:
    """Return the CLIP without the host's dynamic memory, which takes weights off the device after each layer."""
    if not clip.patcher.is_dynamic():
        return clip
    plain = clip.clone(disable_dynamic=True)
    plain.cond_stage_model = plain.patcher.model
    return plain


@contextmanager
def copied_residuals(clip: Clip) -> Iterator[None]:
    """Let gradients through the text encoder until the block ends.

    Its layers add to their input in place after a norm has read it, and autograd wants what the norm has read: so each
    norm gets a copy.
    """
    norms = [module for module in clip.cond_stage_model.modules() if "Norm" in type(module).__name__]
    handles = [norm.register_forward_pre_hook(lambda _, inputs: (inputs[0].clone(), *inputs[1:])) for norm in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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
    with damage_told():
        return comfy.sd.load_lora_for_models(None, clip, text, 0.0, 1.0)[1] if text else clip.clone()
