"""Tensors whose values are still in an image file, for nodes that know nothing of files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from .file_errors import explain
from .image_decoding import refuse_truncated
from .image_on_disk import ImageOnDisk

# What a tensor knows without its values. Anything missing here just reads the file.
_METADATA = {
    *(torch.Tensor.size, torch.Tensor.dim, torch.Tensor.numel, torch.Tensor.__len__, torch.Tensor.is_floating_point),
    *(torch.Tensor.ndimension, torch.Tensor.nelement, torch.Tensor.element_size),
    *(getattr(torch.Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device", "layout", "requires_grad")),
    *(getattr(torch.Tensor, name).__get__ for name in ("is_cuda", "is_sparse", "is_quantized", "is_meta", "nbytes")),
}


class TensorOnDisk(torch.Tensor):
    """A float32 tensor on the CPU that reads its values from a file each time an operation needs them.

    An operation on it returns an ordinary tensor, or raises ValueError if the file can no longer be read.
    """

    @staticmethod
    def __new__(cls, file: ImageOnDisk, shape: tuple[int, ...], read: Callable[[], torch.Tensor]) -> TensorOnDisk:
        """Make a tensor of this shape; `read` returns its values in any shape with as many elements."""
        return torch.Tensor._make_wrapper_subclass(cls, shape, dtype=torch.float32)

    def __init__(self, file: ImageOnDisk, shape: tuple[int, ...], read: Callable[[], torch.Tensor]) -> None:
        self._file, self._read, self._written = file, read, None

    @property
    def file(self) -> ImageOnDisk | None:
        """Return the image file, or None once the tensor was written to and no longer matches it."""
        return self._file if self._written is None else None

    # Python's calls come here, also those that PyTorch never dispatches, such as numpy(), tolist() and cpu().
    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func in _METADATA:
            return super().__torch_function__(func, types, args, kwargs)
        return _run_on_values(func, args, kwargs)

    # Calls from C++ come here.
    @classmethod
    def __torch_dispatch__(cls, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _run_on_values(func, args, kwargs)


def pixels_on_disk(file: ImageOnDisk) -> TensorOnDisk:
    """Return the pixels of an image as IMAGE, (1, H, W, 3) in [0, 1]."""
    width, height = file.size
    return TensorOnDisk(file, (1, height, width, 3), file.pixels)


def alpha_on_disk(file: ImageOnDisk) -> TensorOnDisk:
    """Return the alpha channel of an image as MASK, (1, H, W) in [0, 1]; 1 everywhere if the image has none."""
    width, height = file.size
    return TensorOnDisk(file, (1, height, width), file.alpha)


def _run_on_values(func: Callable, args: tuple, kwargs: dict | None) -> Any:
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, TensorOnDisk)]
    values = {tensor: _values(tensor) for tensor in given}
    before = {tensor: plain._version for tensor, plain in values.items()}
    result = func(*_replace(args, values), **_replace(kwargs or {}, values))
    for tensor, plain in values.items():
        if plain._version != before[tensor]:  # an in-place write, which must not be lost
            tensor._written = plain
    return result


def _replace(arguments: Any, values: dict[TensorOnDisk, torch.Tensor]) -> Any:
    return tree_map_only(TensorOnDisk, values.__getitem__, arguments)


def _values(tensor: TensorOnDisk) -> torch.Tensor:
    if tensor._written is not None:
        return tensor._written
    # An ordinary tensor even while the executor runs nodes in inference mode: only those count in-place writes.
    with torch.inference_mode(False), refuse_truncated():
        try:
            return tensor._read().view(tensor.shape)
        except Exception as error:  # decoders raise almost anything
            raise ValueError(f"{tensor._file.path} {explain(error)}.") from error
