"""Training the text encoder of a CLIP."""

from __future__ import annotations

from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Iterator, Sequence

import comfy.sd
import torch

from ...trainer import denoiser
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
        # Its layers modify in place the input of a norm, which autograd needs; and the host would copy what they make to main
        # memory, which waits for the device.
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
            "trained together: set device of the node that loads the CLIP to default and start ComfyUI without --lowvram and "
            "--novram, or train the LoRA without the text encoder."
        )
    if not clip.patcher.is_dynamic():
        return clip
    plain = clip.clone()
    plain.patcher = without_dynamic_memory(clip.patcher)
    plain.cond_stage_model = plain.patcher.model
    return plain


@contextmanager
def held_in_float32(model: torch.nn.Module) -> Iterator[None]:
    """Hold the weights of a text encoder in float32, in which the host computes it, until the block ends.

    Else each layer converts its weight for each caption, and autograd keeps all of these until the backward pass: of SDXL's
    encoders 2.9 GB a caption. The conversion back is exact but for NaN, which weights have that are in no file and not used.
    """
    held: list[tuple[torch.nn.Parameter, torch.dtype]] = []
    try:
        for weight in model.parameters():
            if is_plain(weight.data) and weight.dtype != torch.float32:
                converted = weight.data.float()
                if converted.isfinite().all():
                    held.append((weight, weight.dtype))
                    weight.data = converted
        yield
    finally:
        for weight, dtype in held:
            weight.data = weight.data.to(dtype)


def has_text_encoder(lora: dict[str, torch.Tensor]) -> bool:
    """Return whether a LoRA has layers of a text encoder."""
    return any(key.startswith(_PREFIXES) for key in lora)


def clip_with_lora(clip: Clip, lora: dict[str, torch.Tensor]) -> Clip:
    """Return the CLIP with the LoRA's text encoder layers, if it has any, at strength 1."""
    text = {key: tensor for key, tensor in lora.items() if key.startswith(_PREFIXES)}
    with report_damage():
        return comfy.sd.load_lora_for_models(None, clip, text, 0.0, 1.0)[1] if text else clip.clone()
