"""Tells the page how a training goes."""

from __future__ import annotations

import time

import comfy.model_management
import comfy.utils
from server import PromptServer

SECONDS_BETWEEN_EVENTS = 0.25  # a page cannot show more, and every message costs the training a little


class TrainingProgress:
    """Shows a training on its node: the bar, and a `traintrain.step` event. Called once a step.

    Raises the host's InterruptProcessingException when the user cancels.
    """

    def __init__(self, node_id: str, steps: int) -> None:
        self._node_id, self._steps = node_id, steps
        self._bar = comfy.utils.ProgressBar(steps, node_id=node_id)
        self._started = self._last_event = time.monotonic()

    def __call__(self, step: int, loss: float, learning_rate: float) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        now = time.monotonic()
        self._bar.update_absolute(step, self._steps)
        if now - self._last_event >= SECONDS_BETWEEN_EVENTS or step in (1, self._steps):
            self._last_event = now
            self._send(step, loss, learning_rate, step / max(now - self._started, 1e-9))

    def _send(self, step: int, loss: float, learning_rate: float, steps_per_second: float) -> None:
        server = getattr(PromptServer, "instance", None)  # there is none where nodes are run without a page
        if server is not None:
            server.send_sync(
                "traintrain.step",
                {
                    "node": self._node_id,
                    "step": step,
                    "steps": self._steps,
                    "loss": loss,
                    "learning_rate": learning_rate,
                    "steps_per_second": steps_per_second,
                    "seconds_left": (self._steps - step) / steps_per_second,
                },
            )
