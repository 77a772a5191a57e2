"""The pack on ComfyUI's page, in both canvases: templates, help, dropped files, the queue."""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import pytest
from conftest import ROOT
from pack.tools.shapes import shape_pairs, star_images
from PIL import Image
from playwright.sync_api import TimeoutError

PACK = "traintrain"
TEMPLATES = sorted(path.stem for path in (ROOT / "example_workflows").glob("*.json"))
KEPT = ["CheckpointLoaderSimple", "TrainTrain_LoadImageFolder", "TrainTrain_BucketImages"]
OVERLAPS = """() => {
    const boxes = app.graph.nodes.map((n) => [n.title, n.pos[0], n.pos[1] - 30, n.pos[0] + n.size[0], n.pos[1] + n.size[1]]);
    const apart = (a, b) => a[1] >= b[3] || b[1] >= a[3] || a[2] >= b[4] || b[2] >= a[4];
    return boxes.flatMap((a, i) => boxes.slice(i + 1).filter((b) => !apart(a, b)).map((b) => [a[0], b[0]]));
}"""
# Nodes that end below their group, or less than ten pixels above its end.
BELOW = """() => app.graph.nodes.flatMap((n) => app.graph.groups
    .filter(({ pos, size }) => n.pos[0] > pos[0] && n.pos[0] < pos[0] + size[0])
    .filter(({ pos, size }) => n.pos[1] + n.size[1] + 10 > pos[1] + size[1])
    .map((group) => [n.title, group.title]))"""
# What the page calls the inputs that hold a place in a list.
LISTED = """() => app.graph.nodes.flatMap((n) => n.inputs).filter((input) => input.name.includes("."))
    .map((input) => input.label ?? input.localized_name ?? input.name)"""
# Pixels between the end of each of our elements and the end of its node.
GAPS = """() => ["TrainTrain_TrainLoRA", "TrainTrain_LoRANetwork"].flatMap((name) => findNodes(name)).map(({ node }) => {
    const { ds, canvas } = app.canvas;
    const bottom = (node.pos[1] + node.size[1] + ds.offset[1]) * ds.scale + canvas.getBoundingClientRect().top;
    const { element } = node.widgets.find((widget) => widget.element);
    return (bottom - element.getBoundingClientRect().bottom) / ds.scale;
})"""
WIRE = """() => {
    const [[loader], [bucket], [subgraph]] =
        ["CheckpointLoaderSimple", "TrainTrain_BucketImages", "Train and compare"].map((name) => findNodes(name));
    [0, 1, 2].forEach((slot) => loader.node.connect(slot, subgraph.node, slot));
    bucket.node.connect(0, subgraph.node, 3);
    const saver = LiteGraph.createNode("SaveImage");
    app.graph.add(saver);
    subgraph.node.connect(3, saver, 0);
}"""


@pytest.fixture(scope="module", autouse=True)
def demonstration_pictures(server):
    """The templates' pictures, before the page asks what there is; two stars, for reading captions takes time."""
    inputs = server.base / "input"
    shape_pairs.write(inputs)
    star_images.write(inputs / "two_stars")
    for file in sorted((inputs / "two_stars").iterdir())[4:]:
        file.unlink()


def widget_values(workflow: dict) -> dict[int, list]:
    """Return the values of each node by its id; newer pages leave out the key of a node without widgets."""
    return {node["id"]: node.get("widgets_values") or [] for node in workflow["nodes"]}


def load_training(page, **values) -> None:
    """Put the shipped training on the canvas: two pictures, two steps, no samples."""
    page.load_template("1_Train_a_LoRA")
    page.find("TrainTrain_LoadImageFolder").set(folder="two_stars")
    page.find("TrainTrain_BucketImages").set(mirroring=False)
    page.find("TrainTrain_TrainLoRA").set(**{"steps": 2, "batch_size": 1, **values})
    page.evaluate("() => findNodes('TrainTrain_CompareLoRAs').forEach(({ node }) => app.graph.remove(node))")


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_loads_whole_and_keeps_its_values(page, name):
    assert name in page.server.get("/api/workflow_templates")[PACK]
    template = page.load_template(name)
    missing = page.evaluate("() => app.rootGraph.nodes.filter((node) => node.has_errors).map((node) => node.type)")
    # The only thing that a template may lack here.
    assert missing == (["CheckpointLoaderSimple"] if "SDXL" in name else [])
    assert widget_values(page.serialize()) == widget_values(template)
    assert [shown for shown in page.evaluate(LISTED) if "." in shown] == []  # "lora0", not "loras.lora0"
    _, thumbnail = page.server.request("GET", f"/api/workflow_templates/{PACK}/{name}.jpg")
    assert Image.open(io.BytesIO(thumbnail)).width > 300


@pytest.mark.parametrize("name", TEMPLATES)
def test_nothing_on_a_template_overlaps_or_leaves_its_group(page, name):
    page.load_template(name)
    page.page.wait_for_timeout(300)  # Nodes 2.0 measures its nodes after it has drawn them
    assert page.evaluate(OVERLAPS) == []
    assert page.evaluate(BELOW) == []


