"""Shows the progress of trainings on the page, and keeps it for pages that are opened later."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from contextlib import contextmanager
from typing import Any, Iterator

import comfy.model_management
import comfy.utils
from aiohttp import web

from ..trainer.history import History, LossCurve
from ..trainer.run import Step
from . import host, pace, page_events, preparing
from .run_store import SMOOTHING, RunStore

ROUTE = "/traintrain/trainings"
STEP, END, NETWORK = "traintrain.step", "traintrain.end", "traintrain.network"  # events
REMEMBERED = 50  # trainings
MOST_POINTS = 200  # of the validation's curve

logger = logging.getLogger(__name__)

_shown: dict[tuple, dict[str, Any]] = {}  # (workflow, node) -> the last message


class TrainingProgress:
    """Shows a training on its node: progress bar, metrics, loss curve and samples.

    origin: what of a connected LoRA the training starts from; see Start
    """

    origin = ""

    def __init__(self, node: type, steps: int, store: RunStore) -> None:
        self._node_id, self._steps, self._store = node.hidden.unique_id, steps, store
        self._network_id = _wired_from(node.hidden.prompt or {}, self._node_id, "network")
        self._kind = pace.kind_of(node.hidden.prompt or {}, self._node_id)
        self._workflow = page_events.workflow_id(getattr(node.hidden, "extra_pnginfo", None))
        self._bar = comfy.utils.ProgressBar(steps, node_id=self._node_id)
        self._curve, self._last_losses = LossCurve(), deque(maxlen=SMOOTHING)
        self._samples: list[dict[str, Any]] = []
        self._history = History()
        self._metrics: dict[str, Any] = {"step": 0}
        self._highest_rate, self._last_loss, self._skipped = 0.0, 0.0, 0
        self._started = self._last_event = time.monotonic()
        self._done = 0
        self._size: dict[str, int] = {}

    def begin(self, session: host.Session) -> None:
        """Show the size of the LoRA, on its LoRA Network node if it has one, and the steps of a resumed training."""
        layers, parameters = session.size
        done = len(session.history)
        resumes = f" and training resumes after step {done}" if done else ""
        logger.info("The LoRA has %d layers, %s parameters%s.", layers, f"{parameters:,}", resumes)
        size = {"layers": layers, "parameters": parameters}
        if self._network_id:
            shown = {"workflow": self._workflow, "node": self._network_id, "blocks": session.blocks}
            page_events.send(NETWORK, shown | size)
        else:
            self._size = size
        self._replay(session.history)
        self._started, self._done = time.monotonic(), done

    def report(self, step: Step) -> None:
        """Show a finished step. Raises ComfyUI's InterruptProcessingException if the user has cancelled."""
        self._add(step.number, step.loss, step.learning_rate, step.skipped)
        comfy.model_management.throw_exception_if_processing_interrupted()
        now = time.monotonic()
        self._bar.update_absolute(step.number, self._steps)
        if now - self._last_event >= page_events.SECONDS_BETWEEN_EVENTS or step.number in (1, self._steps):
            self._last_event = now
            self._send(STEP)

    def validate(self, step: Step, loss: float | None) -> None:
        """Show the validation loss after a step, if it was measured."""
        if loss is not None:
            logger.info("Validation loss after step %d: %.6g.", step.number, loss)
            self._history.validation[step.number] = loss
            self._send(STEP)

    def show(self, step: Step, samples: list[host.Sample] | None) -> None:
        """Save samples and show them, if there are any. Saving may fail without ending the training."""
        if samples is None:
            return
        try:
            self._store.save_samples(step.number, samples)
        except OSError as error:
            logger.warning("The samples of step %d could not be saved: %s", step.number, error)
        self._find_samples()
        self._send(STEP)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the training until the block ends, and then, however it ends, that it has ended."""
        try:
            yield
        finally:
            self._send(END)
            best = self._history.best_step()
            if best is not None:
                logger.info("The validation loss was lowest after step %d: %.6g.", best, self._history.validation[best])

    def recall(self, history: History) -> None:
        """Show an earlier training that is loaded from disk."""
        self._replay(history)
        self._started = None
        self._send(END)

    def _replay(self, history: History) -> None:
        skipped, self._history.validation = set(history.skipped), dict(history.validation)
        for step, (loss, rate) in enumerate(zip(history.losses, history.learning_rates), 1):
            self._add(step, loss, rate, step in skipped)
        self._find_samples()

    def _find_samples(self) -> None:
        """Find the samples up to the current step; later ones are from a training whose LoRA has been deleted."""
        self._samples = [sample for sample in self._store.samples() if sample["step"] <= self._metrics["step"]]

    def _add(self, step: int, loss: float, learning_rate: float, skipped: bool) -> None:
        if math.isfinite(loss):  # JSON has no NaN or Inf
            self._last_loss = loss
            self._last_losses.append(loss)
        self._curve.add(self._last_loss)
        self._skipped += skipped
        self._highest_rate = max(self._highest_rate, learning_rate)
        metrics = {"step": step, "loss": self._last_loss, "learning_rate": learning_rate}
        self._metrics = metrics | ({"skipped": self._skipped} if self._skipped else {})

    def _send(self, event: str) -> None:
        message = {
            "workflow": self._workflow,
            "node": self._node_id,
            "run": self._store.fingerprint,
            "name": self._store.name,
            "running": event == STEP,
            "steps": self._steps,
            **self._metrics,
            **self._size,
            "origin": self.origin,
            "resumed_at": self._done,
            **self._pace(),
            "highest_learning_rate": self._highest_rate,
            "curve": self._curve.points(),
            "samples": self._samples,
        }
        if self._last_losses:
            message["smoothed_loss"] = sum(self._last_losses) / len(self._last_losses)
        message |= self._validation()
        _remember(message)
        preparing.finish()
        page_events.send(event, message)

    def _validation(self) -> dict[str, Any]:
        """Return the curve of the validation and its lowest point, if there is one."""
        best = self._history.best_step()
        if best is None:
            return {}
        points = [point for point in sorted(self._history.validation.items()) if math.isfinite(point[1])]
        every = math.ceil(len(points) / MOST_POINTS)
        return {"validation": points[::-every][::-1], "best_step": best, "best_loss": self._history.validation[best]}

    def _pace(self) -> dict[str, float]:
        """Return speed and remaining time, once a step is done."""
        done = self._metrics["step"] - self._done
        if self._started is None or not done:
            return {}
        seconds = max(time.monotonic() - self._started, 1e-9)
        pace.note(self._kind, seconds / done)
        left = (self._steps - self._metrics["step"]) * seconds / done
        return {"seconds": seconds, "steps_per_second": done / seconds, "seconds_left": left}


class SamplingProgress:
    """Shows on a node how far the sampling of several images is."""

    def __init__(self, node_id: str, count: int, steps: int) -> None:
        self._steps, self._done = steps, 0
        self._bar = comfy.utils.ProgressBar(count * steps, node_id=node_id)

    def step(self, step: int, *_: object) -> None:
        """Show a step of the current image; the callback for ComfyUI's samplers."""
        self._bar.update_absolute(self._done + min(step + 1, self._steps))

    def end_image(self) -> None:
        """Show that an image is done.

        Raises ComfyUI's InterruptProcessingException if the user has cancelled.
        """
        comfy.model_management.throw_exception_if_processing_interrupted()
        self._done += self._steps
        self._bar.update_absolute(self._done)


async def send_trainings(_: web.Request) -> web.Response:
    """Send what the nodes of the latest trainings show, and what is being prepared."""
    return web.json_response({"trainings": list(_shown.values()), "preparing": preparing.current()})


def seconds_left(workflow: str | None, node_id: str) -> float | None:
    """Return how many seconds the training that runs on a node still takes, or None if that is unknown."""
    message = _shown.get((workflow, node_id), {})
    return message.get("seconds_left") if message.get("running") else None


def _remember(message: dict[str, Any]) -> None:
    key = message["workflow"], message["node"]
    _shown.pop(key, None)
    _shown[key] = message
    while len(_shown) > REMEMBERED:
        del _shown[next(iter(_shown))]


def _wired_from(prompt: dict[str, dict], node_id: str, name: str) -> str | None:
    """Return the id of the node that is connected to an input, or None."""
    link = prompt.get(node_id, {}).get("inputs", {}).get(name)
    return link[0] if isinstance(link, list) else None
