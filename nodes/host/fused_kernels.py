"""The host's fused kernels, most of which have no backward pass."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import Callable, Iterator

import comfy.quant_ops

_NORM_OR_ROPE = re.compile(r"((rms|apply)_rope|(rms_)?adaln$)")


@contextmanager
def differentiable_kernels() -> Iterator[None]:
    """Run comfy-kitchen's fused norms and rotary embeddings as plain PyTorch, which has a backward pass, in the block.

    Some model code calls them in training, too; Anima's does.
    """
    fused = getattr(comfy.quant_ops, "ck", None)  # missing where the package is
    plain = _plain_functions() if fused else {}
    before = {name: getattr(fused, name) for name in plain if hasattr(fused, name)}
    for name in before:
        setattr(fused, name, plain[name])
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(fused, name, function)


def _plain_functions() -> dict[str, Callable]:
    from comfy_kitchen.backends import eager

    return {name: function for name, function in vars(eager).items() if _NORM_OR_ROPE.match(name)}
