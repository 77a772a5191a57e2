"""Adapters: what a LoRA adds to the output of one layer.

Adapter weights are float32, initialized on the CPU with a generator `rng`, and add nothing at first. What an adapter adds is
scaled by alpha / rank. `forward(output, x, strength)` takes the layer's input x, (..., in) or (B, in, H, W), and its output,
(..., out) or (B, out, H, W), and returns the output with the addition. It computes in the dtype of the output, because x may
be a text embedding in a smaller one.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .adapter_base import Adapter, kaiming_uniform

LARGEST_RANK = 1024  # that somebody asks for


class LoRALayer(Adapter):
    """Adds the product of two low-rank matrices (LoRA; Hu et al. 2021, arXiv 2106.09685).

    down: (rank, in), or for a convolution (rank, in, kernel, kernel), with the stride and padding of the layer
    up: (out, rank) or (out, rank, 1, 1)
    """

    names = {"up": "lora_up.weight", "down": "lora_down.weight"}  # kohya's
    zero_at_start = ("up",)

    @staticmethod
    def rank_of(tensors: dict[str, torch.Tensor]) -> int:
        """Return the rank of the weights that a LoRA file has for a layer."""
        return len(tensors["lora_down.weight"])

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int, alpha: float, rng: torch.Generator) -> None:
        super().__init__(layer, rank, alpha)
        out_width, in_width, *kernel = self.shape
        self.up = nn.Parameter(torch.zeros((out_width, rank, *[1] * len(kernel))))
        self.down = nn.Parameter(kaiming_uniform((rank, in_width, *kernel), rng))

    @torch.no_grad()
    def start_at(self, up: torch.Tensor, down: torch.Tensor) -> None:
        """Make the adapter of a linear layer add up (out, k) @ down (k, in), k up to the rank.

        The rest of the rank stays as initialized, so that it can still learn.
        """
        self.up[:, : len(down)] = up / self.scale**0.5
        self.down[: len(down)] = down / self.scale**0.5

    def forward(self, output: torch.Tensor, x: torch.Tensor, strength: float) -> torch.Tensor:
        """Return the layer's output, (..., out) or (B, out, H, W), with the addition; see the module."""
        dtype = output.dtype
        up = (self.up * (self.scale * strength)).to(dtype)  # scaling the small matrix saves a pass over the activations
        hidden = self.apply_weight(x.to(dtype), self.down.to(dtype))
        if self.conv_arguments is None:
            # addmm adds while it multiplies, which saves a pass over the output.
            return torch.addmm(output.flatten(0, -2), hidden.flatten(0, -2), up.T).view(output.shape)
        return output + F.conv2d(hidden, up)


class LoHaLayer(Adapter):
    """Adds the Hadamard product of two low-rank matrices (LoHa; Hyeon-Woo et al. 2022, arXiv 2108.06098), as LyCORIS does.

    w1_a, w2_a: (out, rank)
    w1_b, w2_b: (rank, in * kernel * kernel)
    """

    names = {name: f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b")}
    zero_at_start = ("w2_a",)

    @staticmethod
    def rank_of(tensors: dict[str, torch.Tensor]) -> int:
        """Return the rank of the weights that a LoRA file has for a layer."""
        return len(tensors["hada_w1_b"])

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int, alpha: float, rng: torch.Generator) -> None:
        super().__init__(layer, rank, alpha)
        out_width, in_width = self.shape[0], math.prod(self.shape[1:])
        self.w1_a = nn.Parameter(0.1 * torch.randn((out_width, rank), generator=rng))
        self.w1_b = nn.Parameter(torch.randn((rank, in_width), generator=rng))
        self.w2_a = nn.Parameter(torch.zeros((out_width, rank)))
        self.w2_b = nn.Parameter(torch.randn((rank, in_width), generator=rng))

    def forward(self, output: torch.Tensor, x: torch.Tensor, strength: float) -> torch.Tensor:
        """Return the layer's output, (..., out) or (B, out, H, W), with the addition; see the module."""
        w1_a = self.w1_a * (self.scale * strength)
        weight = _HadamardProduct.apply(w1_a, self.w1_b, self.w2_a, self.w2_b)
        return output + self.apply_weight(x.to(output.dtype), weight.view(self.shape).to(output.dtype))


