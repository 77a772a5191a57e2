"""Draws batches: each holds one bucket, an epoch holds every example, and the seed decides the order."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import torch


def draw_batches(
    resolutions: Sequence[Hashable],
    batch_size: int,
    generator: torch.Generator,
    repeats: Sequence[int] | None = None,
) -> Iterator[list[int]]:
    """Yield batches of indices into `resolutions` without end; all indices of a batch have the same resolution.

    An epoch draws index i `repeats[i]` times (default once) in random order. A bucket is drawn in proportion to what is
    left of it, and its last batch may be smaller. The same generator state draws the same batches.

    Raises ValueError if there is nothing to draw, or for a batch size or repeats below 1.
    """
    if batch_size < 1:
        raise ValueError(f"The batch size is {batch_size}. Set it to 1 or more.")
    if not resolutions or (repeats is not None and min(repeats) < 1):
        raise ValueError("There are no images to draw from." if not resolutions else "repeats must be 1 or more.")
    buckets: dict[Hashable, list[int]] = {}
    for index, resolution in enumerate(resolutions):
        buckets.setdefault(resolution, []).extend([index] * (repeats[index] if repeats else 1))
    return _draw_epochs(list(buckets.values()), batch_size, generator)


def _draw_epochs(buckets: list[list[int]], batch_size: int, generator: torch.Generator) -> Iterator[list[int]]:
    while True:
        left = [_shuffle(bucket, generator) for bucket in buckets]
        while any(left):
            bucket = _draw_bucket(left, generator)
            yield bucket[-batch_size:]
            del bucket[-batch_size:]


def _shuffle(bucket: list[int], generator: torch.Generator) -> list[int]:
    order = torch.randperm(len(bucket), generator=generator, device=generator.device)
    return [bucket[place] for place in order.tolist()]


def _draw_bucket(left: list[list[int]], generator: torch.Generator) -> list[int]:
    total = sum(len(bucket) for bucket in left)
    ticket = int(torch.randint(total, (), generator=generator, device=generator.device))
    for bucket in left:
        if ticket < len(bucket):
            return bucket
        ticket -= len(bucket)
    raise AssertionError("a ticket is always below the total")
