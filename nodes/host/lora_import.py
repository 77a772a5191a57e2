"""Creates the LoRA to train: a new one, or one that continues a LoRA made by any program."""

from __future__ import annotations

from collections import defaultdict
from itertools import chain
from typing import Any

import comfy.lora
import comfy.lora_convert
import torch

from ...trainer.blocks import TEXT_ENCODER, block_id, choose_layers, is_adaptable
from ...trainer.config import NetworkConfig
from ...trainer.lora_forms import Part, join_parts
from ...trainer.network import LoRANetwork, with_layer_in_error
from .host_denoiser import Patcher
from .lora_keys import lora_key_of, lora_keys, report_damage
from .lora_kinds import SHOWN, check_trainable
from .lora_parts import is_product, layer_key, name_of, part_of
from .text_encoder import Clip
from .text_keys import text_key_of, text_keys
from .untrainable import check_family

Layers = dict[str, torch.nn.Module]


def sort_by_layer(patcher: Patcher, clip: Clip | None, lora: dict[str, torch.Tensor], layers: Layers) -> list[Part]:
    """Return the weights of a LoRA in a form that can be trained, in the order of the layers: one part for a layer or several.

    clip: None if the text encoder is not trained
    layers: those of the model, and of the text encoder if it is trained, by name

    Raises ValueError if the LoRA is damaged, for another model, or of a kind that cannot be trained on.
    """
    keys = lora_keys(patcher)
    if clip is not None:
        keys |= text_keys(clip)
    with report_damage():
        lora = comfy.lora_convert.convert_lora(dict(lora))
    check_trainable(lora)
    with report_damage():
        patches = comfy.lora.load_lora(lora, keys, log_missing=False)
    _check_match(lora, patches, clip)
    found = {layer_key(key) for key in lora}
    in_file = {target: key for key, target in keys.items() if key in found}
    parts: dict[str, list[Part]] = defaultdict(list)
    for key, patch in patches.items():
        name = _layer_name(name_of(key))
        if not is_product(patch) or not is_adaptable(layers.get(name)):
            raise ValueError(
                f"Training cannot start from this LoRA: what it has for {name} is not a LoRA, LoHa or LoKr of a linear layer "
                "or a 2D convolution. Put it on the model with Load LoRA and train a new one."
            )
        parts[name].append(with_layer_in_error(name, part_of, name, key, patch, in_file.get(key, "")))
    joined = (
        with_layer_in_error(name, join_parts, parts[name], layer.weight.shape)
        for name, layer in layers.items()
        if name in parts
    )
    return list(chain.from_iterable(joined))


def _check_match(lora: dict[str, torch.Tensor], patches: dict[Any, Any], clip: Clip | None) -> None:
    if not patches:
        raise ValueError(
            "Training cannot start from this LoRA: none of its layers match this model. Use a LoRA for this kind of model."
        )
    taken = set().union(*(patch.loaded_keys for patch in patches.values() if is_product(patch)))
    left = [key for key in lora if key not in taken and not key.endswith(".alpha")]
    if left:
        raise ValueError(
            f"Training cannot start from this LoRA: {left[0][:SHOWN]}"
            f"{f' and {len(left) - 1} more of its tensors do' if left[1:] else ' does'} not match any layer of this model"
            f". Use a LoRA for this kind of model{'' if clip else '; only Train LoRA trains the text encoder'}."
        )


def _layer_name(key: str) -> str:
    model = "diffusion_model."
    name = key.removesuffix(".weight")
    return name.removeprefix(model) if name.startswith(model) else f"{TEXT_ENCODER}.{name}"


def create_network(
    config: NetworkConfig | None,
    lora: dict[str, torch.Tensor] | None,
    seed: int,
    patcher: Patcher,
    clip: Clip | None,
    unet: torch.nn.Module,
) -> LoRANetwork:
    """Create the adapters for a loaded model, on its device, and for the text encoder if it is trained too.

    config: None means that of the LoRA
    lora: the one to start from, or None
    clip: None if the text encoder is not trained
    """
    keys = lora_key_of(patcher), text_key_of(clip) if clip else None
    key_of = lambda name: keys[block_id(name) == TEXT_ENCODER](name)  # noqa: E731
    text_encoder = clip.cond_stage_model if clip else None
    layers = dict(unet.named_modules())
    layers |= {f"{TEXT_ENCODER}.{name}": layer for name, layer in text_encoder.named_modules()} if clip else {}
    parts = None if lora is None else sort_by_layer(patcher, clip, lora, layers)
    if config is None:
        return LoRANetwork.from_parts(layers, parts, key_of).to(patcher.load_device)
    network = LoRANetwork.create(choose_layers(unet, config, text_encoder), config, key_of, seed)
    if parts is not None:
        network.load(parts)
    return network.to(patcher.load_device)


def check_network(patcher: Patcher, config: NetworkConfig | None, clip: Clip | None = None) -> bool:
    """Return whether the config trains the text encoder.

    Raises ValueError if the MODEL cannot be trained or the config does not fit it, before anything is encoded.
    """
    check_family(patcher.model)
    if config is None:
        return False
    layers = choose_layers(patcher.model.diffusion_model, config, clip and clip.cond_stage_model)
    return any(block_id(name) == TEXT_ENCODER for name in layers)
