"""Announces what a training is doing besides its steps: encoding, loading, sampling.

Such work begins in many places, far from the node that can show it. The listener is in a context variable, so none of them
has to pass it on.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import Callable, Iterator

Listener = Callable[[str, int, int], None]  # takes the stage, how many items of it are done, and of how many

RESULTS, CAPTIONS, IMAGES, MODEL, NETWORK, STATE = "results", "captions", "images", "model", "network", "state"
CLOSED_FORM, FIRST_STEP, SAMPLES, VALIDATION = "closed_form", "first_step", "samples", "validation"

_listener: ContextVar[Listener | None] = ContextVar("traintrain_preparation", default=None)


@contextmanager
def announced_to(listener: Listener) -> Iterator[None]:
    """Let a listener hear the announcements until the block ends."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def announce(stage: str, done: int = 0, total: int = 0) -> None:
    """Announce a stage that begins or goes on. total: number of its items; 0 if they are not counted"""
    listener = _listener.get()
    if listener is not None:
        listener(stage, done, total)
