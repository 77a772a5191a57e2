"""A training as a person at the page sees it: the chart grows, it can be stopped and kept, nothing is lost."""

from __future__ import annotations

import json

import pytest
from pack.tools.page import BLANK, ComfyPage, Node
from pack.tools.shapes import shape_pairs, star_images
from pack.trainer.lora_file import load_lora
from page_fixtures import STATUS_LINE, new_seed

NODE = "TrainTrain_TrainLoRA"
EVENTS = ("traintrain.step", "traintrain.end", "traintrain.network", "traintrain.prepare")
KINDS = ("TrainILECO", "TrainSlider", "TrainCopyMachine", "TrainDifference", "TrainADDifT")
# Sends events of a training to the page as soon as its socket is open.
EARLY_EVENTS = """(events) => {
    const Theirs = window.WebSocket;
    window.WebSocket = class extends Theirs {
        constructor(...values) {
            super(...values);
            const send = (type) => new MessageEvent("message", { data: JSON.stringify({ type, data: { workflow: "other" } }) });
            this.addEventListener("open", () => setTimeout(() => events.forEach((type) => this.dispatchEvent(send(type)))));
        }
    };
}"""
# Removes a training node, then gives its chart another size outside of the node, and returns what is drawn.
RESIZE_AFTER_REMOVAL = """async () => {
    const { node } = findNodes("TrainTrain_TrainDifference")[0];
    const { element } = node.widgets.find((widget) => widget.name === "training");
    app.rootGraph.remove(node);
    const chart = element.querySelector(".traintrain-chart");
    chart.setAttribute("viewBox", "0 0 1 1");
    document.body.append(element);
    element.style.width = "432px";
    for (let frame = 0; frame < 3; frame++) await new Promise(requestAnimationFrame);
    element.remove();
    return chart.getAttribute("viewBox");
}"""
# Pixels between the end of a training node and that of its panel.
GAP = """(node) => {
    const { ds, canvas } = app.canvas;
    const bottom = (node.pos[1] + node.size[1] + ds.offset[1]) * ds.scale + canvas.getBoundingClientRect().top;
    const { element } = node.widgets.find((widget) => widget.name === "training");
    return (bottom - element.getBoundingClientRect().bottom) / ds.scale;
}"""
POINTS = """(node) => [...node.widgets.find((w) => w.name === "training").element.querySelectorAll("polyline")]
    .map((line) => line.getAttribute("points").split(" ").length)"""

# Keeps in `words` what the panel's first line says from now on.
RECORD_WORDS = """(node) => {
    const line = node.widgets.find((w) => w.name === "training").element.querySelector(".traintrain-metrics");
    window.words = [];
    new MutationObserver(() => words.push(line.textContent)).observe(line, { childList: true });
}"""
# Returns for each pair of samples its width in pixels and the text below it.
PAIRS = """(node) => [...node.widgets.find((w) => w.name === "training").element.querySelectorAll("figure")]
    .map((pair) => [pair.querySelector("img").naturalWidth, pair.querySelector("figcaption").textContent])"""


@pytest.fixture
def train(page) -> Node:
    """The first template on the page, with a training that takes a while; the samples after it are quick."""
    star_images.write(page.server.base / "input" / "purple_star")
    page.load_template("1_Train_a_LoRA")
    for sampler in page.find_all("TrainTrain_CompareLoRAs"):
        sampler.set(steps=1, strengths="1")
    return page.find(NODE).set(steps=400, batch_size=1, seed=new_seed(page))


def press_stop(node: Node) -> None:
    node.evaluate("(node) => node.widgets.find((w) => w.name === 'stop_and_keep').callback()")


def chart(node: Node) -> list[int]:
    """Return how many points each line of the chart has."""
    return node.evaluate(POINTS)


def watch_grow(page: ComfyPage, node: Node) -> None:
    """See the chart have more points three times."""
    for _ in range(3):
        length = max(chart(node), default=0)
        while max(chart(node), default=0) <= length:
            assert page.server.get("/queue")["queue_running"], "the training has ended and the chart has not grown"
            page.page.wait_for_timeout(100)


def wait_for_steps(page: ComfyPage, count: int) -> None:
    page.wait_for_event("traintrain.step", count, timeout=60)


