"""The shipped graph in a running ComfyUI: events, files, cancel, refusals."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import comfy.sd
import pytest
import torch
from conftest import ROOT
from pack.tools.errors import ToolError
from pack.tools.runner import keep_outputs, load_workflow, run_workflow, to_api
from pack.tools.shapes import shape_pairs, star_images
from pack.trainer.lora_file import load_lora
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

LAYERS = 4 * 12 + 5 * 2  # c3lier on Shapes: four attention blocks of 12 layers, five residual blocks of 2 convolutions
RUNNABLE = [path for path in sorted((ROOT / "example_workflows").glob("*.json")) if "SDXL" not in path.stem]


@pytest.fixture(scope="module")
def graph(server):
    """The example workflow in API format, with few steps, and its pictures in place."""
    star_images.write(server.base / "input" / "purple_star")
    prompt = to_api(load_workflow(ROOT / "example_workflows" / "1_Train_a_LoRA.json"), server.get("/object_info"))
    return with_values(prompt, TrainTrain_TrainLoRA={"steps": 6}, TrainTrain_CompareLoRAs={"steps": 2})


def with_values(prompt: dict, **values: dict) -> dict:
    """Copy a graph with other values on all nodes of a class."""
    changed = json.loads(json.dumps(prompt))
    for node in changed.values():
        node["inputs"].update(values.get(node["class_type"], {}))
    return changed


def outputs_by_title(outputs) -> dict:
    return {output.title: output for output in outputs}


def test_the_example_trains_saves_plots_and_samples(server, graph, shapes_checkpoint):
    steps = []
    shown = outputs_by_title(
        run_workflow(
            server, graph, lambda event, title, data: steps.append(data) if event == "traintrain.step" else None
        )
    )
    assert steps[0]["step"] == 1 and steps[-1]["step"] == steps[-1]["steps"] == 6
    assert all(data["loss"] > 0 and data["steps_per_second"] > 0 and data["seconds_left"] >= 0 for data in steps)

    (lora_path,) = shown["Save LoRA"].texts
    assert lora_path.startswith(str(server.base / "output" / "loras"))
    with torch.inference_mode():
        model = comfy.sd.load_checkpoint_guess_config(str(shapes_checkpoint))[0]
        patched, _ = comfy.sd.load_lora_for_models(model, None, load_file(lora_path), 1.0, 0.0)
    assert len(patched.patches) == LAYERS == sum(key.endswith(".alpha") for key in load_file(lora_path))
    with safe_open(lora_path, "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_max_train_steps"] == "6" and metadata["ss_base_model_version"] == "sd_v1"
    assert any(node["class_type"] == "TrainTrain_TrainLoRA" for node in json.loads(metadata["prompt"]).values())

    chart, table = shown["Plot Loss"].texts
    assert Image.open(chart).width > 400
    assert len(open(table).read().splitlines()) == 1 + 6
    assert all(file.is_file() for file in shown["Compare LoRAs"].files) and len(shown["Compare LoRAs"].files) == 2


@pytest.mark.parametrize("path", RUNNABLE, ids=lambda path: path.stem)
def test_every_example_runs_from_the_loader_to_its_samples(server, path):
    """With a few steps: what they learn with theirs is measured elsewhere."""
    star_images.write(server.base / "input" / "purple_star")
    shape_pairs.write(server.base / "input")
    prompt = to_api(load_workflow(path), server.get("/object_info"))
    kinds = ("LoRA", "ILECO", "Slider", "CopyMachine", "Difference", "ADDifT")
    short = {f"TrainTrain_Train{kind}": {"steps": 2} for kind in kinds}
    shown = run_workflow(server, with_values(prompt, **short, TrainTrain_CompareLoRAs={"steps": 1}))
    by_kind = [prompt[output.node]["class_type"] for output in shown]
    assert by_kind.count("TrainTrain_SaveLoRA") >= 1 and by_kind.count("TrainTrain_CompareLoRAs") == 1
    info = server.get("/object_info")
    ends = {node_id for node_id, node in prompt.items() if info[node["class_type"]]["output_node"]}
    assert ends <= {output.node for output in shown}
    for output in shown:
        if prompt[output.node]["class_type"] == "TrainTrain_CompareLoRAs":
            assert Image.open(output.files[0]).width > 3 * 180  # a row of three strengths
            assert "positive: " in output.texts[0]


def test_strengths_that_cannot_be_read_are_refused_before_anything_is_trained(server, graph):
    alone = keep_outputs(graph, server.get("/object_info"), ["TrainTrain_CompareLoRAs"])
    bad = with_values(alone, TrainTrain_CompareLoRAs={"strengths": "0, much"})
    status, answer = server.post("/prompt", {"prompt": bad})
    (error,) = [error for node in answer["node_errors"].values() for error in node["errors"]]
    assert status == 400 and "strengths has 'much', which is not a number from -100 to 100" in error["details"]


def test_the_example_for_sdxl_lacks_nothing_but_its_checkpoint(server):
    path = ROOT / "example_workflows" / "2_Train_a_LoRA_SDXL.json"
    status, answer = server.post("/prompt", {"prompt": to_api(load_workflow(path), server.get("/object_info"))})
    (refused,) = answer["node_errors"].values()
    assert status == 400 and refused["class_type"] == "CheckpointLoaderSimple"
    (error,) = refused["errors"]
    assert error["type"] == "value_not_in_list" and "sd_xl_base_1.0.safetensors" in error["details"]


def test_the_same_graph_again_takes_the_result_from_the_cache(server, graph):
    graph = with_values(graph, TrainTrain_TrainLoRA={"seed": 77, "steps": 2})
    run_workflow(server, graph)
    seen = []
    run_workflow(server, graph, lambda event, *_: seen.append(event))
    assert "traintrain.step" not in seen


def test_the_same_graph_after_other_work_loads_the_result_from_disk(server, graph):
    seen = []
    for seed in (78, 79, 78):
        seen.append(seed)
        run_workflow(
            server,
            with_values(graph, TrainTrain_TrainLoRA={"seed": seed, "steps": 2}),
            lambda event, *_: seen.append("step") if event == "traintrain.step" else None,
        )
    assert seen == [78, "step", "step", 79, "step", "step", 78]


def test_the_nodes_say_how_large_the_lora_is(server, graph):
    graph = with_values(graph, TrainTrain_TrainLoRA={"seed": 80, "steps": 1})
    run_workflow(server, graph)
    assert f"The LoRA has {LAYERS} layers, " in server.log.read_text(encoding="utf-8")


def test_cancel_ends_a_training_within_a_step_and_the_next_one_runs(server, graph):
    reached = []

    def cancel_at_once(event, title, data):
        if event == "traintrain.step":
            reached.append(data["step"])
            if len(reached) == 1:
                threading.Thread(target=server.post, args=("/interrupt", {})).start()

    with pytest.raises(ToolError, match="Train LoRA was interrupted"):
        run_workflow(server, with_values(graph, TrainTrain_TrainLoRA={"steps": 5000, "seed": 5}), cancel_at_once)
    assert reached[-1] < 30
    kept = max((server.base / "output" / "traintrain").glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
    assert reached[-1] <= int(load_lora(kept).metadata["traintrain_step"]) < 30  # events are throttled
    assert sum(key.endswith(".alpha") for key in load_file(kept)) == LAYERS
    steps = []
    run_workflow(
        server,
        with_values(graph, TrainTrain_TrainLoRA={"steps": 3, "seed": 6}),
        lambda event, title, data: steps.append(data["step"]) if event == "traintrain.step" else None,
    )
    assert steps[-1] == 3


def test_stop_and_keep_ends_the_training_until_resume_stopped_trains_the_rest(server, graph):
    graph = with_values(graph, TrainTrain_TrainLoRA={"steps": 40, "seed": 8})
    (node_id,) = (id for id, node in graph.items() if node["class_type"] == "TrainTrain_TrainLoRA")

    def run(on_first_step=None, **values) -> tuple[list[int], dict]:
        changed, steps = with_values(graph, **values), []

        def follow(event, title, data):
            if event == "traintrain.step":
                steps.append(data["step"])
                if len(steps) == 1 and on_first_step:
                    threading.Thread(target=on_first_step).start()

        saved = [
            Path(output.texts[0]) for output in run_workflow(server, changed, follow) if output.title == "Save LoRA"
        ]
        return steps, load_lora(saved[0]).metadata

    first, metadata = run(lambda: server.post("/traintrain/stop", {"node": node_id}))
    stopped = int(metadata["traintrain_step"])
    assert stopped < 40 and stopped <= first[-1] + 1
    # Another prompt of a sampler, and then again without what ComfyUI remembers.
    overwrite = {"TrainTrain_SaveLoRA": {"overwrite": True}}
    for values in ({"TrainTrain_CompareLoRAs": {"steps": 1}}, {"TrainTrain_CompareLoRAs": {"steps": 2}, **overwrite}):
        steps, metadata = run(**values)
        assert steps == [] and metadata["traintrain_step"] == str(stopped)
        server.post("/free", {"free_memory": True})
    resumed = {"TrainTrain_TrainLoRA": {"resume_stopped": True}}
    second, metadata = run(**resumed)
    assert second[0] > stopped and second[-1] == 40 and metadata["traintrain_step"] == "40"
    assert run(**resumed)[0] == [] and run()[0] == []


@pytest.mark.parametrize("body, status", [({"node": "1"}, 404), ({"node": 1}, 404), ({}, 400), ([], 400), ("x", 400)])
def test_stopping_a_node_that_is_not_training_is_refused(server, body, status):
    assert server.post("/traintrain/stop", body)[0] == status


@pytest.mark.parametrize(
    "values, message",
    [
        ({"TrainTrain_LoadImageFolder": {"folder": "no_such_folder"}}, "no_such_folder"),
        ({"TrainTrain_LoadImageFolder": {"folder": "../../"}}, "may not be read"),
        ({"TrainTrain_LoRANetwork": {"blocks": "IN07"}}, "no block 'IN07' .*has IN01, M00, OUT00, OUT01"),
        ({"TrainTrain_TrainingSettings": {"optimizer_settings": "beta=1"}}, "beta, which AdamW does not accept"),
        ({"TrainTrain_TrainingSettings": {"min_timestep": 900, "max_timestep": 100}}, "from 900 to 100"),
        ({"TrainTrain_BucketImages": {"width": 60}}, "multiple of 8"),
        ({"TrainTrain_SaveLoRA": {"name": "../../escaped"}}, "not a valid file name"),
        ({"TrainTrain_TrainLoRA": {"steps": 0}}, "steps"),
    ],
)
def test_an_invalid_input_gets_one_sentence(server, graph, values, message):
    with pytest.raises(ToolError, match=message) as refused:
        run_workflow(server, with_values(graph, **values))
    assert "Traceback" not in str(refused.value)


def test_the_nodes_have_help_tooltips_and_plain_names(server):
    for name, info in server.get("/object_info").items():
        if name.startswith("TrainTrain_"):
            assert (
                info["category"] == "TrainTrain"
                and info["description"]
                and not info["display_name"].startswith("TrainTrain_")
            )
            for group in ("required", "optional"):
                for key, spec in info["input"].get(group, {}).items():
                    template = spec[1].get("template")  # of an input that grows
                    options = next(iter(template["input"]["required"].values()))[1] if template else spec[1]
                    assert options.get("tooltip"), f"{name}.{key} has no tooltip"
            assert all(info["output_tooltips"]), name
            assert (ROOT / "web" / "docs" / f"{name}.md").is_file()
