"""Gradient checkpointing: compute a block's activations again in the backward pass instead of keeping them."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import Iterator

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


def _units(model: nn.Module) -> Iterator[nn.Module]:
    if hasattr(model, "input_blocks"):  # a U-Net calls the layers in its blocks, not the blocks
        for block in (*model.input_blocks, model.middle_block, *model.output_blocks):
            yield from block
    else:
        for child in model.children():
            if isinstance(child, nn.ModuleList):
                yield from child
