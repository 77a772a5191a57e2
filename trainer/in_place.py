"""Turns in-place operations of a model's code into out-of-place ones during training.

Model code often writes a block's result into its input to save memory (`x += y`, `torch.add(x, y, out=x)`,
`x[:, :n].mul_(g)`). In training, autograd may have saved that input, which is an error, and gradient checkpointing
recomputes from it, which silently gives wrong gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

# In-place methods, and the out-of-place methods that replace them without an extra copy.
_OUT_OF_PLACE = {
    **{f"{name}_": getattr(torch.Tensor, name) for name in ("add", "sub", "mul", "div", "pow", "addcmul")},
    **{f"__i{name}__": getattr(torch.Tensor, f"__{name}__") for name in ("add", "sub", "mul", "truediv", "pow")},
}
_NO_WRITES = {"requires_grad_", "detach_", "set_", "resize_", "resize_as_", "rename_", "share_memory_"}


class OutOfPlace(TorchFunctionMode):
    """Runs PyTorch functions so that no tensor that autograd needs is modified in place.

    An in-place operation makes a new tensor, which replaces the old one in everything that follows in this mode. Results
    that leave the mode must therefore go through `current`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._values = WeakTensorKeyDictionary()  # a tensor that is not a view -> its replacement
        self._protected: set[int] = set()
        self.has_written = False

    @contextmanager
    def protecting(self, *values: Any) -> Iterator[None]:
        """Run a block in which these tensors are never modified in place."""
        before, self._protected = self._protected, {id(_base(tensor)) for tensor in _tensors(values)}
        try:
            yield
            self.current(values)  # releases intermediate replacements
        finally:
            self._protected = before

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run a function of PyTorch, out of place if necessary; see torch.overrides."""
        kwargs = kwargs or {}
        target = _written_tensor(func, args, kwargs)
        if target is not None and self._is_needed(target, args, kwargs):
            return self._write(func, target, args, kwargs)
        if self._values:
            args, kwargs = self.current(args), self.current(kwargs)
        return func(*args, **kwargs)

    def current(self, value: Any) -> Any:
        """Return a value in which each tensor is replaced by its current replacement, if it has one."""
        if not self._values:
            return value
        if isinstance(value, torch.Tensor):
            return self._current(value)
        if isinstance(value, (list, tuple)):
            items = [self.current(item) for item in value]
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        if isinstance(value, dict):
            return {key: self.current(item) for key, item in value.items()}
        return value

    def _current(self, tensor: torch.Tensor) -> torch.Tensor:
        base = _base(tensor)
        latest = base
        while latest in self._values:
            latest = self._values[latest]
        if latest is base:
            return tensor
        self._values[base] = latest
        return latest if tensor is base else _view_like(tensor, base, latest)

    def _is_needed(self, target: torch.Tensor, args: tuple, kwargs: dict) -> bool:
        if not torch.is_grad_enabled():
            return False
        base = _base(target)
        if id(base) in self._protected or base in self._values:
            return True
        return any(tensor.requires_grad for tensor in _tensors((target, args, kwargs)))

    def _write(self, func: Callable, target: torch.Tensor, args: tuple, kwargs: dict) -> Any:
        """Run an in-place function out of place; its result replaces the tensor from now on."""
        self.has_written = True
        base, name = _base(target), func.__name__.split(".")[0]
        args, kwargs = self.current(args), self.current(kwargs)
        old = self._current(base)
        if target is base and name in _OUT_OF_PLACE:
            new = _OUT_OF_PLACE[name](*args, **kwargs).to(old.dtype)
        else:
            new = old.clone()
            _write_into(new if target is base else _view_like(target, base, new), func, args, kwargs)
        if new is not base:
            self._values[base] = new
        return None if name == "__setitem__" else self._current(target)


class InPlaceGuard:
    """Runs a model's forward passes under OutOfPlace if they need it.

    OutOfPlace costs a few microseconds per operation. It is used for the first pass of each kind; if that modified nothing
    in place, later passes of the same kind run without it.
    """

    def __init__(self) -> None:
        self._writes: dict[Hashable, bool] = {}
        self._mode: OutOfPlace | None = None
        self._is_on = True  # in the latest pass, whose blocks checkpointing recomputes

    @contextmanager
    def forward(self, kind: Hashable) -> Iterator[Callable[[Any], Any]]:
        """Run a forward pass in the block; yield the function that its result must go through.

        kind: a key that is equal for passes that run the same code
        """
        self._is_on = torch.is_grad_enabled() and self._writes.get(kind, True)
        if not self._is_on:
            yield lambda value: value
            return
        with OutOfPlace() as self._mode:
            try:
                yield self._mode.current
                self._writes[kind] = self._writes.get(kind, False) or self._mode.has_written
            finally:
                self._mode = None

    def run_block(self, forward: Callable, *args: Any, **kwargs: Any) -> Any:
        """Run a block of the model so that checkpointing can recompute it from the same inputs."""
        if not self._is_on or not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        if self._mode is not None:
            with self._mode.protecting(args, kwargs):
                return self._mode.current(forward(*args, **kwargs))
        with OutOfPlace() as mode, mode.protecting(args, kwargs):  # recomputed in the backward pass
            return mode.current(forward(*args, **kwargs))

    def current(self, value: Any) -> Any:
        """Return a value of the current forward pass in which each tensor is replaced by its current replacement."""
        return value if self._mode is None else self._mode.current(value)


def _written_tensor(func: Callable, args: tuple, kwargs: dict) -> torch.Tensor | None:
    """Return the tensor that a PyTorch function modifies in place, or None."""
    out = kwargs.get("out")
    if out is not None:
        return out if isinstance(out, torch.Tensor) else None
    name = getattr(func, "__name__", "").split(".")[0]
    writes = name.endswith("_") and not name.endswith("__") and name not in _NO_WRITES
    if not (writes or name == "__setitem__" or name in _OUT_OF_PLACE or kwargs.get("inplace") is True):
        return None
    return args[0] if args and isinstance(args[0], torch.Tensor) else kwargs.get("input")


def _write_into(destination: torch.Tensor, func: Callable, args: tuple, kwargs: dict) -> None:
    """Run an in-place function on another tensor."""
    if "out" in kwargs:
        destination.copy_(func(*args, **{name: value for name, value in kwargs.items() if name != "out"}))
    elif kwargs.get("inplace") is True:
        destination.copy_(func(destination.clone(), *args[1:], **{**kwargs, "inplace": False}))
    else:
        func(destination, *args[1:], **kwargs)


def _base(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor that a view is of, or the tensor itself."""
    return tensor if tensor._base is None else tensor._base


def _view_like(view: torch.Tensor, base: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return the same view of another tensor with the shape of the view's base."""
    offset = view.storage_offset() - base.storage_offset() + other.storage_offset()
    return other.as_strided(view.shape, view.stride(), offset)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
