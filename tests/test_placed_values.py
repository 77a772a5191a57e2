"""An input that is new on a node: placed nodes get its new value, graphs from before it keep what they mean."""

from __future__ import annotations

import copy
import json

import pytest
from conftest import ROOT
from pack.nodes.closed_form_start import CLOSED_FORM, NOTHING
from pack.nodes.train_ileco import TrainILECO
from pack.tools.runner import to_api

NODE = "TrainTrain_TrainILECO"
BEFORE = 8  # values of the node in files of version 0.1


def ileco(workflow: dict) -> dict:
    return next(node for node in workflow["nodes"] if node["type"] == NODE)


@pytest.fixture(scope="module")
def old_file() -> dict:
    """A template as version 0.1 saved it."""
    workflow = json.loads((ROOT / "example_workflows" / "4_Erase_a_concept_iLECO.json").read_text(encoding="utf-8"))
    ileco(workflow)["widgets_values"] = ileco(workflow)["widgets_values"][:BEFORE]
    return workflow


def start_of(page) -> str:
    return page.find(NODE).values()["start"]


def test_a_file_from_before_the_input_keeps_its_meaning_outside_of_the_page(old_file):
    """comfy-cli gives what a file does not have its default."""
    schema = TrainILECO.define_schema()
    default = next(field.default for field in schema.inputs if field.id == "start")
    assert schema.inputs[-1].id == "start" and default == NOTHING


def test_comfy_cli_converts_a_file_from_before_the_input(old_file, server):
    prompt = to_api(old_file, server.get("/object_info"))
    (inputs,) = [node["inputs"] for node in prompt.values() if node["class_type"] == NODE]
    assert inputs.get("start", NOTHING) == NOTHING and inputs["guidance"] == 1.0


def test_a_node_that_is_placed_starts_from_the_closed_form(page):
    page.evaluate("(type) => { app.graph.add(LiteGraph.createNode(type)); }", NODE)
    page.page.wait_for_timeout(100)
    assert start_of(page) == CLOSED_FORM


@pytest.mark.parametrize("chosen", [CLOSED_FORM, NOTHING])
def test_a_saved_node_keeps_its_value_however_it_comes_back(page, old_file, chosen):
    page.load(old_file)
    page.find(NODE).set(start=chosen)
    page.load(page.serialize())
    assert start_of(page) == chosen
    page.evaluate(
        """(type) => { const [{ node }] = findNodes(type); const copy = LiteGraph.createNode(type);
            copy.configure({ ...node.clone().serialize(), id: -1 }); app.graph.remove(node); app.graph.add(copy); }""",
        NODE,
    )
    page.page.wait_for_timeout(100)
    assert start_of(page) == chosen


def test_a_file_from_before_the_input_starts_from_nothing(page, old_file):
    page.load(copy.deepcopy(old_file))
    assert start_of(page) == NOTHING
    page.load(page.serialize())
    assert start_of(page) == NOTHING


def test_an_api_graph_from_before_the_input_starts_from_nothing(page, old_file):
    prompt = to_api(old_file, page.server.get("/object_info"))
    for node in prompt.values():
        node["inputs"].pop("start", None)
    page.evaluate("(prompt) => app.loadApiJson(prompt, 'old')", prompt)
    page.page.wait_for_timeout(100)
    assert start_of(page) == NOTHING and page.find(NODE).values()["guidance"] == 1.0
