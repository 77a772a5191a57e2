"""The block map shows the model that the workflow loads: the page finds its file, and the server reads the file's header."""

from __future__ import annotations

import json

import pytest
from pack.nodes.host.blocks_in_file import blocks_in_file
from pack.trainer.config import NetworkConfig
from test_block_picker import NODE, cell, show_network

pytestmark = pytest.mark.one_canvas("nodes 2.0")
# Puts a loader and a training node on the page, wired to each other and to the LoRA Network.
WIRE = """([network, file]) => {
    const add = (type) => { const node = LiteGraph.createNode(type); app.graph.add(node); return node; };
    const [loader, training] = [add("CheckpointLoaderSimple"), add("TrainTrain_TrainILECO")];
    training.pos = [0, 900];
    loader.pos = [-400, 900];
    loader.widgets.find((widget) => widget.name === "ckpt_name").value = file;
    loader.connect(0, training, training.inputs.findIndex((input) => input.name === "model"));
    const slot = training.inputs.findIndex((input) => input.name === "network");
    app.graph.getNodeById(network).connect(0, training, slot);
}"""
FILE = "shapes.safetensors"


def test_the_map_shows_the_blocks_of_the_model_that_the_workflow_loads(page):
    show_network(page)
    network = page.evaluate("(type) => app.graph.nodes.find((node) => node.type === type).id", NODE)
    page.page.locator(".traintrain-layout").select_option("model")
    page.page.get_by_text("Connect this node to a training node").first.wait_for()
    assert page.page.locator(".traintrain-layout").input_value() == "SD 1.5, SD 2"
    page.evaluate(WIRE, [network, FILE])
    page.page.locator(".traintrain-layout").select_option("model")
    page.wait_for(
        "() => document.querySelector('.traintrain-layout').value === 'model' && app.graph.nodes.length === 3"
    )
    path = page.server.base / "models" / "checkpoints" / FILE
    blocks = blocks_in_file(path, NetworkConfig(network_type="c3lier"))
    page.wait_for("(n) => document.querySelectorAll('.traintrain-map [data-id]').length === n", len(blocks))
    assert set(page.page.locator(".traintrain-map [data-id]").all_inner_texts()) == set(blocks)
    page.load(page.serialize())
    cell(page, blocks[0]).wait_for()
    assert page.page.locator(".traintrain-layout").input_value() == "model"


@pytest.mark.parametrize(
    "body, status",
    [
        ({"folder": "checkpoints", "name": FILE}, 200),
        ({"folder": "checkpoints", "name": "../checkpoints/shapes.safetensors"}, 404),
        ({"folder": "checkpoints", "name": "none.safetensors"}, 404),
        ({"folder": "vae", "name": FILE}, 400),
        ({"folder": ["checkpoints"], "name": FILE}, 400),
        ({"folder": "checkpoints", "name": 3}, 400),
        ([], 400),
    ],
)
def test_only_models_that_the_loaders_list_are_read(page, body, status):
    answer, text = page.server.request("POST", "/traintrain/blocks", json.dumps(body).encode(), "application/json")
    assert answer == status
    assert ("ids" in json.loads(text)) == (status == 200)
