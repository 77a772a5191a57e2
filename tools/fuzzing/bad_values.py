"""Numbers, words and lists at the limits of every input of every node, and beyond."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from ...nodes import NODES
from .case import Case
from .sandbox import Sandbox
from .wiring import Loaded, plain_inputs

# What hypothesis does not think of: paths, names of devices, and what our own texts are written in.
WORDS = ("", " ", "x" * 5000, "a\0b", "\ud800", "\u732b\U0001f431", "../..", "/etc", "~", "C:\\x", "C:x")
WORDS += ("\\\\host\\share", "//host/x", "CON", "nul.txt", "a:b", "a.", "a/", "-", ",", "=", "a=b", "a=b,a=b")
WORDS += ("(" * 5000, "a=" + "[" * 5000, "a=1e999", "betas=(1,)", "weight_decay=nan", "lr=1", "eps=-1", "IN99", "-all")
WORDS += ("IN04-", "all,-all", "BASE", "{0.__class__}", "-" * 5000, "a=" + "9" * 5000, "a=" + "-" * 5000 + "1")
WORDS += ("secret", "%s%n", "nan", "None", "*", "[", "loss,loss")
NUMBERS = (0, -1, 1, 2, 7, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30)


def words() -> st.SearchStrategy[str]:
    """Return texts."""
    return st.sampled_from(WORDS) | st.text(max_size=50)


def cases(sandbox: Sandbox) -> st.SearchStrategy[Case]:
    """Return inputs: a node with one or two values that come by wire, where the host checks nothing."""
    loaded = Loaded(sandbox)

    @st.composite
    def draw_case(draw: st.DrawFn) -> Case:
        node = draw(st.sampled_from([node for node in NODES if plain_inputs(node)]))
        fields = draw(st.lists(st.sampled_from(plain_inputs(node)), min_size=1, max_size=2, unique_by=lambda f: f.id))
        values = {field.id: draw(_values(field)) for field in fields}
        name = ", ".join(f"{key}={str(value)[:30]!r}" for key, value in values.items())
        given = [str(value)[:20] for value in values.values() if isinstance(value, str) and value.strip()]
        named = (*values, *given, *(repr(word)[1:-1] for word in given), "folder", "suffix", "name", "blocks")
        return Case("node values", f"{node.__name__} {name}", named, lambda: _run(loaded, node, values))

    return draw_case()


def _run(loaded: Loaded, node: type, values: dict[str, Any]) -> None:
    with loaded.sandbox.until_first_step():
        loaded.run(node, loaded.inputs(node) | loaded.listed(node, values))


def _values(field: Any) -> st.SearchStrategy[Any]:
    """Return values of the type of an input, in its limits or not."""
    if field.io_type == "BOOLEAN":
        return st.booleans()
    if field.io_type == "INT":
        return st.sampled_from((*NUMBERS, field.min, field.max, field.min - 1, field.max + 1)) | st.integers()
    if field.io_type == "FLOAT":
        limits = field.min, field.max, field.min - 1e-6, field.max + 1e-6
        return st.sampled_from([float(limit) for limit in limits]) | st.floats()
    return st.sampled_from(field.options) | words() if getattr(field, "options", None) else words()
