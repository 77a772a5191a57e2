"""Gradient checkpointing: saves memory by recomputing the activations of each block in the backward pass."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Callable

from torch import nn
from torch.utils.checkpoint import checkpoint

from .block_forward import blocks_of, wrapped
from .in_place import InPlaceGuard


def checkpointed(model: nn.Module, guard: InPlaceGuard) -> AbstractContextManager[None]:
    """Use gradient checkpointing in every block of the model until the with block ends.

    guard: the one that the model's forward passes run under
    """

    def wrap(index: int, forward: Callable) -> Callable:
        def run(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = guard.current((args, kwargs))
            return checkpoint(guard.run_block, forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

        return run

    return wrapped(list(blocks_of(model)), wrap)