class LoKrLayer(Adapter):
    """Adds the Kronecker product of a small matrix and a low-rank one (LoKr; Yeh et al. 2023, arXiv 2309.14859), as LyCORIS does.

    w1: (out_l, in_m), or w1_a (out_l, rank) and w1_b (rank, in_m)
    w2_a, w2_b: (out_k, rank), (rank, in_n * kernel * kernel)
    w2: (out_k, in_n, kernel, kernel), instead of w2_a and w2_b if they would not be smaller; alpha then has no effect,
        unless w1 has a rank

    out = out_l * out_k and in = in_m * in_n, each pair of factors as close together as possible, or as in `shapes`.
    """

    names = {name: f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b")}
    zero_at_start = ("w2", "w2_b")

    @staticmethod
    def rank_of(tensors: dict[str, torch.Tensor]) -> int:
        """Return the rank of the weights that a LoRA file has for a layer.

        Full matrices have none: it is the one that was asked for, which LyCORIS stores as their alpha. ai-toolkit asks for
        9999999999, which in fp16 is infinite.
        """
        ranked = next((tensors[name] for name in ("lokr_w2_b", "lokr_w1_b") if name in tensors), None)
        if ranked is not None:
            return len(ranked)
        asked = float(tensors.get("alpha", 0))
        if 1 <= asked <= LARGEST_RANK:
            return round(asked)
        return max(tensors["lokr_w2"].shape[:2])  # any rank from half of this on means the full matrix

    @classmethod
    def scale_of(cls, tensors: dict[str, torch.Tensor]) -> float:
        """Return what the weights that a LoRA file has for a layer are scaled by."""
        return 1.0 if {"lokr_w1", "lokr_w2"} <= tensors.keys() else super().scale_of(tensors)

    @classmethod
    def form_of(cls, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        """Return the shapes of the weights that a LoRA file has for a layer: its factors may be other than the closest ones."""
        return {"shapes": {name: tensors[key].shape for name, key in cls.names.items() if key in tensors}}

    def __init__(
        self,
        layer: nn.Linear | nn.Conv2d,
        rank: int,
        alpha: float,
        rng: torch.Generator,
        shapes: dict[str, torch.Size] | None = None,
    ) -> None:
        out_width, in_width, *kernel = layer.weight.shape
        shapes = shapes or _lokr_shapes(out_width, in_width, kernel, rank)
        out_l, in_m = shapes["w1"] if "w1" in shapes else (shapes["w1_a"][0], shapes["w1_b"][1])
        self._w2_shape = (out_width // out_l, in_width // in_m, *kernel)
        if (out_l * self._w2_shape[0], in_m * self._w2_shape[1]) != (out_width, in_width):
            raise ValueError(f"has a w1 of {out_l}x{in_m}, which does not divide its {out_width}x{in_width}")
        super().__init__(layer, rank, rank if {"w1", "w2"} <= shapes.keys() else alpha)
        shapes = {name: self._w2_shape if name == "w2" else shape for name, shape in shapes.items()}
        for name, shape in shapes.items():
            weight = torch.zeros(shape) if name in self.zero_at_start else kaiming_uniform(shape, rng)
            setattr(self, name, nn.Parameter(weight))

    def forward(self, output: torch.Tensor, x: torch.Tensor, strength: float) -> torch.Tensor:
        """Return the layer's output, (..., out) or (B, out, H, W), with the addition; see the module."""
        # (w1 kron w2) x without the large matrix: in_m groups of in_n inputs, out_l groups of out_k outputs.
        x = x.to(output.dtype)
        w1 = self.w1 if hasattr(self, "w1") else self.w1_a @ self.w1_b
        w1 = (w1 * (self.scale * strength)).to(x.dtype)
        w2 = (self.w2 if hasattr(self, "w2") else (self.w2_a @ self.w2_b).view(self._w2_shape)).to(x.dtype)
        if self.conv_arguments is None:
            grouped = F.linear(x.unflatten(-1, (-1, w2.shape[1])), w2)
            return output + torch.einsum("lm,...mk->...lk", w1, grouped).flatten(-2)
        grouped = self.apply_weight(x.unflatten(1, (-1, w2.shape[1])).flatten(0, 1), w2)
        return output + torch.einsum("lm,bm...->bl...", w1, grouped.unflatten(0, (len(x), -1))).flatten(1, 2)


class _HadamardProduct(torch.autograd.Function):
    """Computes (a1 @ b1) * (a2 @ b2) and saves only the small matrices for the backward pass.

    The two large products would take twice the memory of the layer's own weight.
    """

    @staticmethod
    def forward(ctx: Any, a1: torch.Tensor, b1: torch.Tensor, a2: torch.Tensor, b2: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(a1, b1, a2, b2)
        return (a1 @ b1) * (a2 @ b2)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        a1, b1, a2, b2 = ctx.saved_tensors
        first, second = gradient * (a2 @ b2), gradient * (a1 @ b1)
        return first @ b1.T, a1.T @ first, second @ b2.T, a2.T @ second


def _lokr_shapes(out_width: int, in_width: int, kernel: list[int], rank: int) -> dict[str, tuple[int, ...]]:
    (out_l, out_k), (in_m, in_n) = closest_factors(out_width), closest_factors(in_width)
    if rank >= max(out_k, in_n) / 2:
        return {"w1": (out_l, in_m), "w2": (out_k, in_n, *kernel)}
    return {"w1": (out_l, in_m), "w2_a": (out_k, rank), "w2_b": (rank, in_n * math.prod(kernel))}


def closest_factors(number: int) -> tuple[int, int]:
    """Return the two factors of a number that are closest together, the smaller one first: 12 gives (3, 4)."""
    small = math.isqrt(number)
    while number % small:
        small -= 1
    return small, number // small
