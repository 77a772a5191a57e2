"""What all adapters share: the layer's shape, the convolution's arguments, the weights in files."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class Adapter(nn.Module):
    """Holds what all adapters share: the layer's shape, the convolution's arguments, loading and saving."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int, alpha: float) -> None:
        super().__init__()
        self.shape = layer.weight.shape  # (out, in) or (out, in, kernel, kernel)
        self.rank, self.alpha, self.scale = rank, alpha, alpha / rank
        self.conv_arguments: dict[str, Any] | None = None  # None for a linear layer
        if layer.weight.ndim > 2:
            self.conv_arguments = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the weights by their names in a LoRA file: detached float32 copies on the CPU."""
        weights = {self.names[name]: parameter.detach().cpu().clone() for name, parameter in self.named_parameters()}
        return {**weights, "alpha": torch.tensor(float(self.alpha))}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Load weights as `tensors` returns them; those of another alpha are scaled, so that their effect stays the same.

        Raises ValueError if names or sizes do not match.
        """
        expected = {self.names[name]: parameter for name, parameter in self.named_parameters()}
        given = {name: tensor for name, tensor in tensors.items() if name != "alpha"}
        if sizes_of(expected) != sizes_of(given):
            raise ValueError(f"has {describe_shapes(given)} instead of {describe_shapes(expected)}")
        with torch.no_grad():
            for name, parameter in expected.items():
                parameter.copy_(given[name].reshape(parameter.shape))  # a 1x1 convolution may be stored as a matrix
            outer = next(parameter for name, parameter in self.named_parameters() if name in self.zero_at_start)
            outer.mul_(self.scale_of(tensors) / self.scale)

    @classmethod
    def like(cls, layer: nn.Linear | nn.Conv2d, tensors: dict[str, torch.Tensor]) -> Adapter:
        """Return an adapter with the rank, alpha and weights that a LoRA file has for a layer.

        No alpha means the rank. An alpha of 0 or less, which no training has, goes into the weights.
        """
        rank = cls.rank_of(tensors)
        alpha = float(tensors.get("alpha", rank))
        adapter = cls(
            layer, rank, alpha if alpha > 0 else rank, torch.Generator().manual_seed(0), **cls.form_of(tensors)
        )
        adapter.load(tensors)
        return adapter

    @staticmethod
    def form_of(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        """Return what the constructor needs besides the rank for weights of the same shapes as those of a LoRA file."""
        return {}

    @classmethod
    def scale_of(cls, tensors: dict[str, torch.Tensor]) -> float:
        """Return what the weights that a LoRA file has for a layer are scaled by."""
        rank = cls.rank_of(tensors)
        return float(tensors.get("alpha", rank)) / rank

    def has_learned(self) -> bool:
        """Return whether the weights that are initialized to zero have changed."""
        return any(parameter.any().item() for name, parameter in self.named_parameters() if name in self.zero_at_start)

    def apply_weight(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Apply a weight (out, in) or (out, in, kernel, kernel) to the layer's input x, as the layer applies its own."""
        if self.conv_arguments is None:
            return F.linear(x, weight)
        return F.conv2d(x, weight, **self.conv_arguments)


def weight_in_use(layer: nn.Module, device: torch.device | None = None) -> torch.Tensor:
    """Return the weight (out, in, ...) that a layer computes with.

    device: where it is wanted, by default where it is

    A host that keeps weights outside the device puts its patches, such as a LoRA on the model, on a weight only when the layer
    computes: by the functions in `weight_function`.
    """
    functions = getattr(layer, "weight_function", None)
    if not functions:
        return layer.weight if device is None else layer.weight.to(device)
    weight = layer.weight.detach().to(device or layer.weight.device)
    weight = weight.dequantize().to(torch.float32, copy=True)  # the functions write in place
    for function in functions:
        weight = function(weight)
    return weight


def sizes_of(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[int, int]]:
    """Return the rows and the size of each tensor: a convolution's kernel may be stored flat."""
    return {name: (len(tensor), tensor.numel()) for name, tensor in tensors.items()}


def describe_shapes(tensors: dict[str, torch.Tensor]) -> str:
    """Return the names and shapes of tensors as text: "lora_up.weight 320x4"."""
    return ", ".join(f"{name} {'x'.join(map(str, tensor.shape))}" for name, tensor in tensors.items())


def kaiming_uniform(shape: tuple[int, ...], rng: torch.Generator) -> torch.Tensor:
    """Draw weights as torch initializes a linear layer: uniform within 1 / sqrt(inputs)."""
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    return torch.rand(shape, generator=rng) * (2 * bound) - bound
