"""Running workflows on a real server, with the host's own nodes."""

import io
import json
import os
import signal
import subprocess
import sys

import pytest
from pack.tools.errors import ToolError
from pack.tools.host_paths import ROOT
from pack.tools.run_command import Follower, print_outputs, read_values, training_line
from pack.tools.runner import Output, keep_outputs, load_workflow, run_workflow, set_values, to_api
from pack.tools.server import Server
from pack.tools.terminal import StatusLine

# A stand-in for ComfyUI that takes a prompt and falls over.
FALLS_OVER = """
import os, sys
from aiohttp import web
async def listen(request):
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for _ in socket:
        pass
async def prompt(request):
    print("out of memory, alas", flush=True)
    os._exit(9)
async def nothing(request):
    return web.json_response({})
app = web.Application()
app.add_routes([web.get("/ws", listen), web.post("/prompt", prompt), web.get("/{any}", nothing)])
web.run_app(app, host="127.0.0.1", port=int(sys.argv[sys.argv.index("--port") + 1]), print=None)
"""
STEP = {
    "node": "7",
    "step": 30,
    "steps": 400,
    "loss": 0.03217,
    "learning_rate": 0.0005,
    "steps_per_second": 4.25,
    "seconds_left": 87.1,
}


def page(width=32, title="Blue picture"):
    """Write a picture of one colour, as the page would save it."""
    return {
        "nodes": [
            {
                "id": 1,
                "type": "EmptyImage",
                "mode": 0,
                "inputs": [],
                "widgets_values": [width, 24, 1, 255],
                "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [1]}],
                "properties": {},
            },
            {
                "id": 2,
                "type": "SaveImage",
                "title": title,
                "mode": 0,
                "widgets_values": ["blue"],
                "outputs": [],
                "inputs": [{"name": "images", "type": "IMAGE", "link": 1}],
                "properties": {},
            },
            {"id": 3, "type": "Note", "mode": 0, "inputs": [], "outputs": [], "widgets_values": ["for the reader"]},
        ],
        "links": [[1, 1, 0, 2, 0, "IMAGE"]],
        "groups": [],
        "version": 0.4,
    }


def api(width=32):
    return {
        "1": {"class_type": "EmptyImage", "inputs": {"width": width, "height": 24, "batch_size": 1, "color": 255}},
        "2": {"class_type": "SaveImage", "inputs": {"filename_prefix": "blue", "images": ["1", 0]}},
    }


PROMPT = {
    "3": {"class_type": "KSampler", "inputs": {"steps": 20, "seed": 1}, "_meta": {"title": "Before"}},
    "4": {"class_type": "KSampler", "inputs": {"steps": 20, "seed": 1}, "_meta": {"title": "After"}},
    "5": {"class_type": "SaveImage", "inputs": {"images": ["4", 0]}},
}


@pytest.mark.parametrize(
    "name, expected", [("Before.steps", [5, 20]), ("4.steps", [20, 5]), ("KSampler.steps", [5, 5])]
)
def test_values_are_set_by_title_class_or_id(name, expected):
    changed = set_values(PROMPT, {name: 5}, {})
    assert [changed[node]["inputs"]["steps"] for node in "34"] == expected
    assert PROMPT["3"]["inputs"]["steps"] == PROMPT["4"]["inputs"]["steps"] == 20


def test_none_takes_an_input_away():
    assert set_values(PROMPT, {"SaveImage.images": None}, {})["5"]["inputs"] == {}


def test_an_input_that_came_after_the_workflow_was_saved_can_be_set():
    info = {"KSampler": {"input": {"required": {"steps": []}, "optional": {"cfg": []}}}}
    assert set_values(PROMPT, {"Before.cfg": 5}, info)["3"]["inputs"] == {"steps": 20, "seed": 1, "cfg": 5}


@pytest.mark.parametrize(
    "name, message",
    [
        ("During.steps", "no node 'During': it has After, Before, SaveImage"),
        ("Before.cfg", "no input 'cfg': it has steps, seed"),
    ],
)
def test_a_value_for_what_is_not_there_is_refused(name, message):
    with pytest.raises(ToolError, match=message):
        set_values(PROMPT, {name: 5}, {})


