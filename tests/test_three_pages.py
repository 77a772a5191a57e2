"""Three browsers at one ComfyUI: each sees every training, and whoever ends one, all have the right state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from pack.tools.page import CANVASES, ComfyPage
from test_load import SLOWEST, pulse  # noqa: F401

NODE, STEPS = "TrainTrain_TrainILECO", 100_000
SHOWS = """([name, text]) => findNodes(name)[0].node.widgets.find((w) => w.name === "training")
    .element.querySelector(".traintrain-metrics").textContent.includes(text)"""


@pytest.fixture
def pages(browser, server) -> Iterator[list[ComfyPage]]:
    """Three pages of three users, the second one on the other canvas, with the same workflow."""
    with ExitStack() as stack:
        opened = [
            ComfyPage(stack.enter_context(browser.new_context()).new_page(), server, CANVASES[number % 2])
            for number in range(3)
        ]
        opened[0].load_template("3_Replace_a_concept_iLECO")
        workflow = opened[0].serialize()
        for page in opened:
            page.load(workflow)
            page.record("traintrain.end")
            page.find("TrainTrain_CompareLoRAs").set(steps=1, strengths="1")
        yield opened
        server.post("/queue", {"clear": True})
        server.post("/interrupt", {})
        assert [page.our_errors() for page in opened] == [[], [], []]


def queue(page: ComfyPage, seed: int) -> str:
    page.find(NODE).set(steps=STEPS, batch_size=1, seed=seed)
    return page.queue()


def all_show(pages: list[ComfyPage], text: str) -> None:
    for page in pages:
        page.wait_for(SHOWS, [NODE, text], timeout=60)


def stop(page: ComfyPage) -> None:
    page.find(NODE).evaluate("(node) => node.widgets.find((w) => w.name === 'stop_and_keep').callback()")


def cancel(page: ComfyPage) -> None:
    page.evaluate("() => app.api.interrupt()")


def test_all_see_a_training_and_what_any_of_them_does_to_it(pages, server, pulse):  # noqa: F811
    first, second, third = pages
    queued = [queue(first, 501), queue(second, 502), queue(first, 503)]
    all_show(pages, f"of {STEPS}")
    ends = []
    for act, actor in ((stop, third), (cancel, first), (stop, second)):
        seen = [len(page.events("traintrain.step")) for page in pages]
        for page, count in zip(pages, seen):
            page.wait_for_event("traintrain.step", count + 2)
        act(actor)
        told = [page.wait_for_event("traintrain.end", len(ends) + 1) for page in pages]
        assert told[0] == told[1] == told[2] and not told[0]["running"]
        ends.append(told[0])
    states = [first.wait_until_done(prompt)["status"]["status_str"] for prompt in queued]
    assert states == ["success", "error", "success"]  # to the host what was cancelled is an error
    assert len({end["run"] for end in ends}) == 3
    all_show(pages, f"stopped at step {ends[-1]['step']} of {STEPS}")
    assert not pulse.failure and pulse.worst < SLOWEST, (pulse.failure, pulse.worst)
    print(f"slowest answer {pulse.worst:.2f} s of {pulse.asked}")
