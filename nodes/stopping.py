"""Stop and keep: ends a training after the current step; the workflow continues with the LoRA so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web

ROUTE = "/traintrain/stop"

_running: dict[str, bool] = {}  # node id -> whether to stop
_stops: Counter[str] = Counter()  # node id -> number of stops


@contextmanager
def stoppable(node_id: str) -> Iterator[None]:
    """Allow a node's training to be stopped until the block ends."""
    _running[node_id] = False
    try:
        yield
    finally:
        _running.pop(node_id, None)


def is_requested(node_id: str) -> bool:
    """Return whether a node's training should stop, and count the stop: call it once per step."""
    if not _running.get(node_id):
        return False
    _stops[node_id] += 1
    return True


def stop_count(node_id: str) -> int:
    """Return how often a node was stopped. A change makes ComfyUI run the node again, which then resumes the training."""
    return _stops[node_id]


async def stop_training(request: web.Request) -> web.Response:
    """Stop the training of the node that a request names: {"node": "7"}, or "2:7" in a subgraph."""
    try:
        node_id = (await request.json())["node"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return web.json_response({"error": 'Send {"node": "<id of a training node>"}.'}, status=400)
    if not isinstance(node_id, str) or node_id not in _running:
        return web.json_response({"error": "No training is running on this node."}, status=404)
    _running[node_id] = True
    return web.json_response({})
