"""Says of each training in ComfyUI's queue what is before it, and how long that takes as far as it is known."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Optional

from aiohttp import web
from comfy_execution.progress import NodeState, get_progress_state

from . import pace, page_events, progress
from .training_node import TrainingNode

ROUTE = "/traintrain/waiting"

Seconds = Optional[float]  # None if unknown


@dataclass
class Waiting:
    """Describes a training that waits, for the page.

    workflow, node: ids
    before: trainings that are certainly trained before it
    at_least: whether there are more, of which ComfyUI chooses the order
    seconds: until those before it have ended, or None if unknown
    own: seconds of its own steps, or None if unknown
    times: how often the queue has it
    """

    workflow: str | None
    node: str
    before: int
    at_least: bool
    seconds: Seconds
    own: Seconds
    times: int = 1


@dataclass(frozen=True)
class _Job:
    """Describes a prompt in the queue: its graph, the trainings that are not done, and of those the one that runs."""

    workflow: str | None
    prompt: pace.Prompt
    trainings: list[str]
    running: set[str]

    def left(self, node_id: str) -> Seconds:
        """Return how many seconds the steps of a training still take."""
        seconds = progress.seconds_left(self.workflow, node_id) if node_id in self.running else None
        return pace.estimate(self.prompt, node_id) if seconds is None else seconds


async def send_waiting(_: web.Request) -> web.Response:
    """Send which trainings wait in the queue."""
    server = page_events.server()
    running, pending = server.prompt_queue.get_current_queue_volatile()
    state = get_progress_state()
    states = {node_id: entry["state"] for node_id, entry in state.nodes.items()}
    jobs = [_read_job(item, states if item[1] == state.prompt_id else {}) for item in running]
    jobs += [_read_job(item, {}) for item in sorted(pending, key=lambda item: item[0])]
    return web.json_response({"waiting": [asdict(each) for each in find_waiting(jobs)]})


def find_waiting(jobs: list[_Job]) -> list[Waiting]:
    """Return the trainings of jobs, in the order of the queue, that have not begun; each node once."""
    found: dict[tuple, Waiting] = {}
    before, seconds = 0, 0.0
    for job in jobs:
        waiting = [node_id for node_id in job.trainings if node_id not in job.running]
        sooner = {node_id: job.running | (_nodes_before(job.prompt, node_id) & {*waiting}) for node_id in waiting}
        for node_id in waiting:
            key = job.workflow, node_id
            if key in found:
                found[key].times += 1
                continue
            at_least = any(node_id not in sooner[other] for other in {*waiting} - sooner[node_id] - {node_id})
            until = _total([seconds, *map(job.left, sooner[node_id])])
            own = pace.estimate(job.prompt, node_id)
            found[key] = Waiting(*key, before + len(sooner[node_id]), at_least, until, own)
        before, seconds = before + len(job.trainings), _total([seconds, *map(job.left, job.trainings)])
    return list(found.values())


def _read_job(item: tuple, states: dict[str, NodeState]) -> _Job:
    """Return a job. item: of ComfyUI's queue; states: of its nodes, if it runs"""
    _, _, prompt, extra, outputs, *_ = item
    kinds = {node.define_schema().node_id for node in TrainingNode.__subclasses__()}
    needed = {*outputs}.union(*(_nodes_before(prompt, node_id) for node_id in outputs))
    trainings = [
        node_id
        for node_id, node in prompt.items()
        if node.get("class_type") in kinds and node_id in needed and states.get(node_id) != NodeState.Finished
    ]
    running = {node_id for node_id in trainings if states.get(node_id) == NodeState.Running}
    return _Job(page_events.workflow_id(extra.get("extra_pnginfo")), prompt, trainings, running)


def _nodes_before(prompt: pace.Prompt, node_id: str) -> set[str]:
    """Return the ids of all nodes that a node depends on."""
    found, open_ids = set(), [node_id]
    while open_ids:
        inputs = prompt.get(open_ids.pop(), {}).get("inputs", {})
        links = {value[0] for value in inputs.values() if pace.is_link(value)} - found
        found |= links
        open_ids += links
    return found


def _total(seconds: list[Seconds]) -> Seconds:
    return None if None in seconds else sum(seconds)
