"""The adapters of one layer: what a LoRA adds to the layer's output."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn


class LoRALayer(nn.Module):
    """A low-rank addition to a linear layer or a convolution (Hu et al. 2021, arXiv 2106.09685).

    down: (rank, in) or, for a convolution, (rank, in, kernel, kernel), which strides and pads as the layer does
    up: (out, rank) or (out, rank, 1, 1); zero at the start, so that the LoRA starts as nothing
    The weights are float32 and are used in the type of the activations.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int, alpha: float, rng: torch.Generator) -> None:
        super().__init__()
        out_width, in_width, *kernel = layer.weight.shape
        device = layer.weight.device
        self.alpha, self.scale = alpha, alpha / rank
        self.down = nn.Parameter(_kaiming_uniform((rank, in_width, *kernel), rng).to(device))
        self.up = nn.Parameter(torch.zeros((out_width, rank, *[1] * len(kernel)), device=device))
        self._placement = (
            None if not kernel else {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
        )

    def forward(self, x: torch.Tensor, strength: float) -> torch.Tensor:
        """Return what to add to the layer's output for its input x."""
        down = self.down.to(x.dtype)
        up = (self.up * (self.scale * strength)).to(x.dtype)  # scaling the small matrix spares a pass over activations
        if self._placement is None:
            return F.linear(F.linear(x, down), up)
        return F.conv2d(F.conv2d(x, down, **self._placement), up)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the weights under their names in a kohya file, detached, in float32 on the CPU."""
        return {
            "lora_up.weight": self.up.detach().cpu().clone(),
            "lora_down.weight": self.down.detach().cpu().clone(),
            "alpha": torch.tensor(float(self.alpha)),
        }


def _kaiming_uniform(shape: tuple[int, ...], rng: torch.Generator) -> torch.Tensor:
    """Draw as torch starts a linear layer: uniform within 1 / sqrt(inputs). On the CPU, so every device starts alike."""
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    return torch.rand(shape, generator=rng) * (2 * bound) - bound
