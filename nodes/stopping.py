"""Stop and keep: a training ends after the step in hand, and the graph goes on with the LoRA so far."""

from __future__ import annotations

from collections import Counter

from aiohttp import web

from ..trainer.loop import StopTraining

ROUTE = "/traintrain/stop"

_running: dict[str, bool] = {}  # node id -> whether it is asked to stop
_stops: Counter[str] = Counter()  # node id -> how often it was stopped


def begin(node_id: str) -> None:
    """Let a node's training be stopped from now on."""
    _running[node_id] = False


def end(node_id: str) -> None:
    """Forget a node's training, which has ended."""
    _running.pop(node_id, None)


def check(node_id: str) -> None:
    """Raise StopTraining if the node is asked to stop."""
    if _running.get(node_id):
        _stops[node_id] += 1
        raise StopTraining


def count(node_id: str) -> int:
    """Return how often a node was stopped. The host takes its result anew when that changes, so the training goes on."""
    return _stops[node_id]


async def answer(request: web.Request) -> web.Response:
    """Stop the training of the node that the request names: {"node": "7"}, or "2:7" inside a subgraph."""
    try:
        node_id = (await request.json())["node"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return web.json_response({"error": 'Send {"node": "<id of a training node>"}.'}, status=400)
    if not isinstance(node_id, str) or node_id not in _running:
        return web.json_response({"error": "No training runs on this node."}, status=404)
    _running[node_id] = True
    return web.json_response({})
