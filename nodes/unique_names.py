"""Unique names for what is compared."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

Item = TypeVar("Item")


def with_unique_names(items: Iterable[tuple[str, Item]]) -> dict[str, Item]:
    """Return items by their names; a name that is taken gets a number, as in "star (2)"."""
    named: dict[str, Item] = {}
    for name, item in items:
        number = 1 + sum(known == name or known.startswith(f"{name} (") for known in named)
        while (unique := f"{name} ({number})" if number > 1 else name) in named:  # as the name of a file
            number += 1
        named[unique] = item
    return named