def saved(page: ComfyPage, outputs: dict) -> dict[str, str]:
    """Return the metadata of the LoRA that a run has saved."""
    (path,) = outputs[page.find("TrainTrain_SaveLoRA").path]["text"]
    return load_lora(page.server.base / path).metadata


def test_the_chart_grows_until_stop_and_keep_and_stays(page, train):
    prompt = page.queue()
    wait_for_steps(page, 1)
    watch_grow(page, train)
    text = train.evaluate(STATUS_LINE)
    assert all(part in text for part in ("of 400", "loss 0.", "lr ", "step", " left")), text
    train.evaluate(RECORD_WORDS)
    press_stop(train)
    entry = page.wait_until_done(prompt)
    assert entry["status"]["status_str"] == "success"
    step = int(saved(page, entry["outputs"])["traintrain_step"])
    assert 1 <= step < 400
    assert any(shown.get("images") for shown in entry["outputs"].values())
    assert any(words.startswith("stopping after this step") for words in page.evaluate("() => words"))
    assert "stopping" not in train.evaluate(STATUS_LINE)
    assert f"stopped at step {step} of 400" in train.evaluate(STATUS_LINE)

    kept = page.serialize()
    before = chart(train)
    assert len(json.dumps(kept)) < 60_000
    page.load(BLANK)
    # Without what the server remembers:
    page.page.route("**/traintrain/trainings", lambda route: route.fulfill(json={"trainings": []}))
    page.load(kept)
    page.page.unroute("**/traintrain/trainings")
    again = page.find(NODE)
    assert chart(again) == before and f"stopped at step {step} of 400" in again.evaluate(STATUS_LINE)

    page.record("traintrain.end")
    for sampler in page.find_all("TrainTrain_CompareLoRAs"):
        sampler.set(steps=2)
    page.wait_until_done(page.queue())
    assert page.events("traintrain.step")[-1]["step"] <= step + 1, "another sampler setting must not train on"
    again.set(resume_stopped=True)
    prompt = page.queue()
    wait_for_steps(page, len(page.events("traintrain.step")) + 2)
    assert page.events("traintrain.step")[-1]["step"] > step, "it must resume where it was stopped"
    press_stop(again)
    page.wait_until_done(prompt)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.one_canvas(canvas))
        for canvas, names in {
            "classic": ["3_Replace_a_concept_iLECO", "5_Slider_from_two_prompts", "8_Compare_LoRAs"],
            "nodes 2.0": [
                "4_Erase_a_concept_iLECO",
                "6_Slider_from_two_images_ADDifT",
                "7_Copy_machine_and_difference",
            ],
        }.items()
        for name in names
    ],
)
def test_every_template_is_watched_stopped_and_ends_with_files_and_images(page, name):
    shape_pairs.write(page.server.base / "input")
    page.load_template(name)
    for sampler in page.find_all("TrainTrain_CompareLoRAs"):
        sampler.set(steps=1, strengths="1")
    nodes = {node.path: node for kind in KINDS for node in page.find_all(f"TrainTrain_{kind}")}
    for node in nodes.values():
        node.set(steps=400, batch_size=1, seed=page.evaluate("() => Math.floor(Math.random() * 1e9)"))
    page.record("traintrain.end")
    prompt = page.queue()
    for ended in range(len(nodes)):
        steps = len(page.events("traintrain.step"))
        node = nodes[page.wait_for_event("traintrain.step", steps + 1)["node"]]
        watch_grow(page, node)
        press_stop(node)
        page.wait_for_event("traintrain.end", ended + 1)
    entry = page.wait_until_done(prompt)
    assert entry["status"]["status_str"] == "success"
    shown = entry["outputs"]
    assert all(shown[node.path]["text"] for node in page.find_all("TrainTrain_SaveLoRA"))
    assert all(shown[node.path]["images"] for node in page.find_all("TrainTrain_CompareLoRAs"))


@pytest.mark.one_canvas("nodes 2.0")
def test_without_a_lora_network_the_panel_says_how_large_the_lora_is_and_fills_its_node(page, canvas):
    page.load_template("5_Slider_from_two_prompts")
    page.evaluate("() => findNodes('TrainTrain_CompareLoRAs').forEach(({ node }) => app.rootGraph.remove(node))")
    node = page.find("TrainTrain_TrainSlider").set(steps=2, batch_size=1, seed=new_seed(page))
    page.run()
    assert "48 layers, 188,416 parameters" in node.evaluate(STATUS_LINE)
    page.page.wait_for_timeout(500)
    assert node.evaluate(GAP) <= (20 if canvas == "classic" else 80)  # Nodes 2.0 has a name and a button below it


