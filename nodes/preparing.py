"""Shows on a training's node what is done before its first step, and between steps if that takes long."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import Any, Iterator

from . import page_events
from .host import preparation

EVENT = "traintrain.prepare"

_shown: dict[str, Any] | None = None  # the message that a page would show now; one training runs at a time


class Preparation:
    """Sends the stages of one training's preparation to its node. node: a node class with hidden inputs"""

    def __init__(self, node: type) -> None:
        self._workflow = page_events.workflow_id(getattr(node.hidden, "extra_pnginfo", None))
        self._node_id = node.hidden.unique_id
        self._stage, self._sent_at = None, 0.0

    def show(self, stage: str, done: int, total: int) -> None:
        """Show a stage; the listener of announcements. Counts in quick succession are left out."""
        now = time.monotonic()
        if stage == self._stage and now - self._sent_at < page_events.SECONDS_BETWEEN_EVENTS:
            return
        self._stage, self._sent_at = stage, now
        self._send({"stage": stage, "done": done, "total": total})

    def end(self) -> None:
        """Show that nothing is being prepared, unless that is known."""
        if _shown is not None:
            self._send({"stage": None})
        finish()

    def _send(self, message: dict[str, Any]) -> None:
        global _shown
        _shown = {"workflow": self._workflow, "node": self._node_id, **message}
        page_events.send(EVENT, _shown)


@contextmanager
def shown(node: type) -> Iterator[None]:
    """Show on a training's node what is announced until the block ends."""
    stages = Preparation(node)
    try:
        with preparation.announced_to(stages.show):
            yield
    finally:
        stages.end()


def finish() -> None:
    """Forget the preparation: the page shows the steps of the training from now on."""
    global _shown
    _shown = None


def current() -> dict[str, Any] | None:
    """Return what is being prepared, for a page that is opened now, or None."""
    return _shown
