"""What a training in the queue waits for is counted, and its time is estimated only where it is known."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest
from comfy_execution.progress import NodeState
from pack.nodes import pace, page_events, progress, waiting

LORA, ILECO = "TrainTrain_TrainLoRA", "TrainTrain_TrainILECO"


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(pace, "_seconds", {})
    monkeypatch.setattr(progress, "_shown", {})


def training(kind=LORA, steps=100, after=None, **inputs) -> dict:
    """Return a training node on the model of node 1; after: the id of a training whose LoRA it takes"""
    lora = {} if after is None else {"lora": [after, 1]}
    return {"class_type": kind, "inputs": {"model": ["1", 0], "steps": steps, **lora, **inputs}}


def graph(model="sd15", **trainings) -> dict:
    """Return a prompt with trainings by their ids, each with a Save LoRA "save ID"."""
    loader = {"1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": model}}}
    saves = {
        f"save {node_id}": {"class_type": "TrainTrain_SaveLoRA", "inputs": {"lora": [node_id, 1], "name": node_id}}
        for node_id in trainings
    }
    return {**loader, **trainings, **saves}


@pytest.fixture
def ask(monkeypatch):
    """Ask the route what waits. running: the running prompt and states of its nodes; pending: the others, by number.

    states_of: id of the prompt that the states are of; p0 is the running one
    """

    def ask(running, states, *pending, outputs=None, states_of="p0"):
        def item(number, prompt):
            ends = [node_id for node_id in prompt if node_id.startswith("save")] if outputs is None else outputs
            return number, f"p{number}", prompt, {"extra_pnginfo": {"workflow": {"id": "w"}}}, ends, {}

        queued = [item(number, prompt) for number, prompt in enumerate(pending, 1)]
        queue = SimpleNamespace(
            get_current_queue_volatile=lambda: ([item(0, running)] if running else [], queued[::-1])
        )
        monkeypatch.setattr(page_events, "server", lambda: SimpleNamespace(prompt_queue=queue))
        nodes = {node_id: {"state": state} for node_id, state in states.items()}
        monkeypatch.setattr(waiting, "get_progress_state", lambda: SimpleNamespace(prompt_id=states_of, nodes=nodes))
        answer = asyncio.run(waiting.send_waiting(None))
        return {each.pop("node"): each for each in json.loads(answer.body)["waiting"]}

    return ask


def running(node_id: str, seconds_left: float) -> None:
    progress._shown["w", node_id] = {"running": True, "seconds_left": seconds_left}


def test_a_queue_without_trainings_has_nothing_to_say(ask):
    image = {"save 1": {"class_type": "SaveImage", "inputs": {}}}
    assert ask(None, {}) == {} and ask(image, {}, image) == {}


def test_a_training_behind_another_starts_when_that_has_ended(ask):
    running("a", 90.0)
    now = graph(a=training())
    shown = ask(now, {"1": NodeState.Finished, "a": NodeState.Running}, graph(b=training(ILECO)))
    assert shown == {"b": {"workflow": "w", "before": 1, "at_least": False, "seconds": 90.0, "own": None, "times": 1}}


def test_an_unknown_time_anywhere_before_makes_the_sum_unknown(ask):
    running("a", 90.0)
    states = {"a": NodeState.Running}
    shown = ask(graph(a=training()), states, graph(b=training(ILECO)), graph(c=training()))
    assert (shown["b"]["before"], shown["b"]["seconds"]) == (1, 90.0)
    assert (shown["c"]["before"], shown["c"]["seconds"]) == (2, None)


def test_trainings_like_one_that_ran_are_estimated_by_its_speed_and_their_own_steps(ask):
    first = graph(a=training(steps=100, seed=1, learning_rate=1e-4, batch_size=2))
    pace.note(pace.kind_of(first, "a"), 0.5)
    again = graph(b=training(steps=300, seed=2, learning_rate=1e-3, batch_size=2))
    larger = graph(c=training(steps=300, seed=2, learning_rate=1e-3, batch_size=4))
    other = graph("sdxl", d=training(steps=300, batch_size=2))
    shown = ask(first, {"a": NodeState.Running}, again, larger, other)
    assert [shown[node]["own"] for node in "bcd"] == [150.0, None, None]
    assert [shown[node]["seconds"] for node in "bcd"] == [50.0, 200.0, None]


def test_a_training_of_the_same_graph_waits_for_those_whose_lora_it_takes(ask):
    chain = graph(a=training(), b=training(after="a"), c=training(after="b"))
    running("a", 10.0)
    shown = ask(chain, {"a": NodeState.Running})
    assert {node: (each["before"], each["at_least"]) for node, each in shown.items()} == {
        "b": (1, False),
        "c": (2, False),
    }
    assert shown["b"]["seconds"] == 10.0 and shown["c"]["seconds"] is None
    shown = ask(chain, {"a": NodeState.Finished, "b": NodeState.Running})
    assert {node: each["before"] for node, each in shown.items()} == {"c": 1}


def test_of_trainings_in_no_order_only_what_is_certain_is_counted(ask):
    two = graph(a=training(), b=training(ILECO))
    shown = ask(graph(z=training()), {"z": NodeState.Running}, two, graph(c=training()))
    assert {node: (each["before"], each["at_least"]) for node, each in shown.items()} == {
        "a": (1, True),
        "b": (1, True),
        "c": (3, False),
    }


def test_one_node_queued_several_times_is_counted_and_its_next_turn_is_shown(ask):
    shown = ask(graph(a=training()), {"a": NodeState.Running}, graph(a=training(seed=2)), graph(a=training(seed=3)))
    assert (shown["a"]["before"], shown["a"]["times"]) == (1, 2)


def test_only_trainings_that_the_queued_outputs_need_count(ask):
    both = graph(a=training(), b=training(ILECO))
    assert list(ask(None, {}, both, outputs=["save b"])) == ["b"]


@pytest.mark.parametrize("states_of, waits", [("p0", []), ("the last prompt", ["a"])])
def test_states_of_another_prompt_do_not_count(ask, states_of, waits):
    """Between two prompts, ComfyUI still has the states of the last one."""
    assert list(ask(graph(a=training()), {"a": NodeState.Finished}, states_of=states_of)) == waits


def test_the_speed_of_a_training_is_noted_for_others_like_it(monkeypatch):
    prompt = graph(a=training(steps=4))
    node = SimpleNamespace(hidden=SimpleNamespace(unique_id="a", prompt=prompt, extra_pnginfo=None))
    store = SimpleNamespace(fingerprint="f", name="n", samples=list)
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = progress.TrainingProgress(node, 4, store)
    shown.begin(SimpleNamespace(size=(1, 1), blocks=[], history=progress.History()))
    for number in (1, 2):
        now[0] += 3.0
        shown.report(progress.Step(number, 1.0, 0.1, False, False))
    assert pace.estimate(graph(b=training(steps=10)), "b") == 30.0
    assert progress.seconds_left(None, "a") == 6.0


def test_links_in_a_circle_end(ask):
    circle = graph(a=training(after="b"), b=training(after="a"))
    assert set(ask(None, {}, circle)) == {"a", "b"}
    assert pace.kind_of(circle, "a")