def test_a_page_opened_in_the_middle_shows_the_training_and_can_cancel_it(page, train):
    page.evaluate("() => app.extensionManager.workflow.activeWorkflow.changeTracker?.captureCanvasState?.()")
    prompt = page.queue()
    wait_for_steps(page, 3)
    page.page.wait_for_timeout(1500)  # the page keeps its graph for a reload now and then
    page.open()
    page.wait_for("(name) => findNodes(name).length === 1", NODE)
    node = page.find(NODE)
    page.wait_for(f"(name) => ({STATUS_LINE})(findNodes(name)[0].node).includes('of 400')", NODE)
    wait_for_steps(page, 2)
    page.record("traintrain.end")
    assert "left" in node.evaluate(STATUS_LINE) and max(chart(node)) > 1
    before = {file.name for file in (page.server.base / "output").iterdir()}
    page.evaluate("() => app.api.interrupt(null)")
    entry = page.wait_until_done(prompt)
    assert entry["status"]["status_str"] == "error" and not entry["outputs"].get(
        page.find("TrainTrain_CompareLoRAs").path
    )
    page.wait_for(f"(name) => ({STATUS_LINE})(findNodes(name)[0].node).includes('stopped at step')", NODE)
    step = page.events("traintrain.end")[-1]["step"]
    kept = (page.server.base / "output" / "traintrain").glob("*.safetensors")
    metadata = load_lora(max(kept, key=lambda file: file.stat().st_mtime)).metadata
    assert step <= int(metadata["traintrain_step"]) <= step + 1
    assert {file.name for file in (page.server.base / "output").iterdir()} == before
    workflow = page.serialize()
    for each in workflow["nodes"]:
        each["properties"].pop("traintrain", None)
    page.load(workflow)  # as from a file without the curve: the server remembers it
    page.wait_for(f"(name) => ({STATUS_LINE})(findNodes(name)[0].node).includes('stopped at step')", NODE)


def test_a_training_inside_a_subgraph_is_shown_and_stopped(page, train):
    # ComfyUI loses wires into inputs that grow when it makes a subgraph of the node before them.
    for name in ("TrainTrain_PlotLoss", "TrainTrain_CompareLoRAs"):
        page.evaluate("(name) => app.rootGraph.remove(findNodes(name)[0].node)", name)
    page.evaluate("(name) => app.rootGraph.convertToSubgraph(new Set([findNodes(name)[0].node]))", NODE)
    inner = page.find(NODE)
    assert ":" in inner.path
    prompt = page.queue()
    wait_for_steps(page, 4)
    assert max(chart(inner)) > 1
    press_stop(inner)
    entry = page.wait_until_done(prompt)
    assert entry["status"]["status_str"] == "success"
    assert int(saved(page, entry["outputs"])["traintrain_step"]) < 400


@pytest.mark.one_canvas("nodes 2.0")
def test_samples_are_shown_with_and_without_the_lora(page, train):
    page.evaluate(
        """(name) => {
            const loader = findNodes("CheckpointLoaderSimple")[0].node;
            const preview = LiteGraph.createNode("TrainTrain_PreviewSettings");
            app.rootGraph.add(preview);
            for (const slot of [0, 1]) {
                const text = LiteGraph.createNode("CLIPTextEncode");
                app.rootGraph.add(text);
                loader.connect(1, text, 0);
                text.connect(0, preview, slot);
            }
            loader.connect(2, preview, "vae");
            preview.connect(0, findNodes(name)[0].node, "preview");
        }""",
        NODE,
    )
    page.find("TrainTrain_PreviewSettings").set(every=2, width=64, height=64, steps=1)
    train.set(steps=5)
    page.run()
    page.wait_for(
        "(name) => findNodes(name)[0].node.widgets.find((w) => w.name === 'training').element.querySelector('img').naturalWidth === 128",
        NODE,
    )
    steps = "(node) => node.widgets.find((w) => w.name === 'training').element.querySelector('.traintrain-foot').textContent"
    assert "step 4" in train.evaluate(steps)
    train.evaluate(
        "(node) => node.widgets.find((w) => w.name === 'training').element.querySelector('.traintrain-foot button').click()"
    )
    assert "step 2" in train.evaluate(steps)


