"""The adapters of one layer: what a LoRA adds to the layer's output.

All are float32, are used in the type of the activations, and start as nothing. Each takes `layer` (what it adapts), `rank`
and `alpha` (the addition is scaled by alpha / rank) and `rng`, and has `forward(x, strength)`, which returns what to add
to the layer's output for its input x, and `tensors()`, which returns the weights under their names in a file.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class Adapter(nn.Module):
    """What all adapters share: the layer's shape and placement, and the export."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int, alpha: float) -> None:
        super().__init__()
        self.shape = layer.weight.shape  # (out, in) or (out, in, kernel, kernel)
        self.rank, self.alpha, self.scale = rank, alpha, alpha / rank
        self.placement: dict[str, Any] | None = None  # of a convolution
        if layer.weight.ndim > 2:
            self.placement = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the weights under their names in a file, detached, in float32 on the CPU."""
        weights = {self.names[name]: parameter.detach().cpu().clone() for name, parameter in self.named_parameters()}
        return {**weights, "alpha": torch.tensor(float(self.alpha))}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take the weights of `tensors()`. Raises ValueError where they are others or of other shapes."""
        wanted = {self.names[name]: parameter for name, parameter in self.named_parameters()}
        given = {name: tensor for name, tensor in tensors.items() if name != "alpha"}
        if {name: p.numel() for name, p in wanted.items()} != {name: t.numel() for name, t in given.items()}:
            raise ValueError(f"holds {_shapes(given)} and would need {_shapes(wanted)}")
        with torch.no_grad():
            for name, parameter in wanted.items():
                parameter.copy_(given[name].view(parameter.shape))  # a 1x1 convolution may be stored as a matrix

    def has_learned(self) -> bool:
        """Tell whether the weights that start at zero have moved."""
        return any(parameter.any().item() for name, parameter in self.named_parameters() if name in self.zero_at_start)

    def apply_weight(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Return the product of x with a weight, placed as the layer places its own."""
        if self.placement is None:
            return F.linear(x, weight)
        return F.conv2d(x, weight, **self.placement)


class LoRALayer(Adapter):
    """A low-rank addition (Hu et al. 2021, arXiv 2106.09685).

    down: (rank, in) or, for a convolution, (rank, in, kernel, kernel), which strides and pads as the layer does
    up: (out, rank) or (out, rank, 1, 1)
    """

    names = {"up": "lora_up.weight", "down": "lora_down.weight"}  # as in kohya's files
    zero_at_start = ("up",)

    @staticmethod
    def rank_of(tensors: dict[str, torch.Tensor]) -> int:
        return len(tensors["lora_down.weight"])

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int, alpha: float, rng: torch.Generator) -> None:
        super().__init__(layer, rank, alpha)
        out_width, in_width, *kernel = self.shape
        device = layer.weight.device
        self.up = nn.Parameter(torch.zeros((out_width, rank, *[1] * len(kernel)), device=device))
        self.down = nn.Parameter(_kaiming_uniform((rank, in_width, *kernel), rng).to(device))

    def forward(self, output: torch.Tensor, x: torch.Tensor, strength: float) -> torch.Tensor:
        up = (self.up * (self.scale * strength)).to(x.dtype)  # scaling the small matrix spares a pass over activations
        hidden = self.apply_weight(x, self.down.to(x.dtype))
        if self.placement is None:
            # In one call: the product is added while it is made.
            return torch.addmm(output.flatten(0, -2), hidden.flatten(0, -2), up.T).view(output.shape)
        return output + F.conv2d(hidden, up)


class LoHaLayer(Adapter):
    """The Hadamard product of two low-rank matrices (Hyeon-Woo et al. 2022, arXiv 2108.06098), as in LyCORIS.

    w1_a, w2_a: (out, rank)
    w1_b, w2_b: (rank, in * kernel * kernel)
    """

    names = {name: f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b")}
    zero_at_start = ("w2_a",)

    @staticmethod
    def rank_of(tensors: dict[str, torch.Tensor]) -> int:
        return len(tensors["hada_w1_b"])

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int, alpha: float, rng: torch.Generator) -> None:
        super().__init__(layer, rank, alpha)
        out_width, in_width, device = self.shape[0], math.prod(self.shape[1:]), layer.weight.device
        self.w1_a = nn.Parameter((0.1 * torch.randn((out_width, rank), generator=rng)).to(device))
        self.w1_b = nn.Parameter(torch.randn((rank, in_width), generator=rng).to(device))
        self.w2_a = nn.Parameter(torch.zeros((out_width, rank), device=device))
        self.w2_b = nn.Parameter(torch.randn((rank, in_width), generator=rng).to(device))

    def forward(self, output: torch.Tensor, x: torch.Tensor, strength: float) -> torch.Tensor:
        w1_a = self.w1_a * (self.scale * strength)
        weight = _HadamardProduct.apply(w1_a, self.w1_b, self.w2_a, self.w2_b)
        return output + self.apply_weight(x, weight.view(self.shape).to(x.dtype))


class LoKrLayer(Adapter):
    """The Kronecker product of a small matrix and a low-rank one (Yeh et al. 2023, arXiv 2309.14859), as in LyCORIS.

    w1: (out_l, in_m)
    w2_a, w2_b: (out_k, rank), (rank, in_n * kernel * kernel); where those would be no smaller than their product,
    w2: (out_k, in_n, kernel, kernel) in their place, and alpha has no effect
    out = out_l * out_k, in = in_m * in_n, the factors as near to one another as can be
    """

    names = {name: f"lokr_{name}" for name in ("w1", "w2", "w2_a", "w2_b")}
    zero_at_start = ("w2", "w2_b")

    @staticmethod
    def rank_of(tensors: dict[str, torch.Tensor]) -> int:
        if "lokr_w2_b" in tensors:
            return len(tensors["lokr_w2_b"])
        return max(tensors["lokr_w2"].shape[:2])  # any from half of that on stands for the whole matrix

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int, alpha: float, rng: torch.Generator) -> None:
        out_width, in_width, *kernel = layer.weight.shape
        (out_l, out_k), (in_m, in_n) = near_factors(out_width), near_factors(in_width)
        whole = rank >= max(out_k, in_n) / 2
        super().__init__(layer, rank, rank if whole else alpha)
        device = layer.weight.device
        self.w1 = nn.Parameter(_kaiming_uniform((out_l, in_m), rng).to(device))
        if whole:
            self.w2 = nn.Parameter(torch.zeros((out_k, in_n, *kernel), device=device))
        else:
            self.w2_a = nn.Parameter(_kaiming_uniform((out_k, rank), rng).to(device))
            self.w2_b = nn.Parameter(torch.zeros((rank, in_n * math.prod(kernel)), device=device))
        self._big = (out_k, in_n, *kernel)

    def forward(self, output: torch.Tensor, x: torch.Tensor, strength: float) -> torch.Tensor:
        # (w1 kron w2) x, without the large product: the inputs are in_m groups of in_n, the outputs out_l of out_k.
        w1 = (self.w1 * (self.scale * strength)).to(x.dtype)
        w2 = (self.w2 if hasattr(self, "w2") else (self.w2_a @ self.w2_b).view(self._big)).to(x.dtype)
        if self.placement is None:
            grouped = F.linear(x.unflatten(-1, (-1, w2.shape[1])), w2)
            return output + torch.einsum("lm,...mk->...lk", w1, grouped).flatten(-2)
        grouped = self.apply_weight(x.unflatten(1, (-1, w2.shape[1])).flatten(0, 1), w2)
        return output + torch.einsum("lm,bm...->bl...", w1, grouped.unflatten(0, (len(x), -1))).flatten(1, 2)


class _HadamardProduct(torch.autograd.Function):
    """(a1 @ b1) * (a2 @ b2), which keeps the small matrices alone for the backward pass: the large ones would take
    twice the memory of the layer's own weight."""

    @staticmethod
    def forward(ctx: Any, a1: torch.Tensor, b1: torch.Tensor, a2: torch.Tensor, b2: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(a1, b1, a2, b2)
        return (a1 @ b1) * (a2 @ b2)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        a1, b1, a2, b2 = ctx.saved_tensors
        first, second = gradient * (a2 @ b2), gradient * (a1 @ b1)
        return first @ b1.T, a1.T @ first, second @ b2.T, a2.T @ second


KINDS: dict[str, type[Adapter]] = {"lierla": LoRALayer, "c3lier": LoRALayer, "loha": LoHaLayer, "lokr": LoKrLayer}


def adapter_like(layer: nn.Linear | nn.Conv2d, tensors: dict[str, torch.Tensor]) -> Adapter:
    """Return an adapter with the type, rank, alpha and weights of a layer in a LoRA file; without alpha it is the rank.

    Raises ValueError for weights that no adapter here can hold.
    """
    kind = next((kind for kind in KINDS.values() if set(tensors) & set(kind.names.values())), None)
    if kind is None:
        raise ValueError(f"holds {_shapes(tensors)}, which is no LoRA, LoHa or LoKr")
    rank = kind.rank_of(tensors)
    adapter = kind(layer, rank, float(tensors.get("alpha", rank)), torch.Generator().manual_seed(0))
    adapter.load(tensors)
    return adapter


def _shapes(tensors: dict[str, torch.Tensor]) -> str:
    return ", ".join(f"{name} {'x'.join(map(str, tensor.shape))}" for name, tensor in tensors.items())


def near_factors(number: int) -> tuple[int, int]:
    """Return the two factors of a number that are nearest to one another, the smaller first."""
    small = math.isqrt(number)
    while number % small:
        small -= 1
    return small, number // small


def _kaiming_uniform(shape: tuple[int, ...], rng: torch.Generator) -> torch.Tensor:
    """Draw as torch starts a linear layer: uniform within 1 / sqrt(inputs). On the CPU, so every device starts alike."""
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    return torch.rand(shape, generator=rng) * (2 * bound) - bound
