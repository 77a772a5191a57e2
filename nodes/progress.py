"""Tells the page how a training goes."""

from __future__ import annotations

import logging
import time

import comfy.model_management
import comfy.utils
from server import PromptServer

from . import stopping

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_EVENTS = 0.25  # a page cannot show more, and every message costs the training a little


class TrainingProgress:
    """Shows a training on its node: the bar, and a `traintrain.step` event. Called once a step.

    Raises the host's InterruptProcessingException when the user cancels, StopTraining when the user stops it to keep it.
    """

    def __init__(self, node: type, steps: int) -> None:
        self._node_id, self._steps = node.hidden.unique_id, steps
        self._network_id = _wired_from(node.hidden.prompt or {}, self._node_id, "network")
        self._bar = comfy.utils.ProgressBar(steps, node_id=self._node_id)
        self._started = self._last_event = time.monotonic()
        self._done = 0

    def begin(self, layers: int, parameters: int, done: int) -> None:
        """Say how large the LoRA is, in the log and on the node that chose it."""
        text = f"{layers} layers, {parameters:,} parameters"
        logger.info("The LoRA has %s%s.", text, f" and goes on from step {done}" if done else "")
        server = getattr(PromptServer, "instance", None)
        if server is not None:
            server.send_progress_text(text, self._network_id or self._node_id)
        self._started, self._done = time.monotonic(), done

    def __call__(self, step: int, loss: float, learning_rate: float) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        stopping.check(self._node_id)
        now = time.monotonic()
        self._bar.update_absolute(step, self._steps)
        if now - self._last_event >= SECONDS_BETWEEN_EVENTS or step in (1, self._steps):
            self._last_event = now
            self._send(step, loss, learning_rate, (step - self._done) / max(now - self._started, 1e-9))

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


def _wired_from(prompt: dict[str, dict], node_id: str, name: str) -> str | None:
    """Return the id of the node that is wired into an input, if one is."""
    link = prompt.get(node_id, {}).get("inputs", {}).get(name)
    return link[0] if isinstance(link, list) else None