@pytest.mark.one_canvas("classic")
def test_samples_of_several_prompts_are_side_by_side_with_their_prompts(page, train):
    page.evaluate(
        """(name) => {
            const loader = findNodes("CheckpointLoaderSimple")[0].node;
            const preview = LiteGraph.createNode("TrainTrain_PreviewSettings");
            const text = LiteGraph.createNode("CLIPTextEncode");
            [preview, text].forEach((node) => app.rootGraph.add(node));
            loader.connect(1, text, 0);
            for (const slot of ["positive", "negative"]) text.connect(0, preview, slot);
            loader.connect(1, preview, "clip");
            loader.connect(2, preview, "vae");
            preview.connect(0, findNodes(name)[0].node, "preview");
        }""",
        NODE,
    )
    preview = page.find("TrainTrain_PreviewSettings")
    preview.set(every=2, width=64, height=64, steps=1, more_prompts="a blue square\n\n a yellow circle ")
    page.record("traintrain.prepare")
    train.set(steps=5)
    page.run()
    pairs = f"(name) => ({PAIRS})(findNodes(name)[0].node)"
    page.wait_for(f"(name) => ({pairs})(name).length === 3 && ({pairs})(name).every(([width]) => width === 128)", NODE)
    assert train.evaluate(PAIRS) == [[128, "positive"], [128, "a blue square"], [128, "a yellow circle"]]
    drawn = [each for each in page.events("traintrain.prepare") if each["stage"] == "samples"]
    assert drawn and all(each["total"] == 3 for each in drawn)
    kept = page.serialize()
    page.load(BLANK)
    page.load(kept)
    assert [text for _, text in page.find(NODE).evaluate(PAIRS)] == ["positive", "a blue square", "a yellow circle"]


def test_an_old_workflow_without_more_prompts_keeps_its_values(page):
    page.evaluate("() => void app.rootGraph.add(LiteGraph.createNode('TrainTrain_PreviewSettings'))")
    page.find("TrainTrain_PreviewSettings").set(every=7, cfg=3.0, seed=5)
    workflow = page.serialize()
    (node,) = workflow["nodes"]
    assert node["widgets_values"].pop() == "" and len(node["widgets_values"]) == 8
    node["inputs"] = [each for each in node["inputs"] if each["name"] not in ("clip", "more_prompts")]
    page.load(workflow)
    values = page.find("TrainTrain_PreviewSettings").values()
    assert (values["every"], values["cfg"], values["seed"], values["more_prompts"]) == (7, 3.0, 5, "")


@pytest.mark.one_canvas("classic")
def test_a_difference_shows_its_copy_machine_in_the_same_chart(page):
    page.load_template("7_Copy_machine_and_difference")
    curve = [[step, 1 / step] for step in range(1, 9)]
    page.evaluate(
        """(curve) => {
            const run = (name) => ({ run: name, name, steps: 8, step: 8, loss: 1, curve, samples: [] });
            for (const [kind, runs] of [["CopyMachine", ["copy"]], ["Difference", ["old", "new"]]])
                findNodes(`TrainTrain_Train${kind}`)[0].node.properties.traintrain = { runs: runs.map(run) };
        }""",
        curve,
    )
    page.load(page.serialize())
    node = page.find("TrainTrain_TrainDifference")
    texts = "(node) => [...node.widgets.find((w) => w.name === 'training').element.querySelectorAll('text')].map((e) => e.textContent)"
    assert [text for text in node.evaluate(texts) if text in ("new", "copy", "old")] == ["new", "copy", "old"]
    assert chart(node) == [8, 8, 8, 8]  # the newest has a pale line, too
    page.evaluate(
        "() => findNodes('TrainTrain_TrainDifference')[0].node.widgets.find((w) => w.name === 'training').element.querySelector('.traintrain-log').click()"
    )
    assert {"0.34", "1.0"} <= set(node.evaluate(texts)), "less than two powers of ten: the ends of the curve"