def test_a_value_of_the_command_line_is_json_or_text():
    given = ["Train LoRA.steps=500", "4.name=style/a=b", "4.overwrite=true", "v1.5.negative=null", "4.seed=", '4.x="7"']
    assert read_values(given) == {
        "Train LoRA.steps": 500,
        "4.name": "style/a=b",
        "4.overwrite": True,
        "v1.5.negative": None,
        "4.seed": "",
        "4.x": "7",
    }


@pytest.mark.parametrize("text", ["Train LoRA.steps", "steps=500"])
def test_a_value_that_names_no_input_is_refused(text):
    with pytest.raises(ToolError, match=f"--set {text} sets nothing: write NODE.INPUT=VALUE"):
        read_values([text])


def test_of_the_outputs_only_the_named_ones_stay():
    info = {"KSampler": {"output_node": False}, "SaveImage": {"output_node": True}}
    assert keep_outputs(PROMPT, info, []).keys() == {"3", "4"}
    assert keep_outputs(PROMPT, info, ["SaveImage"]) == PROMPT


def test_a_page_becomes_what_the_server_takes(server):
    converted = to_api(page(), server.get("/object_info"))
    assert {node: {key: converted[node][key] for key in ("class_type", "inputs")} for node in converted} == api()
    assert converted["2"]["_meta"]["title"] == "Blue picture"


@pytest.mark.parametrize("workflow, title", [(page(), "Blue picture"), (api(), "SaveImage")], ids=["page", "api"])
def test_a_workflow_gives_its_files_under_the_nodes_title(server, workflow, title):
    [output] = run_workflow(server, workflow)
    [file] = output.files
    assert (output.node, output.title, output.texts) == ("2", title, [])
    assert file.is_absolute() and file.is_file() and file.name.startswith("blue_")


def test_events_come_with_the_title_of_their_node(server):
    seen = []
    run_workflow(server, page(31), lambda event, title, data: seen.append((event, title)))  # 31: not in the cache
    assert seen.index(("executing", "Blue picture")) < seen.index(("executed", "Blue picture"))


def test_texts_of_output_nodes_are_returned(server):
    workflow = {
        "1": {"class_type": "PrimitiveString", "inputs": {"value": "hello"}},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }
    assert run_workflow(server, workflow) == [Output("2", "PreviewAny", [], ["hello"])]


def test_a_node_that_fails_is_named_with_its_message(server):
    (server.base / "input" / "broken.png").write_text("no picture")
    workflow = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "broken.png"}, "_meta": {"title": "My photo"}},
        "2": {"class_type": "SaveImage", "inputs": {"filename_prefix": "x", "images": ["1", 0]}},
    }
    with pytest.raises(ToolError, match=r"^My photo failed: .*broken\.png"):
        run_workflow(server, workflow)
    assert run_workflow(server, page()), "the server takes the next workflow"


def test_a_refused_value_is_named_with_its_node(server):
    with pytest.raises(ToolError) as error:
        run_workflow(server, page(width=0))
    assert str(error.value).splitlines()[0] == "ComfyUI does not take the workflow:"
    assert "(node 1): Value 0 smaller than min of 1: width" in str(error.value)


def test_an_unknown_node_is_named(server):
    workflow = api() | {"1": {"class_type": "NoSuchNode", "inputs": {}}}
    with pytest.raises(ToolError, match="NoSuchNode"):
        run_workflow(server, workflow)


