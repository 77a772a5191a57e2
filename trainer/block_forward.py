"""The blocks of a model, and a wrapper around what each of them computes."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Callable, Iterator, Sequence

from torch import nn


def blocks_of(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the model's blocks: the members of the model's module lists, at any depth."""
    if hasattr(model, "input_blocks"):  # a U-Net calls the layers of its blocks, not the blocks
        for block in (*model.input_blocks, model.middle_block, *model.output_blocks):
            yield from block
        return
    for child in model.children():
        if isinstance(model, nn.ModuleList) and not isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from blocks_of(child)


@contextmanager
def wrapped(blocks: Sequence[nn.Module], wrap: Callable[[int, Callable], Callable]) -> Iterator[None]:
    """Replace the forward method of blocks until the with block ends.

    wrap: takes the index of a block and its forward method, and returns what is called in its place
    """
    own = [vars(block).get("forward") for block in blocks]  # set by another node pack, or None
    for index, block in enumerate(blocks):
        block.forward = wrap(index, block.forward)
    try:
        yield
    finally:
        for block, forward in zip(blocks, own):
            if forward is None:
                del block.forward  # back to the method of the class
            else:
                block.forward = forward
