"""What a person at the page sees before a training begins: what is prepared, and what it waits for in the queue."""

from __future__ import annotations

import json

import pytest
from pack.tools.page import BLANK, ComfyPage, Node
from pack.tools.shapes import shape_pairs, star_images
from page_fixtures import STATUS_LINE, new_seed

pytestmark = pytest.mark.one_canvas("nodes 2.0")
NODE, COPY, DIFFERENCE = "TrainTrain_TrainLoRA", "TrainTrain_TrainCopyMachine", "TrainTrain_TrainDifference"
# Keeps each text that the status line of a node has had, in the order they came.
WATCH = """(node) => {
    const line = node.widgets.find((w) => w.name === "training").element.querySelector(".traintrain-metrics");
    node.seen = [line.textContent];
    new MutationObserver(() => node.seen.push(line.textContent)).observe(line, { childList: true, characterData: true });
}"""


@pytest.fixture
def train(page) -> Node:
    """The first template on the page, with a training that takes a while."""
    star_images.write(page.server.base / "input" / "purple_star")
    page.load_template("1_Train_a_LoRA")
    return page.find(NODE).set(steps=400, batch_size=1, seed=new_seed(page))


def wait_for_words(page: ComfyPage, name: str, *parts: str, timeout: float = 60) -> None:
    """Wait until the status line of a node has all of these parts."""
    script = f"([name, parts]) => parts.every((part) => ({STATUS_LINE})(findNodes(name)[0].node).includes(part))"
    page.wait_for(script, [name, parts], timeout)


def send(page: ComfyPage, node: Node, **message) -> None:
    """Send an event to the page as if the server had done."""
    message = {"workflow": page.evaluate("() => app.rootGraph.id"), "node": node.path, **message}
    page.evaluate(
        "(detail) => app.api.dispatchEvent(new CustomEvent('traintrain.prepare', { detail }))",
        message,
    )


def test_what_is_prepared_is_said_until_the_first_step(page, train):
    train.evaluate(WATCH)
    prompt = page.queue()
    page.wait_for_event("traintrain.step", 1)
    wait_for_words(page, NODE, "of 400")
    seen = train.evaluate("(node) => node.seen")
    first = {text: seen.index(text) for text in reversed(seen)}
    stages = ["looking for an earlier result", "loading the model", "computing the first step"]
    assert [text for text in first if text in stages][::-1] == stages, seen
    assert any(text.startswith("encoding images: 0 of ") for text in seen), seen
    page.evaluate("() => app.api.interrupt(null)")
    page.wait_until_done(prompt)


@pytest.mark.parametrize(
    "locale, said",
    [("en", "encoding images: 12 of 60"), ("ja", "画像をエンコード中: 12/60"), ("zh", "正在编码图片：12/60")],
)
def test_a_stage_is_said_with_its_count_in_three_languages(page, train, locale, said):
    page.evaluate("(locale) => app.extensionManager.setting.set('Comfy.Locale', locale)", locale)
    try:
        page.load(page.serialize())
        train = page.find(NODE)
        idle = train.evaluate(STATUS_LINE)
        send(page, train, stage="images", done=12, total=60)
        assert train.evaluate(STATUS_LINE) == said != idle
        send(page, train, stage=None)
        assert train.evaluate(STATUS_LINE) == idle
    finally:
        page.evaluate("() => app.extensionManager.setting.set('Comfy.Locale', 'en')")


def test_a_preparation_that_fails_is_not_said_any_longer(page, train):
    page.evaluate("(name) => app.rootGraph.remove(findNodes(name)[0].node)", "TrainTrain_CompareLoRAs")
    train.evaluate("(node) => { node.properties.traintrain = undefined; }")
    train.set(shuffle_tags=True, keep_tags=1000)  # leaves nothing to shuffle
    train.evaluate(WATCH)
    page.wait_until_done(page.queue())
    page.wait_for("(name) => findNodes(name)[0].node.seen.includes('looking for an earlier result')", NODE)
    page.wait_for(f"(name) => ({STATUS_LINE})(findNodes(name)[0].node).startsWith('The loss chart appears')", NODE)


def test_a_page_opened_while_images_are_encoded_says_so(page, train):
    answer = {"workflow": train.evaluate("(node) => node.graph.id"), "node": train.path, "stage": "images"}
    kept = page.serialize()
    page.load(BLANK)
    page.page.route(
        "**/traintrain/trainings",
        lambda route: route.fulfill(json={"trainings": [], "preparing": {**answer, "done": 3, "total": 9}}),
    )
    page.load(kept)
    wait_for_words(page, NODE, "encoding images: 3 of 9")
    page.page.unroute("**/traintrain/trainings")


def test_trainings_that_are_queued_say_what_is_before_them_and_when_they_start(page, train):
    first = page.queue()
    page.wait_for_event("traintrain.step", 3)
    train.set(seed=new_seed(page))
    page.queue()
    wait_for_words(page, NODE, " left", "1 more in the queue")
    train.set(seed=new_seed(page), steps=6000)
    page.queue()
    wait_for_words(page, NODE, " left", "2 more in the queue")

    waiting = page.serialize()
    waiting["id"] = "another"
    page.load(waiting)  # as in another tab: the same node is on the canvas of a workflow that is not queued
    assert "queue" not in page.find(NODE).evaluate(STATUS_LINE)
    page.find(NODE).set(seed=new_seed(page), steps=400)
    page.queue()
    wait_for_words(page, NODE, "waiting: 3 trainings before it", "starts in about ", "takes about ")
    page.server.post("/queue", {"clear": True})
    page.wait_for(f"(name) => !({STATUS_LINE})(findNodes(name)[0].node).includes('waiting')", NODE)
    page.evaluate("() => app.api.interrupt(null)")
    page.wait_until_done(first)


def test_a_training_waits_for_another_in_the_same_workflow(page):
    shape_pairs.write(page.server.base / "input")
    page.load_template("7_Copy_machine_and_difference")
    for name in (COPY, DIFFERENCE):
        page.find(name).set(steps=400, batch_size=1, seed=new_seed(page))
    prompt = page.queue()
    wait_for_words(page, DIFFERENCE, "waiting: 1 training before it", "starts in about ")
    wait_for_words(page, COPY, "of 400", " left")
    page.find(COPY).evaluate("(node) => node.widgets.find((w) => w.name === 'stop_and_keep').callback()")
    wait_for_words(page, DIFFERENCE, "of 400", " left")
    page.evaluate("() => app.api.interrupt(null)")
    page.wait_until_done(prompt)
    assert json.dumps(page.serialize()).find("waiting:") == -1, "what waits is not saved with the workflow"
