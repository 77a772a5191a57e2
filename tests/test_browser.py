"""The pack on ComfyUI's page, in both canvases: templates, help, dropped files, the queue."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import ROOT
from pack.tools.shapes import pictures

TEMPLATES = sorted(path.stem for path in (ROOT / "example_workflows").glob("*.json"))


def load_training(page, **values) -> None:
    """Put the shipped training on the canvas, two steps long and without its samples."""
    pictures.write(page.server.base / "input" / "purple_star")
    page.load_template("train_lora")
    page.find("TrainTrain_TrainLoRA").set(**{"steps": 2, "batch_size": 1, **values})
    page.evaluate("() => findNodes('SaveImage').forEach(({ node }) => app.graph.remove(node))")


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_loads_whole_and_keeps_its_values(page, name):
    assert name in page.server.get("/api/workflow_templates")["traintrain"]
    template = page.load_template(name)
    missing = page.evaluate("() => app.rootGraph.nodes.filter((node) => node.has_errors).map((node) => node.type)")
    assert missing == []
    values = {node["id"]: node.get("widgets_values") for node in page.serialize()["nodes"]}
    assert values == {node["id"]: node["widgets_values"] for node in template["nodes"]}


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
        page.find("TrainTrain_TrainLoRA").set(seed=seed)
        page.find("TrainTrain_SaveLoRA").set(name=f"{canvas}/queued_{seed}")
        prompts.append(page.queue())
    for prompt in prompts:
        assert page.wait_until_done(prompt)["status"]["status_str"] == "success"
    files = (page.server.base / "output" / "loras" / canvas).glob("*.safetensors")
    assert sorted(file.name for file in files) == [f"queued_{seed}.safetensors" for seed in (1, 2, 3)]
