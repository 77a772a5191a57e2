"""Offloading on a CPU: a model's frozen weights wait in a file, and are in memory only while their block computes."""

from __future__ import annotations

import ctypes
import mmap
import sys
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Callable, Iterator, Sequence

import torch
from torch import nn

from .block_forward import blocks_of, wrapped

_ALIGNMENT = 64  # bytes, as torch aligns tensors: kernels may round differently elsewhere


@contextmanager
def offloaded(model: nn.Module, offload: str, folder: Path) -> Iterator[None]:
    """Keep the frozen weights of a model on the CPU in temporary files until the with block ends.

    When a block begins, in the forward pass or in the recomputation of gradient checkpointing, the memory of all others is
    given back. What is still needed of it is read again, so giving it back is right at any time.

    offload: "none", "blocks", or "all" for the layers outside the blocks too
    folder: where the files are; together they are as large as the weights

    Raises ValueError if there is not enough room for them.
    """
    blocks = list(blocks_of(model)) if offload != "none" else []
    files: list[_WeightsInFile] = []
    taken: set[int] = set()
    try:
        for module in blocks + [model] * (offload == "all"):
            weights = [each for each in module.parameters() if _can_move(each) and id(each) not in taken]
            taken.update(map(id, weights))
            files.append(_WeightsInFile(weights, folder))
        if files:
            give_back_freed_memory()
        with wrapped(blocks, lambda index, forward: _releasing(files, index, forward)):
            yield
    finally:
        for file in files:
            file.restore()


def _releasing(files: Sequence[_WeightsInFile], current: int, forward: Callable) -> Callable:
    def run(*args: Any, **kwargs: Any) -> Any:
        for index, file in enumerate(files):
            if index != current:
                file.release()
        return forward(*args, **kwargs)

    return run


class _WeightsInFile:
    """Weights that are the pages of a file, which is deleted when nothing uses it any more."""

    def __init__(self, weights: list[nn.Parameter], folder: Path) -> None:
        self._weights, self._pages = weights, None
        if weights:
            with tempfile.TemporaryFile(dir=folder) as file:
                starts = self._write(file)
                self._pages = mmap.mmap(file.fileno(), file.tell(), access=mmap.ACCESS_COPY)
            for weight, start in zip(weights, starts):
                flat = torch.frombuffer(self._pages, dtype=weight.dtype, count=weight.numel(), offset=start)
                weight.data = flat.view(weight.shape)

    def _write(self, file: BinaryIO) -> list[int]:
        """Write the weights one after the other and return where each begins."""
        starts = []
        try:
            for weight in self._weights:
                starts.append(file.tell())
                file.write(weight.detach().reshape(-1).view(torch.uint8).numpy())
                file.write(bytes(-file.tell() % _ALIGNMENT))
            file.flush()
        except OSError as error:
            raise ValueError(
                f"The model's weights cannot be offloaded to a file in the temporary folder ({error.strerror}): free disk "
                "space there, or set offload in Training Settings to none."
            ) from error
        return starts

    def release(self) -> None:
        """Give the memory back. A system without madvise takes it itself when it needs it."""
        if self._pages is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._pages.madvise(mmap.MADV_DONTNEED)

    def restore(self) -> None:
        """Bring the weights back into main memory."""
        for weight in self._weights:
            weight.data = weight.data.clone()
        self.release()


def give_back_freed_memory() -> None:
    """Give back what the weights took before. The C library of most Linux systems keeps freed memory for itself."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def _can_move(weight: nn.Parameter) -> bool:
    """Return whether a weight is a plain frozen one on the CPU, and not quantized."""
    plain = type(weight.data) is torch.Tensor and weight.is_contiguous() and not weight.is_inference()
    return plain and weight.device.type == "cpu" and not weight.requires_grad and weight.numel() > 0
