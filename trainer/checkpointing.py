"""How a model's blocks are run in training: their activations computed twice to save memory, their inputs kept."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import Any, Iterator

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def checkpointed(model: nn.Module) -> Iterator[None]:
    """Checkpoint every block of the model until the with-block ends."""
    units = list(_units(model))
    for unit in units:
        unit.forward = partial(checkpoint, unit.forward, use_reentrant=False, preserve_rng_state=False)
    try:
        yield
    finally:
        for unit in units:
            del unit.forward  # uncovers the class's own


@contextmanager
def inputs_kept(model: nn.Module) -> Iterator[None]:
    """Let no block overwrite its inputs by `+=` until the with-block ends.

    Flux's blocks do, to save memory in sampling. Autograd needs what they overwrite, and so does checkpointing, which
    starts from it again: without an error its gradients would be wrong.
    """
    handles = [unit.register_forward_pre_hook(_keep_inputs, with_kwargs=True) for unit in _units(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Kept(torch.Tensor):
    """A tensor of which `+=` makes a new one, which is kept in its turn."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # all else gives plain tensors

    def __iadd__(self, other: Any) -> torch.Tensor:
        return (self + other).as_subclass(_Kept)


def _keep_inputs(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    return tuple(_keep(value) for value in args), {name: _keep(value) for name, value in kwargs.items()}


def _keep(value: Any) -> Any:
    return value.as_subclass(_Kept) if type(value) is torch.Tensor else value


def _units(model: nn.Module) -> Iterator[nn.Module]:
    if hasattr(model, "input_blocks"):  # a U-Net calls the layers in its blocks, not the blocks
        for block in (*model.input_blocks, model.middle_block, *model.output_blocks):
            yield from block
    else:
        for child in model.children():
            if isinstance(child, nn.ModuleList):
                yield from child
