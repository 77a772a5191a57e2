"""The pack on ComfyUI's page, in both canvases: templates, help, dropped files, the queue."""

from __future__ import annotations

from pathlib import Path
from urllib.request import urlopen

import pytest
from conftest import ROOT
from pack.tools.shapes import pairs, pictures
from PIL import Image

PACK = "traintrain"
TEMPLATES = sorted(path.stem for path in (ROOT / "example_workflows").glob("*.json"))
KEPT = ["CheckpointLoaderSimple", "TrainTrain_LoadImageFolder", "TrainTrain_BucketImages"]
OVERLAPS = """() => {
    const boxes = app.graph.nodes.map((n) => [n.title, n.pos[0], n.pos[1] - 30, n.pos[0] + n.size[0], n.pos[1] + n.size[1]]);
    const apart = (a, b) => a[1] >= b[3] || b[1] >= a[3] || a[2] >= b[4] || b[2] >= a[4];
    return boxes.flatMap((a, i) => boxes.slice(i + 1).filter((b) => !apart(a, b)).map((b) => [a[0], b[0]]));
}"""
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
    pairs.write(inputs)
    pictures.write(inputs / "two_stars")
    for file in sorted((inputs / "two_stars").iterdir())[4:]:
        file.unlink()


def load_training(page, **values) -> None:
    """Put the shipped training on the canvas: two pictures, two steps, no samples."""
    page.load_template("train_lora")
    page.find("TrainTrain_LoadImageFolder").set(folder="two_stars")
    page.find("TrainTrain_BucketImages").set(mirroring=False)
    page.find("TrainTrain_TrainLoRA").set(**{"steps": 2, "batch_size": 1, **values})
    page.evaluate("() => findNodes('SaveImage').forEach(({ node }) => app.graph.remove(node))")


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_loads_whole_and_keeps_its_values(page, name):
    assert name in page.server.get("/api/workflow_templates")[PACK]
    template = page.load_template(name)
    missing = page.evaluate("() => app.rootGraph.nodes.filter((node) => node.has_errors).map((node) => node.type)")
    # The only thing that a template may lack here.
    assert missing == (["CheckpointLoaderSimple"] if "sdxl" in name else [])
    values = {node["id"]: node.get("widgets_values") for node in page.serialize()["nodes"]}
    assert values == {node["id"]: node["widgets_values"] for node in template["nodes"]}
    with urlopen(f"http://{page.server.address}/api/workflow_templates/{PACK}/{name}.jpg") as thumbnail:
        assert Image.open(thumbnail).width > 300


@pytest.mark.parametrize("name", TEMPLATES)
def test_nothing_on_a_template_overlaps(page, name):
    page.load_template(name)
    page.page.wait_for_timeout(300)  # Nodes 2.0 measures its nodes after it has drawn them
    assert page.evaluate(OVERLAPS) == []


def test_every_node_has_a_help_page(server):
    address = f"http://{server.address}/extensions/{PACK}/docs"
    for node in (name for name in server.get("/object_info") if name.startswith("TrainTrain_")):
        with urlopen(f"{address}/{node}.md") as text:
            assert text.read().decode().startswith("# "), node


def test_the_page_shows_the_help(page):
    page.load_template("train_lora")
    page.find("TrainTrain_BucketImages").evaluate("(node) => app.canvas.selectNode(node)")
    page.page.get_by_test_id("info-button").click()
    page.page.get_by_role("heading", name="Bucket Images", level=1).wait_for(timeout=10000)


def test_a_dropped_lora_gives_back_the_graph_that_made_it(page, canvas):
    load_training(page, seed=4711)
    page.find("TrainTrain_SaveLoRA").set(name=f"dropped {canvas}")
    made = page.serialize()
    (path,) = page.run()[page.find("TrainTrain_SaveLoRA").path]["text"]
    page.load({"nodes": [], "links": [], "version": 0.4})
    page.drop(Path(path))
    page.wait_for("() => findNodes('TrainTrain_TrainLoRA').length === 1")
    given = page.serialize()
    assert [(n["type"], n["widgets_values"]) for n in given["nodes"]] == [
        (n["type"], n["widgets_values"]) for n in made["nodes"]
    ]
    assert len(given["links"]) == len(made["links"])


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
    with urlopen(f"http://{page.server.address}/view?filename={file['filename']}&type=output") as picture:
        assert Image.open(picture).size == (2 * 64, 64)


def add_by_search(page, name: str) -> None:
    """Add a node as a person does: double click, type, Enter, and a click where it goes."""
    page.page.mouse.dblclick(1000, 800)
    page.page.keyboard.type(name, delay=10)
    page.page.get_by_text(name).first.wait_for()
    page.page.wait_for_timeout(500)  # the list follows the typing a moment later
    page.page.keyboard.press("Enter")
    page.page.wait_for_timeout(300)
    page.page.mouse.click(1000, 800)
    page.wait_for("(name) => findNodes(name).length === 1", name)
