"""Many at once: three pages that watch, a hundred trainings in the queue, two that cancel and stop in any order."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable

import aiohttp
import pytest

QUEUED = 100
SLOWEST = 5.0  # seconds for an answer: a guard against hanging, not a measure
ENDS_WITHIN = 240.0  # seconds
FIRST, NODE = 1_000_000, "3"  # steps of the training in front; the id of the training node


def graph(seed: int, steps: int) -> dict:
    """A training from words alone, and what saves its LoRA."""
    red, blue = (
        {"class_type": "CLIPTextEncode", "inputs": {"text": word, "clip": ["1", 1]}} for word in ("red", "blue")
    )
    sizes = {"width": 64, "height": 64, "denoise_steps": 0, "guidance": 0.0}
    training = {"steps": steps, "batch_size": 1, "learning_rate": 1e-4, "seed": seed}
    inputs = {"model": ["1", 0], "original": ["2", 0], "target": ["5", 0], **sizes, **training}
    saving = {"lora": [NODE, 1], "name": f"load_{seed}", "save_precision": "fp16", "strength": 1.0, "overwrite": True}
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "shapes.safetensors"}},
        "2": red,
        NODE: {"class_type": "TrainTrain_TrainILECO", "inputs": inputs},
        "4": {"class_type": "TrainTrain_SaveLoRA", "inputs": saving},
        "5": blue,
    }


class Watcher(threading.Thread):
    """A page that is open: it keeps what the server tells it."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self.client, self.address = uuid.uuid4().hex, address
        self.events: list[tuple[str, dict]] = []
        self.ready, self.done = threading.Event(), threading.Event()

    def run(self) -> None:
        asyncio.run(self._watch())

    def ended(self) -> Counter[str]:
        """Count the trainings that have ended by their names."""
        return Counter(data["name"] for event, data in list(self.events) if event == "traintrain.end")

    async def _watch(self) -> None:
        async with aiohttp.ClientSession() as session:
            url = f"http://{self.address}/ws?clientId={self.client}"
            async with session.ws_connect(url, max_msg_size=0) as socket:
                self.ready.set()
                while not self.done.is_set():
                    try:
                        message = await socket.receive(timeout=0.2)
                    except asyncio.TimeoutError:
                        continue
                    if message.type == aiohttp.WSMsgType.TEXT:
                        event = json.loads(message.data)
                        self.events.append((event["type"], event.get("data") or {}))


class Pulse(threading.Thread):
    """Asks the server again and again, and keeps how long it took at most."""

    def __init__(self, server) -> None:
        super().__init__(daemon=True)
        self.server, self.done, self.worst, self.asked = server, threading.Event(), 0.0, 0
        self.failure = ""

    def run(self) -> None:
        while not self.done.is_set():
            started = time.monotonic()
            try:
                self.server.get("/queue")
                assert self.server.post("/traintrain/trainings", {})[0] == 200
            except Exception as error:
                self.failure = f"{type(error).__name__}: {error}"
                return
            self.worst, self.asked = max(self.worst, time.monotonic() - started), self.asked + 1
            time.sleep(0.05)


@pytest.fixture
def watchers(server):
    """Three pages."""
    opened = [Watcher(server.address) for _ in range(3)]
    for watcher in opened:
        watcher.start()
        assert watcher.ready.wait(30)
    yield opened
    for watcher in opened:
        watcher.done.set()
        watcher.join(10)


@pytest.fixture
def pulse(server):
    running = Pulse(server)
    running.start()
    yield running
    running.done.set()
    running.join(30)


