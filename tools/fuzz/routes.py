"""Requests to the pack's own routes that no page would send."""

from __future__ import annotations

import http.client
import json
import random
from collections.abc import Iterator

from ..server import Server
from .case import LIMIT, Case, Refused
from .values import WORDS
from .world import World

KIND = "routes"
ROUTES = ("stop", "trainings", "folders", "thumbnails")
TYPES = ("application/json", "text/plain", "application/json; charset=none", "multipart/form-data", "", "x" * 2000)
REFUSED = 400, 403, 404, 405, 413, 415  # in the words of HTTP


def cases(world: World, rng: random.Random, count: int) -> Iterator[Case]:
    """Yield inputs: a request with any method, body and type."""
    for number in range(count):
        route, method = f"/traintrain/{rng.choice(ROUTES)}", rng.choice(("POST",) * 6 + ("GET", "PUT", "DELETE", "X"))
        body, kind = _draw(rng), rng.choice(TYPES)
        name = f"{number} {method} {route} {kind[:30]} {body[:40]!r}"
        run = lambda r=route, m=method, b=body, k=kind: _send(world.server, r, m, b, k)  # noqa: E731
        yield Case(KIND, name, ("Send", "No "), run)


def _draw(rng: random.Random) -> bytes:
    value = rng.choice((rng.choice(WORDS), rng.random(), None, True, [], {}, ["1"], {"a": 1}, 10**400, float("nan")))
    as_json = json.dumps({rng.choice(("node", "folder", "x", "")): value}).encode()
    deep = rng.choice((b"[", b'{"node":', b'{"folder":[')) * rng.choice((10, 1000, 100_000))
    large = json.dumps({rng.choice(("node", "folder")): "x" * rng.choice((10**5, 10**7))}).encode()
    noise = rng.randbytes(rng.choice((0, 1, 50, 10_000)))
    return rng.choice((as_json, as_json, deep, large, noise, as_json[:-1], as_json.decode().encode("utf-16")))


def _send(server: Server, route: str, method: str, body: bytes, kind: str) -> None:
    connection = http.client.HTTPConnection(server.address, timeout=LIMIT)
    try:
        connection.request(method, route, body, {"Content-Type": kind} if kind else {})
        answer = connection.getresponse()
        status, text = answer.status, answer.read()
    except (BrokenPipeError, ConnectionResetError):  # the host does not read a body to its end that it refuses
        raise Refused("ValueError", "No answer but a closed connection.") from None
    finally:
        connection.close()
    if status >= 400:
        kind = "ValueError" if status in REFUSED else f"HTTP {status}"
        raise Refused(kind, _sentence(text))


def _sentence(text: bytes) -> str:
    try:
        return json.loads(text)["error"]
    except (ValueError, LookupError, TypeError):
        return "No route of ours has answered."
