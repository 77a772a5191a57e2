"""Rewrites the weights that a LoRA file has for one layer in a form that can be trained, with the same effect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Sequence

import torch
from torch import nn

from .adapter_base import Adapter
from .adapter_types import adapter_type_of
from .adapters import LoHaLayer, LoRALayer
from .dora import DoRALayer

Weights = dict[str, torch.Tensor]  # of one layer, by their names in a LoRA file

# A kernel of a Tucker decomposition -> the matrices of the output and the input, both stored with the rank first.
_TUCKER = {
    "hada_t1": ("hada_w1_a", "hada_w1_b"),
    "hada_t2": ("hada_w2_a", "hada_w2_b"),
    "lokr_t2": ("lokr_w2_a", "lokr_w2_b"),
}
# The factors of a product: those with the rows of the layer's weight, and those with its columns.
_OUTER = {LoRALayer: ("lora_up.weight",), LoHaLayer: ("hada_w1_a", "hada_w2_a")}
_INNER = {LoRALayer: ("lora_down.weight",), LoHaLayer: ("hada_w1_b", "hada_w2_b")}


@dataclass(frozen=True)
class Part:
    """Holds the weights for a part of a layer's weight, such as the q of a q, k, v matrix, or for all of it.

    dimension: 0 for a part of the rows, 1 for a part of the columns
    start, length: where the part is; a length of None means all
    reorder: puts the rows of a matrix in the order of the model, if the file has another
    layer: name of the layer
    key: the part's in the file that it is from
    """

    weights: Weights
    dimension: int = 0
    start: int = 0
    length: int | None = None
    reorder: Callable[[torch.Tensor], torch.Tensor] | None = None
    layer: str = ""
    key: str = ""

    @property
    def name(self) -> str:
        """Return a name that no other part has: the layer's for all of it."""
        return self.layer if self.is_whole else f"{self.layer} ({self.key})"

    @property
    def is_whole(self) -> bool:
        """Return whether the weights are for the whole layer as it is."""
        return self.length is None and self.reorder is None

    def stand_in(self, layer: nn.Module) -> nn.Module:
        """Return what an adapter of the part takes as its layer: without weights if it is not all of it."""
        if self.is_whole:
            return layer
        rows, columns = (
            whole if self.length is None or self.dimension != dimension else self.length
            for dimension, whole in enumerate(layer.weight.shape)
        )
        part = nn.Module()
        part.weight = torch.empty((rows, columns), device="meta")
        return part

    def add(self, adapter: Adapter, output: torch.Tensor, x: torch.Tensor, strength: float) -> torch.Tensor:
        """Return the layer's output (..., out), for its input x (..., in), with what an adapter of the part adds to it."""
        whole = slice(None)
        part = whole if self.length is None else slice(self.start, self.start + self.length)
        rows, columns = (part, whole) if self.dimension == 0 else (whole, part)
        own, x = output[..., rows], x[..., columns]
        if self.reorder is None:
            own = adapter(own, x, strength)
        else:
            own = own + self.reorder(adapter(torch.zeros_like(own), x, strength).movedim(-1, 0)).movedim(0, -1)
        if rows == whole:
            return own
        return torch.cat((output[..., : rows.start], own, output[..., rows.stop :]), -1)


@dataclass(frozen=True)
class KeysOfParts:
    """Holds the keys that a LoRA file has for a layer which other programs have in parts, such as q, k and v.

    whole: key of the layer itself
    rows: the key of each part and the rows of the layer's weight that it is for, which are all rows together
    """

    whole: str
    rows: dict[str, slice]


Key = str | KeysOfParts


def without_tucker(weights: Weights) -> Weights:
    """Multiply the kernel of a Tucker decomposition into the matrix of the input: the rank stays the same."""
    plain = dict(weights)
    if "lora_mid.weight" in plain:
        kernel, down = plain.pop("lora_mid.weight"), plain["lora_down.weight"].flatten(1)
        plain["lora_down.weight"] = torch.einsum("mn...,ni->mi...", kernel, down)
    for name, (outer, inner) in _TUCKER.items():
        if name in plain:
            plain[inner] = torch.einsum("ij...,jr->ir...", plain.pop(name), plain[inner]).flatten(1)
            plain[outer] = plain[outer].T
    return plain


def rows_of(weights: Weights) -> int:
    """Return the number of rows of the weight that plain weights of a LoRA, LoHa or LoKr are for."""
    if "lora_up.weight" in weights:
        return len(weights["lora_up.weight"])
    if kind := _product_of(weights):
        return len(weights[_OUTER[kind][0]])
    first, second = (weights.get(f"lokr_{name}", weights.get(f"lokr_{name}_a")) for name in ("w1", "w2"))
    return len(first) * len(second)


