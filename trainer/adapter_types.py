"""The types of adapters, by the name of the setting and by the weights in a LoRA file."""

from __future__ import annotations

import torch
from torch import nn

from .adapter_base import Adapter, describe_shapes
from .adapters import LoHaLayer, LoKrLayer, LoRALayer
from .config import NetworkConfig
from .dora import DoRALayer

_BY_NAME: dict[str, type[Adapter]] = {
    "lierla": LoRALayer,
    "c3lier": LoRALayer,
    "loha": LoHaLayer,
    "lokr": LoKrLayer,
}


def create_adapter(layer: nn.Linear | nn.Conv2d, config: NetworkConfig, rng: torch.Generator) -> Adapter:
    """Return a new adapter for a layer, initialized with the generator."""
    kind = DoRALayer if config.dora else _BY_NAME[config.network_type]
    is_convolution = isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1)
    rank = (config.conv_rank or config.rank) if is_convolution else config.rank
    return kind(layer, rank, config.alpha_in_file(is_convolution), rng)


def adapter_from_weights(layer: nn.Linear | nn.Conv2d, tensors: dict[str, torch.Tensor]) -> Adapter:
    """Return an adapter with the type, rank, alpha and weights that a LoRA file has for a layer; see `Adapter.like`.

    Raises ValueError if the weights are not those of a LoRA, DoRA, LoHa or LoKr.
    """
    kind = adapter_type_of(tensors)
    if kind is None:
        raise ValueError(f"has {describe_shapes(tensors)}, which is not a LoRA, LoHa or LoKr")
    return kind.like(layer, tensors)


def adapter_type_of(tensors: dict[str, torch.Tensor]) -> type[Adapter] | None:
    """Return the type of the weights that a LoRA file has for a layer, or None if it is another."""
    if "dora_scale" in tensors:
        return DoRALayer
    return next((kind for kind in _BY_NAME.values() if set(tensors) & set(kind.names.values())), None)
