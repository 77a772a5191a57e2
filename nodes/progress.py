"""Tells the page how a training goes, and remembers it for pages that are opened later."""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from aiohttp import web
from server import PromptServer

from ..trainer.history import History, LossCurve
from . import stopping
from .results import SMOOTHING, TrainingResults

ROUTE = "/traintrain/trainings"
STEP, END, NETWORK = "traintrain.step", "traintrain.end", "traintrain.network"  # events
SECONDS_BETWEEN_EVENTS = 0.25  # a page cannot show more, and every message costs the training a little
REMEMBERED = 50  # trainings, each with what its node shows

logger = logging.getLogger(__name__)

_shown: dict[tuple, dict[str, Any]] = {}  # (workflow, node) -> the last message


class TrainingProgress:
    """Shows a training on its node: the bar, the figures, the curve of the loss, samples. Called once a step.

    Raises the host's InterruptProcessingException when the user cancels, StopTraining when the user stops it to keep it.
    """

    def __init__(self, node: type, steps: int, results: TrainingResults) -> None:
        self._node_id, self._steps, self._results = node.hidden.unique_id, steps, results
        self._network_id = _wired_from(node.hidden.prompt or {}, self._node_id, "network")
        self._workflow = _workflow_id(getattr(node.hidden, "extra_pnginfo", None))
        self._bar = comfy.utils.ProgressBar(steps, node_id=self._node_id)
        self._curve, self._last_losses = LossCurve(), deque(maxlen=SMOOTHING)
        self._samples: list[dict[str, Any]] = []
        self._figures: dict[str, Any] = {"step": 0}
        self._highest_rate = 0.0
        self._started = self._last_event = time.monotonic()
        self._done = 0

    def begin(self, layers: int, parameters: int, blocks: list[str], history: History) -> None:
        """Say how large the LoRA is, in the log and on the node that chose it, and what is done already."""
        text = f"{layers} layers, {parameters:,} parameters"
        logger.info("The LoRA has %s%s.", text, f" and goes on from step {len(history)}" if len(history) else "")
        server = _server()
        if server is not None:
            server.send_progress_text(text, self._network_id or self._node_id)
            if self._network_id:
                server.send_sync(NETWORK, {"workflow": self._workflow, "node": self._network_id, "blocks": blocks})
        self._take_in(history)
        self._started, self._done = time.monotonic(), len(history)

    def __call__(self, step: int, loss: float, learning_rate: float) -> None:
        self._add(step, loss, learning_rate)
        comfy.model_management.throw_exception_if_processing_interrupted()
        stopping.check(self._node_id)
        now = time.monotonic()
        self._bar.update_absolute(step, self._steps)
        if now - self._last_event >= SECONDS_BETWEEN_EVENTS or step in (1, self._steps):
            self._last_event = now
            self._send(STEP)

    def show(self, step: int, samples: torch.Tensor) -> None:
        """Keep samples and show them. A training of hours shall not end for a file of them."""
        try:
            self._results.keep_samples(step, samples)
        except OSError as error:
            logger.warning("The samples of step %d are not kept: %s", step, error)
        self._find_samples()
        self._send(STEP)

    def end(self) -> None:
        """Say that the training has ended, however it did."""
        self._send(END)

    def recall(self, history: History) -> None:
        """Show a training that was done before."""
        self._take_in(history)
        self._started = None
        self._send(END)

    def _take_in(self, history: History) -> None:
        for step, (loss, rate) in enumerate(zip(history.losses, history.learning_rates), 1):
            self._add(step, loss, rate)
        self._find_samples()

    def _find_samples(self) -> None:
        """Look for the samples of the steps that are done; later ones are of a training whose LoRA is gone."""
        self._samples = [sample for sample in self._results.samples() if sample["step"] <= self._figures["step"]]

    def _add(self, step: int, loss: float, learning_rate: float) -> None:
        self._curve.add(loss)
        self._last_losses.append(loss)
        self._highest_rate = max(self._highest_rate, learning_rate)
        self._figures = {"step": step, "loss": loss, "learning_rate": learning_rate}

    def _send(self, event: str) -> None:
        message = {
            "workflow": self._workflow,
            "node": self._node_id,
            "run": self._results.fingerprint,
            "name": self._results.name,
            "running": event == STEP,
            "steps": self._steps,
            **self._figures,
            **self._pace(),
            "highest_learning_rate": self._highest_rate,
            "curve": self._curve.points(),
            "samples": self._samples,
        }
        if self._last_losses:
            message["smoothed_loss"] = sum(self._last_losses) / len(self._last_losses)
        _remember(message)
        server = _server()
        if server is not None:
            server.send_sync(event, message)

    def _pace(self) -> dict[str, float]:
        """Say how fast it goes, where it went at all."""
        done = self._figures["step"] - self._done
        if self._started is None or not done:
            return {}
        seconds = max(time.monotonic() - self._started, 1e-9)
        left = (self._steps - self._figures["step"]) * seconds / done
        return {"seconds": seconds, "steps_per_second": done / seconds, "seconds_left": left}


async def answer(_: web.Request) -> web.Response:
    """Give what the nodes of the latest trainings show."""
    return web.json_response({"trainings": list(_shown.values())})


def _remember(message: dict[str, Any]) -> None:
    key = message["workflow"], message["node"]
    _shown.pop(key, None)
    _shown[key] = message
    while len(_shown) > REMEMBERED:
        del _shown[next(iter(_shown))]


def _server() -> PromptServer | None:
    return getattr(PromptServer, "instance", None)  # there is none where nodes are run without a page


def _workflow_id(sent: Any) -> str | None:
    """Return the id of the workflow that was sent along with a prompt. Any client sends what it likes."""
    workflow = sent.get("workflow") if isinstance(sent, dict) else None
    name = workflow.get("id") if isinstance(workflow, dict) else None
    return name if isinstance(name, str) else None


def _wired_from(prompt: dict[str, dict], node_id: str, name: str) -> str | None:
    """Return the id of the node that is wired into an input, if one is."""
    link = prompt.get(node_id, {}).get("inputs", {}).get(name)
    return link[0] if isinstance(link, list) else None
