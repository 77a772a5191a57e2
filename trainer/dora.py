"""DoRA: a LoRA that also trains how strong the weights of each input are (Liu et al. 2024, arXiv 2402.09353)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .adapter_base import weight_in_use
from .adapters import LoRALayer

SMALLEST = 1e-12  # square of a norm; an input whose weights are all zero has no direction


class DoRALayer(LoRALayer):
    """Replaces the layer's weight W by magnitude * (W + up @ down) / norm(W + up @ down).

    magnitude: (1, in) or (1, in, 1, 1); the norm is over all weights of an input. Programs agree on this form. In the other
        one, (out, 1), ComfyUI divides by the norm of W, and LyCORIS by that of W + up @ down.

    At a strength s the weight is W + s * (W' - W), as in ComfyUI, so a negative strength is the exact opposite.
    """

    names = {**LoRALayer.names, "magnitude": "dora_scale"}

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int, alpha: float, rng: torch.Generator) -> None:
        super().__init__(layer, rank, alpha, rng)
        self.register_buffer("base_square", _plain(weight_in_use(layer)).square().sum((0, 2)).cpu())  # (in,)
        magnitude = self.base_square.clamp(min=SMALLEST).sqrt()
        self.magnitude = nn.Parameter(magnitude.view(1, -1, *[1] * (layer.weight.ndim - 2)))
        self._scaled: torch.Tensor | None = None  # the input of the product, from `scale_input` to `forward`

    def scale_input(self, layer: nn.Module, x: torch.Tensor, strength: float) -> torch.Tensor:
        """Return what the layer takes as its input instead of x, (..., in) or (B, in, H, W)."""
        gain = self._gain(layer).view(-1, *[1] * (len(self.shape) - 2))
        scaled = (x * gain).to(x.dtype)
        if strength == 1:
            return scaled
        self._scaled = scaled
        return (x * (1 + strength * (gain - 1))).to(x.dtype)

    def forward(self, output: torch.Tensor, x: torch.Tensor, strength: float) -> torch.Tensor:
        """Return the layer's output, (..., out) or (B, out, H, W), with the addition. x: as `scale_input` has returned it"""
        x, self._scaled = x if self._scaled is None else self._scaled, None
        return super().forward(output, x, strength)

    def _gain(self, layer: nn.Module) -> torch.Tensor:
        """Return magnitude / norm(W + up @ down), (in,).

        The square of the sum is expanded, so that no matrix of the size of W has to be made or kept for the backward pass.
        """
        up, down = self.up.flatten(1), (self.down * self.scale).reshape(self.rank, self.shape[1], -1)
        mixed = (_Project.apply(layer, up) * down).sum((0, 2))
        added = (torch.einsum("rs,sik->rik", up.T @ up, down) * down).sum((0, 2))
        square = self.base_square + 2 * mixed + added
        return self.magnitude.flatten() / square.clamp(min=SMALLEST).sqrt()


class _Project(torch.autograd.Function):
    """Computes up.T @ W, (rank, in, kernel) in float32, and keeps nothing of W for the backward pass but the layer."""

    @staticmethod
    def forward(ctx: Any, layer: nn.Module, up: torch.Tensor) -> torch.Tensor:
        ctx.layer = layer
        return torch.einsum("oik,or->rik", _plain(weight_in_use(layer, up.device)), up)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, torch.Tensor]:
        return None, torch.einsum("oik,rik->or", _plain(weight_in_use(ctx.layer, gradient.device)), gradient)


def _plain(weight: torch.Tensor) -> torch.Tensor:
    """Return a weight, which may be quantized, as (out, in, kernel) float32."""
    return weight.detach().dequantize().float().reshape(*weight.shape[:2], -1)