def test_panels_fill_their_nodes(page, canvas):
    page.load_template("1_Train_a_LoRA")
    page.page.wait_for_timeout(500)
    footer = 10 if canvas == "classic" else 70  # pixels: Nodes 2.0 has the pack's name and a button there
    assert all(0 <= gap <= footer + 10 for gap in page.evaluate(GAPS)), page.evaluate(GAPS)


def test_every_node_has_a_help_page(server):
    for node in (name for name in server.get("/object_info") if name.startswith("TrainTrain_")):
        _, text = server.request("GET", f"/extensions/{PACK}/docs/{node}.md")
        assert text.decode().startswith("# "), node


@pytest.mark.one_canvas("classic")
def test_the_page_shows_the_help(page):
    page.load_template("1_Train_a_LoRA")
    page.find("TrainTrain_BucketImages").evaluate("(node) => app.canvas.selectNode(node)")
    page.page.get_by_test_id("info-button").click()
    page.page.get_by_role("heading", name="Bucket Images", level=1).wait_for(timeout=10000)


@pytest.mark.one_canvas("nodes 2.0")
def test_a_dropped_lora_gives_back_the_graph_that_made_it(page, canvas):
    load_training(page, seed=4711)
    page.find("TrainTrain_SaveLoRA").set(name=f"dropped {canvas}")
    made = page.serialize()
    (path,) = page.run()[page.find("TrainTrain_SaveLoRA").path]["text"]
    page.load({"nodes": [], "links": [], "version": 0.4})
    page.drop(Path(path))
    page.wait_for("() => findNodes('TrainTrain_TrainLoRA').length === 1")
    given = page.serialize()
    assert [node["type"] for node in given["nodes"]] == [node["type"] for node in made["nodes"]]
    assert widget_values(given) == widget_values(made)
    assert len(given["links"]) == len(made["links"])


def test_save_lora_shows_which_file_it_has_written(page, canvas):
    load_training(page)
    node = page.find("TrainTrain_SaveLoRA")
    node.set(name=f"shown {canvas}")
    assert page.page.locator(".traintrain-saved").count() == 0
    for number, file in enumerate((f"shown {canvas}.safetensors", f"shown {canvas}_2.safetensors")):
        page.find("TrainTrain_TrainLoRA").set(seed=100 + number)
        (path,) = page.run()[node.path]["text"]
        line = page.page.locator(".traintrain-saved .traintrain-words")
        line.get_by_text(f"saved as {file}").wait_for(timeout=10000)
        assert line.get_attribute("title") == path


@pytest.mark.one_canvas("classic")
def test_three_trainings_in_the_queue_give_three_files(page, canvas):
    load_training(page)
    prompts = []
    for seed in (1, 2, 3):
        page.find("TrainTrain_TrainLoRA").set(seed=seed + len(canvas))
        page.find("TrainTrain_SaveLoRA").set(name=f"{canvas}/queued_{seed}")
        prompts.append(page.queue())
    for prompt in prompts:
        assert page.wait_until_done(prompt)["status"]["status_str"] == "success"
    files = (page.server.base / "output" / "loras" / canvas).glob("*.safetensors")
    assert sorted(file.name for file in files) == [f"queued_{seed}.safetensors" for seed in (1, 2, 3)]


def test_the_blueprint_is_found_added_wired_and_run(page, canvas):
    load_training(page)
    page.evaluate(
        "(keep) => app.graph.nodes.filter((n) => !keep.includes(n.type)).forEach((n) => app.graph.remove(n))", KEPT
    )
    add_by_search(page, "Train and compare")
    node = page.find("Train and compare")
    page.evaluate(WIRE)
    name = f"blueprint {canvas}"
    node.set(prompt="a purple star", steps=2, seed=len(canvas), name=name, width=64, height=64)
    for sampler in page.find_all("KSampler"):
        sampler.set(steps=2)
    shown = page.run()
    assert (page.server.base / "output" / "loras" / f"{name}.safetensors").is_file()
    assert shown[page.find("TrainTrain_SaveLoRA").path]["text"][0].endswith(f"{name}.safetensors")
    (file,) = shown[page.find("SaveImage").path]["images"]
    _, image = page.server.request("GET", f"/view?filename={quote(file['filename'])}&type=output")
    assert Image.open(io.BytesIO(image)).size == (2 * 64, 64)


def add_by_search(page, name: str) -> None:
    """Add a node as a person does: double click, type, Enter, and a click where it goes."""
    search = open_search(page)
    search.press_sequentially(name)
    page.page.get_by_role("option").first.filter(has_text=name).wait_for()
    search.press("Enter")
    search.wait_for(state="hidden")  # a click before that would take the node away again
    page.page.mouse.click(1000, 800)
    page.wait_for("(name) => findNodes(name).length === 1", name)


def open_search(page):
    """Double-click the canvas until it takes the clicks for a double click: a busy page sees them too far apart."""
    search = page.page.get_by_role("combobox", name="Add a node")
    for _ in range(10):
        page.page.mouse.dblclick(1000, 800)
        with suppress(TimeoutError):
            search.wait_for(timeout=3000)
            return search
    raise AssertionError("The search does not open.")
