"""ComfyUI's page for the tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pack.tools.browser import find_browser
from pack.tools.page import BLANK, CANVASES, OPTIONS, ComfyPage

# What the panel of a training node says in its first line.
STATUS_LINE = (
    "(node) => node.widgets.find((w) => w.name === 'training').element.querySelector('.traintrain-metrics').textContent"
)


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium. Not for the whole session: while playwright runs, asyncio.run of other files' tests fails."""
    from playwright.sync_api import sync_playwright

    program = find_browser(Path(sys.executable))
    assert program, "There is no Chromium: python3 dev.py test installs one."
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=program, args=OPTIONS) as running:
        yield running


@pytest.fixture(scope="module", params=CANVASES)
def canvas(request) -> str:
    """Each of ComfyUI's two canvases."""
    return request.param


@pytest.fixture(scope="module")
def shared_page(browser, server, canvas) -> Iterator[ComfyPage]:
    """One page for all tests of a file and a canvas: opening it takes four seconds."""
    assert server.get("/object_info/TrainTrain_TrainLoRA"), f"ComfyUI could not load the pack: {server.log}"
    with browser.new_context(viewport={"width": 1600, "height": 1000}) as context:
        yield ComfyPage(context.new_page(), server, canvas)


@pytest.fixture
def page(shared_page) -> Iterator[ComfyPage]:
    """ComfyUI's page with nothing on the canvas. After the test its queue is emptied, and no error of ours has come up."""
    shared_page.errors.clear()
    shared_page.load(BLANK)
    shared_page.evaluate("() => { recorded.length = 0; }")
    yield shared_page
    empty_queue(shared_page)
    assert not shared_page.our_errors(), shared_page.our_errors()


def empty_queue(page: ComfyPage) -> None:
    """Take out what waits, interrupt what runs, and wait until it has ended."""
    page.server.post("/queue", {"clear": True})
    while page.server.get("/queue")["queue_running"]:
        page.server.post("/interrupt", {})
        page.page.wait_for_timeout(100)


def new_seed(page: ComfyPage) -> int:
    """Return a seed that no training had: one that is on disk is not run again."""
    return page.evaluate("() => Math.floor(Math.random() * 1e9)")
