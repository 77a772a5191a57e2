"""Bad input: a share of what `tools.fuzz` tries, and that it would see what goes wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import HOST
from hypothesis import strategies as st
from pack.nodes import NODES
from pack.tools.fuzzing.bad_graphs import prepare
from pack.tools.fuzzing.campaign import KINDS, smallest_failure, try_kind
from pack.tools.fuzzing.case import Case, Watch, run_case
from pack.tools.fuzzing.sandbox import Sandbox
from pack.tools.fuzzing.wiring import Loaded, Wired
from pack.tools.runner import run_workflow

QUICK = {"captions": 15, "LoRA files": 70, "states": 30, "node values": 70, "images": 40, "workflows": 25, "routes": 50}
TAKEN = {"states"}  # one that is damaged is passed over


@pytest.fixture(scope="module")
def sandbox(shapes, server, tmp_path_factory) -> Sandbox:
    return Sandbox(tmp_path_factory.mktemp("fuzz").resolve(), shapes, server)


@pytest.fixture(scope="module")
def watch(sandbox) -> Watch:
    return sandbox.watch()


@pytest.mark.parametrize("kind", KINDS)
def test_bad_input_is_refused_in_a_sentence_or_taken_and_harms_nothing(sandbox, kind):
    results = try_kind(sandbox, kind, QUICK[kind], seed=1, memory=HOST / "fuzz")
    assert not smallest_failure(results)
    assert len(results) >= QUICK[kind] and any(not result.refusal for result in results)
    assert kind in TAKEN or any(result.refusal for result in results)


def test_a_failure_is_shrunk_to_its_smallest_input_and_is_tried_first_the_next_time(sandbox, monkeypatch, tmp_path):
    def raises_from(number: int) -> None:
        if number >= 7:
            raise KeyError(number)

    numbers = st.integers(0, 10**6).map(lambda n: Case("x", str(n), (), lambda: raises_from(n)))
    monkeypatch.setitem(KINDS, "numbers", (lambda _: numbers, 0.0))
    (failure,) = smallest_failure(try_kind(sandbox, "numbers", 50, 1, tmp_path))
    assert failure.startswith("x: 7: raised by accident")
    assert try_kind(sandbox, "numbers", 50, 2, tmp_path)[0].case.name == "7"


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.__name__)
def test_every_node_is_tried_and_runs_with_what_its_schema_says(sandbox, node):
    """So that what is refused is the bad value and not the rest."""
    with sandbox.in_host():
        prepare(sandbox)
        loaded = Loaded(sandbox)
        with sandbox.until_first_step():
            loaded.run(node, loaded.inputs(node))
    run_workflow(sandbox.server, Wired(node).graph)


def fail(error: Exception):
    def run():
        raise error

    return run


@pytest.mark.parametrize(
    "error, seen",
    [
        (KeyError("x.png"), "raised by accident"),
        (TypeError("x.png is wrong."), "raised by accident"),
        (RecursionError("x.png is wrong."), "raised by accident"),
        (ValueError("x.png"), "no sentence"),
        (ValueError('x.png: Traceback (most recent call last):\n  File "a.py", line 3.'), "no sentence"),
        (ValueError("It is wrong."), "without x.png"),
        (ValueError("x.png is wrong.\nand more"), "lines that are no list"),
        (ValueError(f"x.png {'x' * 5000}."), "too long"),
        (ValueError("x.png is wrong."), ""),
        (ValueError("Files are wrong.\n- x.png: it is wrong"), ""),
    ],
)
def test_a_refusal_that_is_no_sentence_with_a_name_is_seen(watch, error, seen):
    failure = run_case(Case("x", "x", ("x.png",), fail(error)), watch).failure
    assert seen in failure and bool(failure) == bool(seen)


@pytest.mark.parametrize(
    "harm",
    [
        lambda base: (base / "stray.txt").write_text("x"),
        lambda base: (base / "stray").mkdir(),
        lambda base: (base / "input" / "a.txt").rename(base / "a.txt"),
        lambda base: (base / "secret" / "secret.txt").read_text(),
        lambda base: (base / "input" / "link.txt").read_text(),
    ],
)
def test_a_file_that_is_written_outside_or_read_in_secret_is_seen(sandbox, watch, harm):
    (sandbox.base / "input" / "a.txt").write_text("x")
    link = Path(sandbox.base / "input" / "link.txt")
    link.unlink(missing_ok=True)
    link.symlink_to(sandbox.base / "secret" / "secret.txt")
    assert run_case(Case("x", "x", (), lambda: harm(sandbox.base)), watch).failure


def test_what_stays_inside_is_no_failure(sandbox, watch):
    path = sandbox.base / "output" / "a.txt"
    assert run_case(Case("x", "x", (), lambda: (path.write_text("x"), path.read_text())), watch).failure == ""


def test_half_a_letter_is_named_as_it_can_be_written(watch):
    half = "\ud800"
    assert run_case(Case("x", "x", (half,), fail(ValueError(f"There is no {half!r}."))), watch).failure == ""


def test_what_takes_too_long_is_seen(watch, monkeypatch):
    monkeypatch.setattr("pack.tools.fuzzing.case.LIMIT", -1.0)
    assert "seconds" in run_case(Case("x", "x", (), lambda: None), watch).failure
