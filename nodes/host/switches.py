"""Switches of the host's memory management."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Iterator

import comfy.model_management


@contextmanager
def switched(name: str, value: object) -> Iterator[None]:
    """Set a switch, or replace a function, until the block ends. name: in comfy.model_management"""
    before = getattr(comfy.model_management, name)
    setattr(comfy.model_management, name, value)
    try:
        yield
    finally:
        setattr(comfy.model_management, name, before)
