"""Tiny text encoders of the host's kinds with random weights, in files that the host's own loader reads."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import comfy.sd
import pytest
import sentencepiece
import torch
from comfy.sd import CLIPType, TEModel
from comfy.text_encoders import flux, qwen3vl, qwen_vl
from safetensors.torch import save_file
from tiny_models import _draw_weights
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaTokenizerFast

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class File:
    """A text encoder.

    kind: the host's name for what the file holds
    name: of the encoder in the host's CLIP
    sizes: of the tiny one, in the host's words
    taps: the layers whose outputs make the prompt, in place of the real model's
    tokenizer: returns what the file holds of its tokenizer
    marker: a weight that the host knows the kind by, and that a tiny encoder has not
    """

    kind: TEModel
    name: str
    sizes: dict[str, Any]
    taps: list[int] | None = None
    tokenizer: Callable[[], dict[str, torch.Tensor]] = dict
    marker: str = ""


@dataclass(frozen=True)
class Kind:
    """A CLIP of the host.

    clip_type: what a user chooses in Load CLIP
    family: the model that it is for, in tiny_families
    files: its text encoders
    """

    clip_type: CLIPType
    family: str
    files: list[File] = field(default_factory=list)


def _llama(kind: TEModel, name: str, width: int, **more: Any) -> File:
    options = {key: more.pop(key) for key in ("taps", "tokenizer") if key in more}
    sizes = {"hidden_size": width, "intermediate_size": 64, "num_hidden_layers": 3}
    return File(kind, name, {**sizes, "num_attention_heads": 2, "num_key_value_heads": 1, **more}, **options)


def _t5(name: str, width: int, tokenizer: Callable = dict, **more: Any) -> File:
    sizes = {"d_model": width, "d_ff": 64, "d_kv": 32, "num_heads": 2, "num_layers": 3, **more}
    marker = "encoder.block.23.layer.1.DenseReluDense.wi_1.weight"
    return File(TEModel.T5_XXL, name, sizes, tokenizer=tokenizer, marker=marker)


def _clip(kind: TEModel, name: str, width: int) -> File:
    sizes = {"hidden_size": width, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 3}
    return File(kind, name, sizes)


@cache
def _letters() -> dict[str, torch.Tensor]:
    """Return a tokenizer with a token for each letter, as Gemma's and T5's files hold theirs."""
    model, ids = io.BytesIO(), {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3}
    text = ["".join(chr(letter) for letter in range(33, 127))] * 3
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_writer=model, model_type="char", vocab_size=98, minloglevel=2, **ids
    )
    return {"spiece_model": torch.tensor(list(model.getvalue()), dtype=torch.uint8)}


def _bytes(*_: Any) -> LlamaTokenizerFast:
    """Return a tokenizer with a token for each byte, in place of what the host makes of a Mistral file's."""
    tokenizer = Tokenizer(BPE({letter: number + 2 for number, letter in enumerate(sorted(ByteLevel.alphabet()))}, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    return LlamaTokenizerFast(tokenizer_object=tokenizer)


_GEMMA = {"vocab_size": 128, "tokenizer": _letters}
KINDS = {
    "Z-Image": Kind(CLIPType.LUMINA2, "Z-Image", [_llama(TEModel.QWEN3_4B, "qwen3_4b", 24)]),
    "Qwen-Image": Kind(CLIPType.QWEN_IMAGE, "Qwen-Image", [_llama(TEModel.QWEN25_7B, "qwen25_7b", 24)]),
    "Lumina 2": Kind(CLIPType.LUMINA2, "Lumina2", [_llama(TEModel.GEMMA_2_2B, "gemma2_2b", 24, **_GEMMA)]),
    "Lumina 2, Gemma 3": Kind(CLIPType.LUMINA2, "Lumina2", [_llama(TEModel.GEMMA_3_4B, "gemma3_4b", 24, **_GEMMA)]),
    "Flux.2": Kind(
        CLIPType.FLUX2,
        "Flux2",
        [_llama(TEModel.MISTRAL3_24B, "mistral3_24b", 8, vocab_size=260, taps=[1, 2, 3])],
    ),
    "Flux.2 Klein": Kind(CLIPType.FLUX2, "Flux2", [_llama(TEModel.QWEN3_4B, "qwen3_4b", 8, taps=[1, 2, 3])]),
    "Anima": Kind(CLIPType.STABLE_DIFFUSION, "Anima", [_llama(TEModel.QWEN3_06B, "qwen3_06b", 32)]),
    "Krea 2": Kind(CLIPType.KREA2, "Krea 2", [_llama(TEModel.QWEN3VL_4B, "qwen3vl_4b", 12, taps=[1, 2])]),
    "Flux.1": Kind(CLIPType.FLUX, "Flux", [_clip(TEModel.CLIP_L, "clip_l", 32), _t5("t5xxl", 24)]),
    "Chroma": Kind(CLIPType.CHROMA, "Chroma", [_t5("t5xxl", 24)]),
    "Wan": Kind(CLIPType.WAN, "Wan", [_t5("umt5xxl", 4096, tokenizer=_letters, vocab_size=128)]),
}


def load_clip(name: str, folder: Path, width: int = 0, stored: Callable[[Weights], Weights] = dict) -> Any:
    """Return a CLIP of a kind as the executor loads it, from files in float32 that are gone again.

    width: of the layers, if not that which the family's model needs
    stored: returns the weights as they are in the file
    """
    kind, sources = _with_width(KINDS[name], width), []
    with _tiny_in_host(kind) as options, torch.inference_mode():
        for number, (file, shapes) in enumerate(zip(kind.files, _shapes(kind, options))):
            weights = stored(_draw_weights(shapes, f"{name} {file.name}"))
            weights |= {"number": torch.tensor(number), **file.tokenizer()}
            weights |= {file.marker: torch.zeros(10240, 1)} if file.marker else {}
            sources.append(folder / f"{file.name}.safetensors")
            save_file(weights, sources[-1])
        paths = [str(path) for path in sources]
        clip = comfy.sd.load_clip(paths, clip_type=kind.clip_type, model_options=options)
    for file, path in zip(kind.files, sources):
        path.unlink()
        if file.taps:
            encoder = getattr(clip.cond_stage_model, file.name)
            encoder.layer, encoder.options_default = file.taps, (file.taps, *encoder.options_default[1:])
    return clip


def _with_width(kind: Kind, width: int) -> Kind:
    files = [
        replace(file, sizes={**file.sizes, "d_model" if "d_model" in file.sizes else "hidden_size": width})
        for file in kind.files
    ]
    return replace(kind, files=files) if width else kind


def _shapes(kind: Kind, options: dict[str, Any]) -> list[dict[str, torch.Size]]:
    """Return the shapes of the weights in each file."""
    numbers = [{"number": torch.tensor(number)} for number in range(len(kind.files))]
    with pytest.MonkeyPatch.context() as patch:
        build = lambda target, model_options, **_: target.clip(device="meta", model_options=model_options)  # noqa: E731
        patch.setattr(comfy.sd, "CLIP", build)
        built = comfy.sd.load_text_encoder_state_dicts(numbers, clip_type=kind.clip_type, model_options=options)
    states = [getattr(built, file.name).transformer.state_dict() for file in kind.files]
    return [{key: tensor.shape for key, tensor in state.items()} for state in states]


@contextmanager
def _tiny_in_host(kind: Kind) -> Iterator[dict[str, Any]]:
    """Make the host take files of tiny encoders for what they are until the block ends; yield its options for them."""
    vision, tiny = qwen_vl.Qwen2VLVisionTransformer, {"hidden_size": 32, "intermediate_size": 32}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comfy.sd, "detect_te_model", lambda weights: kind.files[int(weights["number"])].kind)
        patch.setattr(flux, "load_mistral_tokenizer", lambda data: {})
        patch.setattr(flux.MistralTokenizerClass, "from_pretrained", _bytes)
        patch.setattr(
            qwen_vl,
            "Qwen2VLVisionTransformer",
            lambda **sizes: vision(**{**sizes, **tiny, "num_heads": 2, "num_layers": 1}),
        )
        for config in qwen3vl.QWEN3VL_VISION.values():
            for key, value in {**tiny, "depth": 1, "deepstack_visual_indexes": [0]}.items():
                patch.setitem(config, key, value)
        options = {f"{file.name}_model_config": file.sizes for file in kind.files} | {"dtype": torch.float32}
        yield options | {"model_config": file.sizes for file in kind.files if file.name == "clip_l"}  # of a long CLIP
