"""Which layers of a model a LoRA may adapt, and the ids of the blocks they stand in."""

from __future__ import annotations

import re
from typing import Iterable

from torch import nn

from .config import NetworkConfig

TEXT_ENCODER = "BASE"  # its block id, and what the names of its layers begin with
_UNET_BLOCKS = {"input_blocks": "IN", "output_blocks": "OUT"}
# What models call the two attentions of a block. SD3.5's `x_block.attn2` is no cross-attention.
_ELEMENTS = {
    "Full": "",
    "CrossAttention": r"(?<!x_block)\.(attn2|cross_attn|cross_attention)(\.|$)",
    "SelfAttention": r"\.(attn1|self_attn|self_attention)(\.|$)",
}


def block_id(layer_name: str) -> str | None:
    """Return the id of the block that a layer stands in, or None outside the blocks.

    U-Nets: IN00..IN11, M00, OUT00..OUT11 for `input_blocks.N`, `middle_block`, `output_blocks.N`. Other models: the
    name of their list of blocks and the index, as in `double_blocks.07`. BASE for the text encoder.
    """
    if layer_name.startswith("middle_block."):
        return "M00"
    if layer_name.startswith(f"{TEXT_ENCODER}."):
        return TEXT_ENCODER
    match = re.match(r"(\w+)\.(\d+)\.", layer_name)
    if match is None:
        return None
    name, index = match[1], int(match[2])
    return f"{_UNET_BLOCKS[name]}{index:02d}" if name in _UNET_BLOCKS else f"{name}.{index:02d}"


def choose_layers(
    model: nn.Module, config: NetworkConfig, text_encoder: nn.Module | None = None
) -> dict[str, nn.Module]:
    """Return the layers to adapt by name, in the model's order; the text encoder's, if BASE is chosen, come last.

    Raises ValueError where nothing is left, or a block is named that the model has not.
    """
    adaptable = _adaptable_layers(model, config)
    blocks = choose_blocks(config.blocks, adaptable_blocks(model, config))
    of_element = [name for name in adaptable if re.search(_ELEMENTS[config.element], name)]
    if adaptable and not of_element:
        raise ValueError(
            f"This model has no {config.element} of its own: most models after SDXL have one attention for prompt and "
            "picture together. Set element to Full."
        )
    chosen = {name: adaptable[name] for name in of_element if block_id(name) in blocks}
    if TEXT_ENCODER in blocks:
        chosen |= _text_layers(text_encoder)
    if not chosen:
        raise ValueError(
            f"No layer of this model is left with blocks {config.blocks!r:.200} and element {config.element}: "
            "choose more blocks, or element Full."
        )
    return chosen


def adaptable_blocks(model: nn.Module, config: NetworkConfig) -> list[str]:
    """Return the ids of the blocks of a model that have layers for a network, in order."""
    return sorted({block_id(name) for name in _adaptable_layers(model, config)})


def choose_blocks(text: str, known: Iterable[str]) -> set[str]:
    """Read a list of blocks: ids, ranges and `all`, separated by commas; a leading minus takes away.

    "IN04-IN08, M00" is those; "all, -M00" and "-M00" are all but one; BASE, the text encoder, is never part of `all`.
    Raises ValueError for an id not in `known`.
    """
    known = list(known)
    parts = [part.strip() for part in text.split(",") if part.strip()] or ["all"]
    chosen = set(known) if parts[0].startswith("-") else set()
    for part in parts:
        if part.startswith("-"):
            chosen -= _named_blocks(part[1:].strip(), known)
        else:
            chosen |= _named_blocks(part, known)
    return chosen


def _named_blocks(part: str, known: list[str]) -> set[str]:
    if part.lower() == "all":
        return set(known)
    if part.upper() == TEXT_ENCODER:
        return {TEXT_ENCODER}
    ends = [end.strip() for end in part.split("-")]
    by_lower = {name.lower(): name for name in known}
    missing = [end for end in ends if end.lower() not in by_lower]
    if missing or len(ends) > 2:
        raise ValueError(
            f"There is no block {missing[0] if missing else part!r:.200} to train in this model: it has {', '.join(known)}, and {TEXT_ENCODER} for the text encoder."
        )
    first, last = (known.index(by_lower[end.lower()]) for end in (ends[0], ends[-1]))
    return set(known[first : last + 1])


def _adaptable_layers(model: nn.Module, config: NetworkConfig) -> dict[str, nn.Module]:
    return {name: layer for name, layer in model.named_modules() if _is_adaptable(name, layer, model, config)}


def _is_adaptable(name: str, layer: nn.Module, model: nn.Module, config: NetworkConfig) -> bool:
    if block_id(name) is None:
        return False
    if _is_linear(layer) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)):
        return _in_attention(name, model)
    if name.startswith("input_blocks.0."):  # the first convolution reads the latents; it is of no residual block
        return False
    return config.network_type != "lierla" and isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3)


def _is_linear(layer: nn.Module) -> bool:
    return hasattr(layer, "in_features") and hasattr(layer, "out_features")  # quantized layers are no nn.Linear


def _text_layers(text_encoder: nn.Module | None) -> dict[str, nn.Module]:
    if text_encoder is None:
        raise ValueError(
            f"blocks has {TEXT_ENCODER}, the text encoder, which Train LoRA alone trains: leave it out of LoRA Network's blocks."
        )
    return {
        f"{TEXT_ENCODER}.{name}": layer
        for name, layer in text_encoder.named_modules()
        if _is_linear(layer) and re.search(r"\.(layers|block)\.\d+\.", name)
    }


def _in_attention(name: str, model: nn.Module) -> bool:
    """Tell whether a layer stands in an attention block: in a U-Net those are the modules with `transformer_blocks`;
    other models are made of them."""
    if not hasattr(model, "input_blocks"):
        return True
    parts = name.split(".")
    return any(hasattr(model.get_submodule(".".join(parts[:i])), "transformer_blocks") for i in range(1, len(parts)))
