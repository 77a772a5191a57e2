"""The text encoders of tiny_text_encoders in transformers, with the same weights: what the host's are compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from pack.nodes.host.encoding import tokenize
from tiny_text_encoders import KINDS, File

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Encoder:
    """A text encoder of transformers.

    build: makes it from the weights in the host's file
    renamed: what its weights' names begin with in the host and not here
    states: the hidden states that make the prompt, side by side; -1 is after the last norm
    tokens: the name of its tokens in the host
    pad: the token that the host masks, if it masks
    is_zeroed: whether the host sets the prompt to zero at the padding
    """

    build: Callable[[Weights], torch.nn.Module]
    renamed: str = "model."
    states: tuple[int, ...] = (-1,)
    tokens: str = ""
    pad: int | None = None
    is_zeroed: bool = False


def _llama(name: str, theta: float = 10000.0, **more: Any) -> Callable[[Weights], torch.nn.Module]:
    def build(weights: Weights) -> torch.nn.Module:
        inner, width = weights["model.layers.0.self_attn.q_proj.weight"].shape
        size = {"hidden_size": width, "intermediate_size": len(weights["model.layers.0.mlp.gate_proj.weight"])}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": inner // 2}
        rope = {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}
        vocabulary = len(weights["model.embed_tokens.weight"])
        config = getattr(transformers, f"{name}Config")(
            **{**size, **heads, **rope, "num_hidden_layers": 3, "vocab_size": vocabulary, "pad_token_id": None, **more}
        )
        return getattr(transformers, f"{name}Model")._from_config(config, attn_implementation="eager")

    return build


def _t5(name: str) -> Callable[[Weights], torch.nn.Module]:
    def build(weights: Weights) -> torch.nn.Module:
        vocabulary, width = weights["shared.weight"].shape
        inner = len(weights["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"])
        size = {"d_model": width, "d_ff": inner, "d_kv": 32, "num_heads": 2, "num_layers": 3, "vocab_size": vocabulary}
        config = getattr(transformers, f"{name}Config")(**size, feed_forward_proj="gated-gelu", dropout_rate=0.0)
        return getattr(transformers, f"{name}EncoderModel")(config)

    return build


def _clip(weights: Weights) -> torch.nn.Module:
    size = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 3}
    return transformers.CLIPTextModel(transformers.CLIPTextConfig(**size, eos_token_id=49407, vocab_size=49408))


_GEMMA = {"layer_types": ["sliding_attention"] * 3}
_LOCAL = {kind: {"rope_type": "default", "rope_theta": 1e4} for kind in ("sliding_attention", "full_attention")}
ENCODERS = {
    "Z-Image": [Encoder(_llama("Qwen3", 1e6), states=(-2,))],
    "Qwen-Image": [Encoder(_llama("Qwen2", 1e6))],
    "Lumina 2": [Encoder(_llama("Gemma2", attn_logit_softcapping=None), states=(-2,))],
    "Lumina 2, Gemma 3": [Encoder(_llama("Gemma3Text", rope_parameters=_LOCAL, **_GEMMA), states=(-2,))],
    "Flux.2": [Encoder(_llama("Mistral", 1e9, rms_norm_eps=1e-5, sliding_window=None), states=(1, 2, 3))],
    "Flux.2 Klein": [Encoder(_llama("Qwen3", 1e6), states=(1, 2, 3), pad=151643)],
    "Anima": [Encoder(_llama("Qwen3", 1e6))],
    "Krea 2": [Encoder(_llama("Qwen3", 5e6), states=(1, 2))],
    "Flux.1": [Encoder(_clip, "text_model.", tokens="l"), Encoder(_t5("T5"), "")],
    "Chroma": [Encoder(_t5("T5"), "")],
    "Wan": [Encoder(_t5("UMT5"), "", pad=0, is_zeroed=True)],
}


def encode(name: str, clip: Any, caption: str, added: Weights) -> tuple[list[torch.Tensor], Weights]:
    """Return the prompt of a caption, and a pooled output if there is one, and the weights, which have gradients.

    added: what a LoRA adds to weights, by their names in the host's CLIP; the returned weights have the same names
    """
    outputs, weights, tokens = [], {}, tokenize(clip, caption)
    for file, encoder in zip(KINDS[name].files, ENCODERS[name]):
        model, names = load_encoder(file, encoder, clip, added)
        ids = torch.tensor([[token for token, *_ in tokens[encoder.tokens or file.name][0]]])
        mask = torch.ones_like(ids) if encoder.pad is None else (ids != encoder.pad).long()
        result = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        states = [*result.hidden_states[:-1], result.last_hidden_state]
        if file.name == "clip_l":
            pooled = result.pooler_output
        else:
            prompt = torch.cat([states[index] for index in encoder.states], -1)
            outputs = [prompt * mask[..., None] if encoder.is_zeroed else prompt]
        parameters = dict(model.named_parameters())
        weights |= {ours: parameters[theirs] for ours, theirs in names.items()}
    return [*outputs, *([pooled] if name == "Flux.1" else [])], weights


def load_encoder(file: File, encoder: Encoder, clip: Any, added: Weights) -> tuple[torch.nn.Module, dict[str, str]]:
    """Return an encoder with the weights of the host's, and the names of its weights by those in the host's CLIP."""
    ours = getattr(clip.cond_stage_model, file.name).transformer.state_dict()
    model, start = encoder.build(ours).eval(), f"{file.name}.transformer."
    names = {f"{start}{key}": key.removeprefix(encoder.renamed) for key in ours if key.startswith(encoder.renamed)}
    names = {key: theirs for key, theirs in names.items() if theirs in model.state_dict()}
    missing = model.state_dict().keys() - names.values()
    assert all("position_ids" in key or "embed_tokens" in key for key in missing), missing
    state = {theirs: ours[key.removeprefix(start)].float() + added.get(key, 0) for key, theirs in names.items()}
    model.load_state_dict(
        {**state, **({"encoder.embed_tokens.weight": state["shared.weight"]} if "shared.weight" in state else {})},
        strict=False,
    )
    return model, names