def wait_for(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + ENDS_WITHIN
    while not condition():
        assert time.monotonic() < end, f"{what} within {ENDS_WITHIN} seconds"
        time.sleep(0.05)


def queue(server, client: str, seed: int, steps: int) -> str:
    prompt_id = str(uuid.uuid4())
    body = {"prompt": graph(seed, steps), "prompt_id": prompt_id, "client_id": client}
    status, answer = server.post("/prompt", body)
    assert status == 200 and not answer["node_errors"], answer
    return prompt_id


def running(server) -> list[str]:
    return [entry[1] for entry in server.get("/queue")["queue_running"]]


def state(server, prompt_id: str) -> str:
    """Return how a prompt ended, "" if it was taken out of the queue before it began."""
    entry = server.get(f"/history/{prompt_id}").get(prompt_id)
    if entry is None:
        return ""
    events = [event for event, _ in entry["status"]["messages"]]
    return next(name for name in ("execution_interrupted", "execution_error", "execution_success") if name in events)


def cancel(server, mine: list[str], rng: random.Random) -> None:
    """Take prompts out of the queue in any order, one or several at a time."""
    rng.shuffle(mine)
    while mine:
        some = [mine.pop() for _ in range(min(len(mine), rng.choice((1, 1, 4))))]
        server.post("/queue", {"delete": some})
        server.post("/traintrain/stop", {"node": rng.choice(("99", "2:7"))})  # of no training


def test_a_hundred_trainings_are_cancelled_and_stopped_in_any_order(server, watchers, pulse):
    before = len(server.get("/history"))
    owner = [watchers[number % 2].client for number in range(QUEUED)]
    # The first is long, so that what is cancelled behind it has not begun; of the others every twentieth is left to run.
    first = queue(server, owner[0], 10_000, FIRST)
    wait_for(lambda: any(event == "traintrain.step" for event, _ in watchers[2].events), "no step")
    rest = [queue(server, owner[number], 10_000 + number, 2) for number in range(1, QUEUED)]
    left = rest[::20]
    doomed = [[p for number, p in enumerate(rest) if number % 20 and number % 2 == half] for half in (0, 1)]
    cancelling = [threading.Thread(target=cancel, args=(server, list(doomed[n]), random.Random(n))) for n in (0, 1)]
    for thread in cancelling:
        thread.start()
    for thread in cancelling:
        thread.join(ENDS_WITHIN)
        assert not thread.is_alive()
    assert running(server) == [first]
    assert server.post("/traintrain/stop", {"node": NODE})[0] == 200  # one page keeps what was learned
    wait_for(lambda: first not in running(server), "it does not stop")
    wait_for(lambda: not any(server.get("/queue").values()), "the queue is not empty")

    assert state(server, first) == "execution_success"
    assert [state(server, prompt_id) for prompt_id in left] == ["execution_success"] * len(left)
    assert {state(server, prompt_id) for half in doomed for prompt_id in half} == {""}
    assert len(server.get("/history")) - before == 1 + len(left)
    loras = {path.name for path in (server.base / "output" / "loras").glob("load_*.safetensors")}
    assert loras == {f"load_{10_000 + number}.safetensors" for number in (0, *range(1, QUEUED, 20))}
    check_what_was_seen(server, watchers)
    assert not pulse.failure and pulse.asked > 20 and pulse.worst < SLOWEST, (pulse.failure, pulse.worst)
    print(f"slowest answer {pulse.worst:.2f} s of {pulse.asked}")


def check_what_was_seen(server, watchers) -> None:
    """Every page has seen every training begin and end, whoever queued it, and the server has none that runs."""
    expected = {f"load_{10_000 + number}": 1 for number in (0, *range(1, QUEUED, 20))}
    for watcher in watchers:
        wait_for(lambda: watcher.ended().keys() >= expected.keys(), "not every end is seen")
        assert watcher.ended() == expected
        assert all(not data["running"] for event, data in watcher.events if event == "traintrain.end")
    shown = server.post("/traintrain/trainings", {})[1]["trainings"]
    assert not any(training["running"] for training in shown)


def test_interrupts_and_stops_of_two_pages_at_once_leave_no_training_behind(server, watchers, pulse):
    """Both at the same training, some at the one that follows: each ends as stopped or as cancelled, and the last runs."""
    rng = random.Random(3)
    prompts = [queue(server, watchers[number % 2].client, 20_000 + number, FIRST) for number in range(8)]

    def end(_: int) -> None:
        while any(server.get("/queue").values()):
            stop = "/traintrain/stop", {"node": NODE}
            server.post(*rng.choice((("/interrupt", {}), stop, stop, stop)))
            time.sleep(rng.random() / 2)

    threads = [threading.Thread(target=end, args=(number,)) for number in range(2)]
    wait_for(lambda: running(server), "nothing runs")
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(ENDS_WITHIN)
        assert not thread.is_alive()
    wait_for(lambda: not any(server.get("/queue").values()), "the queue is not empty")
    states = [state(server, prompt_id) for prompt_id in prompts]
    assert set(states) <= {"execution_success", "execution_interrupted"}
    assert state_of_last(server, watchers) == "execution_success"
    assert not pulse.failure and pulse.worst < SLOWEST, (pulse.failure, pulse.worst)
    print(f"slowest answer {pulse.worst:.2f} s of {pulse.asked}; {Counter(states)}")


def state_of_last(server, watchers) -> str:
    """Train once more, to its end: nothing of the stops before is left over."""
    last = queue(server, watchers[0].client, 30_000, 3)
    wait_for(lambda: state(server, last), "the last does not end")
    wait_for(lambda: watchers[1].ended()["load_30000"] == 1, "the end is not seen")
    steps = [data["step"] for event, data in watchers[1].events if event == "traintrain.step"]
    assert steps[-1] == 3
    return state(server, last)
