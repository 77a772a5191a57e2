"""Training the text encoder of a CLIP."""

from __future__ import annotations

from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Callable, Iterator, Sequence

import comfy.sd
import torch

from ...trainer import denoiser
from ...trainer.blocks import TEXT_ENCODER, block_id
from ...trainer.in_place import OutOfPlace
from .encoding import tokenize
from .host_denoiser import Patcher
from .lora_keys import report_damage
from .reloading import is_plain, without_dynamic_memory
from .switches import switched

TOKENIZED = 1000  # captions whose tokens are kept; shuffled tags make ever new ones
_PREFIXES = ("lora_te", "text_encoder")  # of the keys in kohya's files, and in others

Clip = Any  # comfy.sd.CLIP, the CLIP of a graph


class TrainedTextEncoder:
    """Makes a CLIP a TextEncoder with gradients. Its model must be loaded for training.

    guidance: goes with each prompt to a guidance-distilled model; None for all others
    """

    def __init__(self, clip: Clip, guidance: float | None = None) -> None:
        self._clip, self._extra = clip, {} if guidance is None else {"guidance": guidance}
        self._tokenize = lru_cache(TOKENIZED)(lambda caption: tokenize(clip, caption))

    def encode(self, captions: Sequence[str]) -> list[denoiser.Conditioning]:
        """Return the conditioning of each caption, with gradients."""
        encoded = {caption: self._encode(caption) for caption in dict.fromkeys(captions)}
        return [encoded[caption] for caption in captions]

    def _encode(self, caption: str) -> denoiser.Conditioning:
        model = self._clip.cond_stage_model
        model.reset_clip_options()
        if self._clip.layer_idx is not None:
            model.set_clip_options({"layer": self._clip.layer_idx})
        device = self._clip.patcher.load_device
        model.set_clip_options({"execution_device": device})
        # Its layers modify in place the input of a norm, which autograd needs; and the host copies what they make to main memory,
        # which waits for the device.
        with OutOfPlace() as mode, switched("intermediate_device", lambda: device):
            tensor, pooled, *more = mode.current(model.encode_token_weights(self._tokenize(caption)))
        return [tensor, {"pooled_output": pooled, **(more[0] if more else {}), **self._extra}]


def trainable_clip(clip: Clip, patcher: Patcher) -> Clip:
    """Return the CLIP so that it can be trained: without ComfyUI's dynamic VRAM.

    patcher: of the MODEL that is trained with it

    Raises ValueError if the host would compute the two on different devices.
    """
    if clip.patcher.load_device != patcher.load_device:
        raise ValueError(
            f"The text encoder runs on {clip.patcher.load_device} and the model on {patcher.load_device}, so they cannot be "
            "trained together: set device of the node that loads the CLIP to default; if it is, start ComfyUI with --gpu-only, or "
            "train without the text encoder (no BASE in blocks of LoRA Network)."
        )
    if not clip.patcher.is_dynamic():
        return clip
    plain = clip.clone()
    plain.patcher = without_dynamic_memory(clip.patcher)
    plain.cond_stage_model = plain.patcher.model
    return plain


@contextmanager
def held_for_training(clip: Clip | None, layers: Sequence[str]) -> Iterator[Callable[[], None]]:
    """Hold the trained encoders of a loaded CLIP on its device in float32, in which the host computes them, until the block ends.

    Else each layer moves and converts its weight for each caption, and autograd keeps all of these until the backward pass: of
    SDXL's encoders 2.9 GB a caption. The conversion back is exact but for NaN, which weights have that are in no file and not
    used.

    clip: None if none is trained
    layers: names of the adapted ones, such as "BASE.clip_l.transformer..."

    Yields what holds them anew after the host has loaded the CLIP again.
    """
    held: list[tuple[torch.nn.Parameter, torch.dtype]] = []
    names = {name.split(".")[1] for name in layers if block_id(name) == TEXT_ENCODER}

    def hold() -> None:
        if clip is None:
            return
        clip.patcher.unpin_all_weights()  # what is freed must not stay pinned
        for name in names:
            encoder = getattr(clip.cond_stage_model, name).to(clip.patcher.load_device)
            held.extend(_convert_to_float32(encoder))

    try:
        hold()
        yield hold
    finally:
        for weight, dtype in held:
            weight.data = weight.data.to(dtype)


def _convert_to_float32(encoder: torch.nn.Module) -> Iterator[tuple[torch.nn.Parameter, torch.dtype]]:
    """Convert the weights of an encoder, and yield each with the type that it had."""
    for weight in encoder.parameters():
        if is_plain(weight.data) and weight.dtype != torch.float32:
            converted = weight.data.float()
            if converted.isfinite().all():
                yield weight, weight.dtype
                weight.data = converted


def has_text_encoder(lora: dict[str, torch.Tensor]) -> bool:
    """Return whether a LoRA has layers of a text encoder."""
    return any(key.startswith(_PREFIXES) for key in lora)


def clip_with_lora(clip: Clip, lora: dict[str, torch.Tensor]) -> Clip:
    """Return the CLIP with the LoRA's text encoder layers, if it has any, at strength 1."""
    text = {key: tensor for key, tensor in lora.items() if key.startswith(_PREFIXES)}
    with report_damage():
        return comfy.sd.load_lora_for_models(None, clip, text, 0.0, 1.0)[1] if text else clip.clone()
