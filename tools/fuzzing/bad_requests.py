"""Requests to the pack's own routes that no page would send."""

from __future__ import annotations

import json

from hypothesis import strategies as st

from ..errors import ToolError
from ..server import Server
from .bad_values import words
from .case import Case, Refused
from .sandbox import Sandbox

ROUTES = ("stop", "trainings", "waiting", "folders", "thumbnails", "blocks")
TYPES = ("application/json", "text/plain", "application/json; charset=none", "multipart/form-data", "", "x" * 2000)
REFUSED = 400, 403, 404, 405, 413, 415  # in the words of HTTP
KEYS = st.sampled_from(("node", "folder", "name", "x", ""))
VALUES = words() | st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words(), inner, max_size=3),
)
JSON = st.builds(json.dumps, st.dictionaries(KEYS, VALUES, max_size=2) | VALUES)
BODIES = st.one_of(
    JSON.map(str.encode),
    JSON.map(lambda text: text[:-1].encode()),
    JSON.map(lambda text: text.encode("utf-16")),
    st.builds(
        bytes.__mul__, st.sampled_from((b"[", b'{"node":', b'{"folder":[')), st.sampled_from((10, 1000, 100_000))
    ),
    st.builds(lambda key, length: json.dumps({key: "x" * length}).encode(), KEYS, st.sampled_from((10**5, 10**7))),
    st.binary(max_size=2000),
)


def cases(sandbox: Sandbox) -> st.SearchStrategy[Case]:
    """Return inputs: a request with any method, body and type."""

    def make(route: str, method: str, body: bytes, kind: str) -> Case:
        name = f"{method} {route} {kind[:30]} {body[:40]!r}"
        return Case("routes", name, ("Send", "No "), lambda: _send(sandbox.server, route, method, body, kind))

    methods = st.just("POST") | st.sampled_from(("POST", "GET", "PUT", "DELETE", "X"))
    return st.builds(make, st.sampled_from(ROUTES), methods, BODIES, st.sampled_from(TYPES))


def _send(server: Server, route: str, method: str, body: bytes, kind: str) -> None:
    try:
        status, text = server.request(method, f"/traintrain/{route}", body, kind)
    except ToolError:  # the host does not read a body to its end that it refuses
        raise Refused("ValueError", "No answer but a closed connection.") from None
    if status >= 400:
        raise Refused("ValueError" if status in REFUSED else f"HTTP {status}", _sentence(text))


def _sentence(text: bytes) -> str:
    try:
        return json.loads(text)["error"]
    except (ValueError, LookupError, TypeError):
        return "No route of ours has answered."