def by_key(key: Key, weights: Weights) -> dict[str, Weights]:
    """Return the weights of a layer by the keys that a LoRA file has for it, with the same effect.

    Only a LoRA or LoHa can be cut between the rows of its layer.
    """
    kind = _product_of(weights)
    if isinstance(key, str) or kind is None:
        return {key if isinstance(key, str) else key.whole: weights}
    return {
        part: {
            name: tensor[rows].clone() if name in _OUTER[kind] else tensor.clone() for name, tensor in weights.items()
        }
        for part, rows in key.rows.items()
    }


def join_parts(parts: Sequence[Part], shape: torch.Size) -> list[Part]:
    """Return one part, the whole layer of a shape (out, in), with the effect of all parts, or the same if that is not possible.

    LoRAs become one LoRA, LoHas one LoHa. LoKrs stay apart, as the blocks of a Kronecker product are multiples of each other,
    and those of q, k and v are not; so do several kinds, and LoHas that overlap. Raises ValueError if one of several is a DoRA.
    """
    if len(parts) == 1 and parts[0].is_whole:
        return list(parts)
    kinds = {adapter_type_of(part.weights) for part in parts}
    if DoRALayer in kinds or len(shape) > 2:
        raise ValueError(
            "is in parts, as q, k and v, which can be LoRAs, LoHas or LoKrs of linear layers, not DoRAs or convolutions: put it "
            "on the model with Load LoRA and train a new one"
        )
    kind = kinds.pop()
    if kinds or kind not in _OUTER or (kind is LoHaLayer and _overlap(parts)):
        return list(parts)
    return [Part(_joined(kind, parts, shape), layer=parts[0].layer)]


def _joined(kind: type[Adapter], parts: Sequence[Part], shape: torch.Size) -> Weights:
    """Return weights of a kind for a whole layer of a shape (out, in).

    The matrices of the input are stacked, those of the output stand side by side, each in the rows of its part: so the rank
    is the sum of the parts' ranks. Parts that have the same matrices of the input, as `by_key` makes them, keep their rank.
    """
    scales = [kind.scale_of(part.weights) for part in parts]
    scale = max(scales, key=scales.count) or 1.0
    outer = {
        name: [_placed(part, part.weights[name].flatten(1), True, shape) for part in parts] for name in _OUTER[kind]
    }
    inner = {
        name: [_placed(part, part.weights[name].flatten(1), False, shape) for part in parts] for name in _INNER[kind]
    }
    outer[_OUTER[kind][-1]] = [matrix * (own / scale) for matrix, own in zip(outer[_OUTER[kind][-1]], scales)]
    if all(torch.equal(matrix, matrices[0]) for matrices in inner.values() for matrix in matrices):
        joined = {name: sum(matrices) for name, matrices in outer.items()}
        joined |= {name: matrices[0] for name, matrices in inner.items()}
    else:
        joined = {name: torch.cat(matrices, 1) for name, matrices in outer.items()}
        joined |= {name: torch.cat(matrices, 0) for name, matrices in inner.items()}
    return joined | {"alpha": torch.tensor(scale * len(joined[_INNER[kind][0]]))}


def _product_of(weights: Weights) -> type | None:
    kind = adapter_type_of(weights)
    return kind if kind in _OUTER else None


def _overlap(parts: Sequence[Part]) -> bool:
    """Return whether some rows or columns are in two parts: those of a LoHa would be multiplied with each other."""
    if any(part.length is None or part.dimension != parts[0].dimension for part in parts):
        return len(parts) > 1
    ordered = sorted(parts, key=lambda part: part.start)
    return any(first.start + first.length > second.start for first, second in zip(ordered, ordered[1:]))


def _placed(part: Part, matrix: torch.Tensor, is_outer: bool, shape: torch.Size) -> torch.Tensor:
    """Put a part's factor into the rows (of an outer one) or columns (of an inner one) that the layer's weight has."""
    if is_outer and part.reorder is not None:
        matrix = part.reorder(matrix)
    if part.length is None or is_outer == (part.dimension == 1):
        return matrix
    along = 0 if is_outer else 1
    size = list(matrix.shape)
    size[along] = shape[part.dimension]
    whole = matrix.new_zeros(size)
    whole.narrow(along, part.start, part.length).copy_(matrix)
    return whole
