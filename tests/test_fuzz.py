"""Bad input by a seed: a share of what `tools.fuzz` tries, and that it would see what goes wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from pack.tools.fuzz.case import Case, Watch, run_case
from pack.tools.fuzz.run import KINDS, try_kind
from pack.tools.fuzz.world import World

QUICK = {
    "captions": 13,
    "LoRA files": 70,
    "states": 40,
    "node values": 70,
    "pictures": 40,
    "workflows": 20,
    "routes": 50,
}
TAKEN = {"states"}  # one that is damaged is passed over


@pytest.fixture(scope="module")
def world(shapes, server, tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("fuzz").resolve(), shapes, server)


@pytest.fixture(scope="module")
def watch(world) -> Watch:
    return world.watch()


@pytest.mark.parametrize("kind", KINDS)
def test_bad_input_is_refused_in_a_sentence_or_taken_and_harms_nothing(world, kind):
    results = try_kind(world, kind, QUICK[kind], seed=1)
    failed = [f"{result.case.name}: {result.failure}" for result in results if result.failure]
    assert not failed, "\n".join(failed)
    assert len(results) == QUICK[kind] and any(not result.refusal for result in results)
    assert kind in TAKEN or any(result.refusal for result in results)


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
def test_a_file_that_is_written_outside_or_read_in_secret_is_seen(world, watch, harm):
    (world.base / "input" / "a.txt").write_text("x")
    link = Path(world.base / "input" / "link.txt")
    link.unlink(missing_ok=True)
    link.symlink_to(world.base / "secret" / "secret.txt")
    assert run_case(Case("x", "x", (), lambda: harm(world.base)), watch).failure


def test_what_stays_inside_is_no_failure(world, watch):
    path = world.base / "output" / "a.txt"
    assert run_case(Case("x", "x", (), lambda: (path.write_text("x"), path.read_text())), watch).failure == ""


def test_half_a_letter_is_named_as_it_can_be_written(watch):
    half = "\ud800"
    assert run_case(Case("x", "x", (half,), fail(ValueError(f"There is no {half!r}."))), watch).failure == ""


def test_what_takes_too_long_is_seen(watch, monkeypatch):
    monkeypatch.setattr("pack.tools.fuzz.case.LIMIT", -1.0)
    assert "seconds" in run_case(Case("x", "x", (), lambda: None), watch).failure
