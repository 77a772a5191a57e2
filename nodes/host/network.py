"""The LoRA that a training makes for a MODEL: new, or of a LoRA to go on from."""

from __future__ import annotations

import torch

from ...trainer.blocks import TEXT_ENCODER, block_id, choose_layers
from ...trainer.config import NetworkConfig
from ...trainer.network import LoRANetwork
from .denoiser import Patcher
from .layer_weights import sort_by_layer
from .lora import lora_key_of
from .text_encoder import Clip, text_key_of


def create_network(
    config: NetworkConfig | None,
    lora: dict[str, torch.Tensor] | None,
    seed: int,
    patcher: Patcher,
    clip: Clip | None,
    unet: torch.nn.Module,
) -> LoRANetwork:
    """Create the adapters for a loaded model, and for a CLIP's text encoder where it is trained, too.

    config: None takes what the LoRA has
    lora: to start from
    """
    keys = lora_key_of(patcher), text_key_of(clip) if clip else None
    key_of = lambda name: keys[block_id(name) == TEXT_ENCODER](name)  # noqa: E731
    text_encoder = clip.cond_stage_model if clip else None
    weights = None if lora is None else sort_by_layer(patcher, clip, lora)
    if config is None:
        layers = dict(unet.named_modules())
        layers |= {f"{TEXT_ENCODER}.{name}": layer for name, layer in text_encoder.named_modules()} if clip else {}
        return LoRANetwork.like({name: layer for name, layer in layers.items() if name in weights}, weights, key_of)
    network = LoRANetwork.create(choose_layers(unet, config, text_encoder), config, key_of, seed)
    if weights is not None:
        network.load(weights)
    return network


def check_network(patcher: Patcher, config: NetworkConfig | None, clip: Clip | None = None) -> bool:
    """Tell whether the text encoder is trained, too.

    Raises ValueError if a network cannot be made for a MODEL, before anything is encoded for it.
    """
    if config is None:
        return False
    layers = choose_layers(patcher.model.diffusion_model, config, clip and clip.cond_stage_model)
    return any(block_id(name) == TEXT_ENCODER for name in layers)
