"""Which layers of a model a LoRA can adapt, and the ids of the blocks they are in."""

from __future__ import annotations

import re
from typing import Iterable

from torch import nn

from .config import NetworkConfig

TEXT_ENCODER = "BASE"  # its block id, and the prefix of its layer names
_UNET_BLOCKS = {"input_blocks": "IN", "output_blocks": "OUT"}
# The names that models use for self- and cross-attention. SD3.5's `x_block.attn2` is not a cross-attention.
_ELEMENTS = {
    "Full": "",
    "CrossAttention": r"(?<!x_block)\.(attn2|cross_attn|cross_attention)(\.|$)",
    "SelfAttention": r"\.(attn1|self_attn|self_attention)(\.|$)",
}
# Parts of a CLIP that no caption reaches, as they read images or sounds, or only words in quotes, as byT5 does.
_NO_CAPTION = re.compile(r"(^|\.)(visual|vision_\w+|audio_\w+|byt5_\w+)\.")


def block_id(layer_name: str) -> str | None:
    """Return the id of the block that a layer is in, or None if it is in none.

    U-Nets: IN00..IN11, M00, OUT00..OUT11 for `input_blocks.N`, `middle_block`, `output_blocks.N`. Other models: the
    name of the module list and the index, such as `double_blocks.07`. The text encoder is BASE.
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
    """Return the layers to adapt by name, in the model's order; with BASE, those of the text encoder come last.

    Raises ValueError if no layer is left, or if the model does not have a block that is named.
    """
    adaptable = _adaptable_layers(model, config)
    blocks = choose_blocks(config.blocks, adaptable_blocks(model, config))
    of_element = [name for name in adaptable if re.search(_ELEMENTS[config.element], name)]
    if adaptable and not of_element:
        raise ValueError(
            f"This model has no separate {config.element}: most models after SDXL use one attention for both prompt and "
            "image. Set element to Full."
        )
    chosen = {name: adaptable[name] for name in of_element if block_id(name) in blocks}
    if TEXT_ENCODER in blocks:
        chosen |= _text_layers(text_encoder)
    if not chosen:
        raise ValueError(
            f"No layer of this model matches blocks {config.blocks!r:.200} and element {config.element}: "
            "choose more blocks, or set element to Full."
        )
    return chosen


def adaptable_blocks(model: nn.Module, config: NetworkConfig) -> list[str]:
    """Return the ids of a model's blocks that have layers to adapt, in order."""
    return sorted({block_id(name) for name in _adaptable_layers(model, config)})


def choose_blocks(text: str, known: Iterable[str]) -> set[str]:
    """Parse a list of blocks: ids, ranges and `all`, separated by commas; a leading minus excludes.

    "IN04-IN08, M00" selects six blocks; "all, -M00" and "-M00" select all but one. `all` never includes BASE, the text
    encoder. Raises ValueError for an id not in `known`.
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


def is_adaptable(layer: nn.Module | None) -> bool:
    """Return whether an adapter can be put on a layer: a linear one, or a 2D convolution without groups."""
    return _is_linear(layer) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)


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
            f"There is no block {missing[0] if missing else part!r:.200} to train in this model. It has "
            f"{', '.join(known)}, and {TEXT_ENCODER} for the text encoder."
        )
    first, last = (known.index(by_lower[end.lower()]) for end in (ends[0], ends[-1]))
    return set(known[first : last + 1])


def _adaptable_layers(model: nn.Module, config: NetworkConfig) -> dict[str, nn.Module]:
    return {name: layer for name, layer in model.named_modules() if _is_chosen(name, layer, model, config)}


def _is_chosen(name: str, layer: nn.Module, model: nn.Module, config: NetworkConfig) -> bool:
    if block_id(name) is None or not _is_in_block(name, model):
        return False
    if _is_linear(layer) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)):
        return _in_attention(name, model)
    if name.startswith(
        "input_blocks.0."
    ):  # the first convolution reads the latents and is not part of a residual block
        return False
    return config.network_type != "lierla" and isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3)


def _is_in_block(name: str, model: nn.Module) -> bool:
    """Return whether a layer is in a list of blocks: an embedder may be a sequence, whose parts have numbers, too."""
    blocks = name.split(".")[0]
    if blocks == "ref_image_refiner":  # OmniGen2 and Boogu run it on reference images, which there are none of
        return False
    return blocks == "middle_block" or isinstance(getattr(model, blocks), nn.ModuleList)


def _is_linear(layer: nn.Module) -> bool:
    """Return whether a layer is a linear one, quantized or not, and no stack of experts."""
    return hasattr(layer, "in_features") and hasattr(layer, "out_features") and not hasattr(layer, "num_experts")


def _text_layers(text_encoder: nn.Module | None) -> dict[str, nn.Module]:
    if text_encoder is None:
        raise ValueError(
            f"Only Train LoRA can train {TEXT_ENCODER}, the text encoder: remove it from blocks in LoRA Network."
        )
    layers = {
        f"{TEXT_ENCODER}.{name}": layer
        for name, layer in text_encoder.named_modules()
        if _is_linear(layer) and re.search(r"\.(layers?|block)\.\d+\.", name) and not _NO_CAPTION.search(name)
    }
    if not layers:
        raise ValueError(
            f"This CLIP has no layers to train, as it only splits captions into tokens: remove {TEXT_ENCODER} from blocks in "
            "LoRA Network."
        )
    return layers


def _in_attention(name: str, model: nn.Module) -> bool:
    """Return whether a layer is in an attention block: in a U-Net, a module with `transformer_blocks`; elsewhere always."""
    if not hasattr(model, "input_blocks"):
        return True
    parts = name.split(".")
    return any(hasattr(model.get_submodule(".".join(parts[:i])), "transformer_blocks") for i in range(1, len(parts)))