@pytest.mark.one_canvas("nodes 2.0")
@pytest.mark.parametrize(
    "origin, said",
    [
        ("state", "resumed at step 3; steps is the total"),
        ("weights", "new training from the LoRA's weights; steps counts from there"),
        ("", "8 steps, loaded from disk · loss 1.00"),
    ],
)
def test_the_node_says_what_of_a_connected_lora_it_started_from(page, origin, said):
    page.load_template("1_Train_a_LoRA")
    run = {"run": "a", "name": "a", "steps": 8, "step": 8, "loss": 1, "curve": [[8, 1]], "samples": []}
    page.evaluate(
        "([name, run]) => { findNodes(name)[0].node.properties.traintrain = { runs: [run] }; }",
        [NODE, {**run, "origin": origin, "resumed_at": 3}],
    )
    page.load(page.serialize())
    assert page.find(NODE).evaluate(STATUS_LINE).endswith(said)


def show_run(page: ComfyPage, run: dict) -> Node:
    """Show a workflow that was saved with a run of its training."""
    page.evaluate("([name, run]) => { findNodes(name)[0].node.properties.traintrain = { runs: [run] }; }", [NODE, run])
    page.load(page.serialize())
    return page.find(NODE)


@pytest.mark.one_canvas("classic")
@pytest.mark.parametrize(
    "both_ways, said", [({}, "without · with LoRA"), ({"both_ways": True}, "-1 · without LoRA · 1")]
)
def test_below_the_samples_is_which_of_them_is_which(page, both_ways, said):
    page.load_template("1_Train_a_LoRA")
    samples = [{"step": 2, "filename": "gone.jpg", "subfolder": "", **both_ways}]
    node = show_run(
        page, {"run": "a", "name": "a", "steps": 2, "step": 2, "loss": 1, "curve": [[1, 1]], "samples": samples}
    )
    foot = "(node) => node.widgets.find((w) => w.name === 'training').element.querySelector('.traintrain-foot').textContent"
    assert node.evaluate(foot).startswith(f"{said}‹")


@pytest.mark.one_canvas("nodes 2.0")
def test_the_validation_is_a_green_line_with_a_dot_each_and_its_lowest_step(page):
    page.load_template("1_Train_a_LoRA")
    curve = [[step, 1 / step] for step in range(1, 9)]
    run = {"run": "a", "name": "a", "steps": 8, "step": 8, "loss": 1, "curve": curve, "samples": []}
    run |= {"validation": [[2, 0.9], [4, 0.5], [8, 0.7]], "best_step": 4, "best_loss": 0.5}
    node = show_run(page, run)
    assert chart(node) == [3, 8, 8]  # below the two of the training
    rings = "(node) => [...node.widgets.find((w) => w.name === 'training').element.querySelectorAll('circle[fill=none]')].map((e) => Number(e.getAttribute('cx')))"
    dots = "(node) => node.widgets.find((w) => w.name === 'training').element.querySelectorAll('circle[fill=\"#38904c\"]').length"
    assert node.evaluate(dots) == 3
    second = "(node) => Number(node.widgets.find((w) => w.name === 'training').element.querySelectorAll('circle[fill=\"#38904c\"]')[1].getAttribute('cx'))"
    assert node.evaluate(rings) == [node.evaluate(second)], "the dot of step 4 has a ring"
    assert "validation lowest at step 4: 0.500" in node.evaluate(STATUS_LINE)


@pytest.mark.one_canvas("classic")
@pytest.mark.parametrize(
    "runs",
    [
        "words",
        [None],
        [{"curve": "x"}],
        [{"curve": [[1, 2]], "samples": "y"}],
        {"a": 1},
        [{"curve": [[1, 2]], "samples": [], "validation": "z"}],
    ],
)
def test_a_workflow_with_odd_properties_still_loads(page, runs):
    workflow = page.load_template("1_Train_a_LoRA")
    node = next(node for node in workflow["nodes"] if node["type"] == NODE)
    node["properties"]["traintrain"] = {"runs": runs}
    page.load(workflow)
    assert page.find(NODE).values()["steps"] == 500


def test_a_chart_is_no_longer_drawn_after_its_node_is_removed(page):
    page.load_template("7_Copy_machine_and_difference")
    assert page.evaluate(RESIZE_AFTER_REMOVAL) == "0 0 1 1"


@pytest.mark.one_canvas("classic")
def test_an_event_that_arrives_while_the_page_opens_is_known_to_it(browser, server, canvas):
    with browser.new_context() as context:
        page = context.new_page()
        page.add_init_script(f"({EARLY_EVENTS})({json.dumps(EVENTS)})")
        messages = []
        page.on("console", lambda message: messages.append(message.text))
        ComfyPage(page, server, canvas)
        assert [message for message in messages if "traintrain." in message] == []