def test_a_workflow_with_one_bad_output_of_two_is_refused(server):
    """The server itself would run the good one and leave the bad one out."""
    bad = {"class_type": "SaveImage", "inputs": {"filename_prefix": "bad", "images": ["9", 0]}}
    with pytest.raises(ToolError, match="does not take the workflow"):
        run_workflow(server, api() | {"8": bad, "9": {**api()["1"], "inputs": {**api()["1"]["inputs"], "width": 0}}})


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent otherwise there")
def test_ctrl_c_interrupts_the_workflow(server, tmp_path):
    chain = {
        str(n): {"class_type": "ImageBlur", "inputs": {"image": [str(n - 1), 0], "blur_radius": 31, "sigma": 5.0}}
        for n in range(2, 60)
    }
    end = {"60": {"class_type": "SaveImage", "inputs": {"filename_prefix": "x", "images": ["59", 0]}}}
    workflow = api(1500) | chain | end
    workflow["1"]["inputs"]["height"] = 1500
    (tmp_path / "slow.json").write_text(json.dumps(workflow))
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\nfrom pathlib import Path\nfrom tools.server import Server\n"
        "from tools.runner import load_workflow, run_workflow\n"
        "server = Server(Path(), Path(), port=int(sys.argv[2]))\n"
        "run_workflow(server, load_workflow(Path(sys.argv[3])), lambda event, *_: print(event, flush=True))"
    )
    runner = subprocess.Popen(
        [sys.executable, "-c", code, str(ROOT), str(server.port), str(tmp_path / "slow.json")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    while runner.stdout.readline().strip() != "executing":
        assert runner.poll() is None
    os.kill(runner.pid, signal.SIGINT)
    runner.communicate(timeout=60)
    assert runner.returncode != 0
    assert run_workflow(server, page()), "the server is free for the next workflow"
    *_, interrupted, _ = server.get("/history").values()  # other files' tests have used the server before
    assert interrupted["status"]["messages"][-1][0] == "execution_interrupted"


def test_a_server_that_dies_in_the_middle_shows_the_end_of_its_log(tmp_path):
    (tmp_path / "main.py").write_text(FALLS_OVER)
    with Server(tmp_path, tmp_path / "base") as running:
        with pytest.raises(ToolError, match=r"(?s)has stopped by itself.*\n    out of memory, alas"):
            run_workflow(running, api())


def test_a_server_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ToolError, match="ComfyUI does not answer at 127.0.0.1:9;"):
        run_workflow(Server(tmp_path, tmp_path, port=9), api())


def test_a_workflow_file_that_is_none_is_named(tmp_path):
    with pytest.raises(ToolError, match="There is no workflow .*nowhere.json"):
        load_workflow(tmp_path / "nowhere.json")
    (tmp_path / "half.json").write_text('{"nodes": [')
    with pytest.raises(ToolError, match="half.json is not JSON"):
        load_workflow(tmp_path / "half.json")


def test_a_training_step_is_one_line():
    assert training_line("Train LoRA", STEP) == (
        "Train LoRA: step 30/400, loss 0.0322, learning rate 5.00e-04, 4.25 steps/s, 1:27 left"
    )


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_the_training_is_one_line_that_stays(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    terminal = Terminal()
    follow = Follower(StatusLine(terminal))
    follow("executing", "Train LoRA", {})
    for step in (30, 31):
        follow("traintrain.step", "Train LoRA", STEP | {"step": step})
        follow("progress", "Train LoRA", {"value": step, "max": 400})  # says less than the step
    follow("executing", "Sampler", {})
    lines = terminal.getvalue().split("\n")
    assert len(lines) == 2
    assert lines[0].split("\r")[-1].startswith("Train LoRA: step 31/400")
    assert lines[1].split("\r")[-1].startswith("Sampler ...")


def test_a_shorter_line_leaves_nothing_of_a_longer_one(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    terminal = Terminal()
    status = StatusLine(terminal)
    status.show("a line that is much too long for it")
    status.show("short")
    status.clear()
    assert terminal.getvalue() == "\ra line that is much" + "\rshort".ljust(20) + "\r     \r"


def test_without_a_terminal_there_is_a_line_every_few_seconds():
    file = io.StringIO()
    follow = Follower(StatusLine(file, interval=0.0))
    throttled = Follower(StatusLine(slow := io.StringIO(), interval=60.0))
    for step in range(1, 6):
        follow("traintrain.step", "Train LoRA", STEP | {"step": step})
        throttled("traintrain.step", "Train LoRA", STEP | {"step": step})
    assert len(file.getvalue().splitlines()) == 5
    assert len(slow.getvalue().splitlines()) == 1


def test_outputs_are_printed_under_their_titles(capsys, tmp_path):
    print_outputs(
        [
            Output("1", "Save LoRA", [], ["/x/star.safetensors"]),
            Output("2", "Nothing", [], []),
            Output("3", "Before and after", [tmp_path / "a.png"], []),
        ]
    )
    assert capsys.readouterr().out == f"Save LoRA:\n  /x/star.safetensors\nBefore and after:\n  {tmp_path / 'a.png'}\n"
