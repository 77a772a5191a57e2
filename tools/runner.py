"""Runs a workflow on a server: page format to API format, the queue, the events, the outputs."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from .errors import ToolError
from .server import Server

_ENDS_WITHIN = 20.0  # seconds, after it was interrupted

OnEvent = Callable[[str, str, dict], None]  # the event's name, the title of its node ("" if none), its data


@dataclass(frozen=True)
class Output:
    """What an output node has shown: files that it saved, and texts."""

    node: str
    title: str
    files: list[Path]
    texts: list[str]


def load_workflow(path: Path) -> dict:
    """Read a workflow file of either format. Raises ToolError."""
    try:
        workflow = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ToolError(f"There is no workflow {path}.") from error
    except ValueError as error:
        raise ToolError(f"{path} is not JSON ({error}): save the workflow again from the page.") from error
    if not isinstance(workflow, dict):
        raise ToolError(f"{path} is JSON, but no workflow: save the workflow again from the page.")
    return workflow


def to_api(workflow: dict, object_info: dict) -> dict:
    """Convert a workflow as the page saves it to what the server takes; API format stays as it is. Raises ToolError."""
    if "nodes" not in workflow:
        return workflow
    from comfy_cli.workflow_to_api import WorkflowConversionError, convert_ui_to_api

    try:
        return convert_ui_to_api(workflow, object_info)
    except WorkflowConversionError as error:
        raise ToolError(f"The workflow cannot be converted ({error}): open and save it again in the page.") from error


def set_values(prompt: dict, values: dict[str, Any], object_info: dict) -> dict:
    """Return a workflow in API format with other values: {"NODE.INPUT": value}, NODE by its title, class or id.

    None takes an input away. A node may get an input that it has today and had not when the workflow was saved.
    Raises ToolError for a node or an input that is not there.
    """
    changed = json.loads(json.dumps(prompt))
    for name, value in values.items():
        node_name, _, key = name.rpartition(".")
        nodes = [
            node
            for number, node in changed.items()
            if node_name in (number, node["class_type"], _title(changed, number))
        ]
        if not nodes:
            titles = ", ".join(sorted({_title(changed, number) for number in changed}))
            raise ToolError(f"The workflow has no node {node_name!r}: it has {titles}.")
        for node in nodes:
            if key not in (known := _inputs_of(node, object_info)):
                raise ToolError(f"{node_name} has no input {key!r}: it has {', '.join(known)}.")
        for node in nodes:
            node["inputs"] |= {key: value}
            if value is None:
                del node["inputs"][key]
    return changed


def _inputs_of(node: dict, object_info: dict) -> list[str]:
    schema = object_info.get(node["class_type"], {}).get("input", {})
    return list(node["inputs"] | schema.get("required", {}) | schema.get("optional", {}))


def keep_outputs(prompt: dict, object_info: dict, kinds: Sequence[str]) -> dict:
    """Return a workflow in API format without the output nodes of other classes, and so without what only they need."""
    return {
        number: node
        for number, node in prompt.items()
        if node["class_type"] in kinds or not object_info[node["class_type"]]["output_node"]
    }


def run_workflow(server: Server, workflow: dict, on_event: OnEvent = lambda *_: None) -> list[Output]:
    """Run a workflow of either format to its end and return what its output nodes show.

    Raises ToolError if the server refuses the workflow, a node fails, or someone interrupts it. Ctrl-C interrupts it.
    """
    prompt = to_api(workflow, server.get("/object_info"))
    prompt_id = str(uuid.uuid4())
    try:
        asyncio.run(_follow(server, prompt, prompt_id, on_event))
    except KeyboardInterrupt:
        cancel(server, prompt_id)
        _wait(server, prompt_id)
        raise
    shown = server.get(f"/history/{prompt_id}")[prompt_id]["outputs"]
    return [_output(server, prompt, node, data) for node, data in shown.items()]


def cancel(server: Server, prompt_id: str) -> None:
    """Take a prompt out of the queue, or interrupt it."""
    server.post("/queue", {"delete": [prompt_id]})
    server.post("/interrupt", {"prompt_id": prompt_id})


def _wait(server: Server, prompt_id: str) -> None:
    """Return when a prompt has ended: a training that is interrupted writes what it has learned."""
    end = time.monotonic() + _ENDS_WITHIN
    while time.monotonic() < end and prompt_id in str(server.get("/queue")["queue_running"]):
        time.sleep(0.1)


async def _follow(server: Server, prompt: dict, prompt_id: str, on_event: OnEvent) -> None:
    client_id = uuid.uuid4().hex
    try:
        async with aiohttp.ClientSession() as session:
            # Listen first: the server sends a prompt's events once.
            async with session.ws_connect(f"http://{server.address}/ws?clientId={client_id}", max_msg_size=0) as socket:
                _queue(server, prompt, prompt_id, client_id)
                if await _listen(socket, prompt, prompt_id, on_event):
                    return
    except aiohttp.ClientError as error:
        raise server.lost() from error
    raise server.lost()


async def _listen(socket: aiohttp.ClientWebSocketResponse, prompt: dict, prompt_id: str, on_event: OnEvent) -> bool:
    """Follow the events of a prompt; True when it has ended well, False when the server has gone before."""
    failure = None
    async for message in socket:
        if message.type != aiohttp.WSMsgType.TEXT:  # previews
            continue
        event, data = _event(message.data)
        if data.get("prompt_id", prompt_id) != prompt_id:
            continue
        if event == "executing" and data.get("node") is None:  # sent after the history is written
            if failure:
                raise ToolError(failure)
            return True
        title = _title(prompt, str(data.get("display_node") or data.get("node") or data.get("node_id") or ""))
        failure = _failure(event, title, data) or failure
        on_event(event, title, data)
    return False


def _event(text: str) -> tuple[str, dict]:
    message = json.loads(text)
    return message["type"], message.get("data") or {}


def _queue(server: Server, prompt: dict, prompt_id: str, client_id: str) -> None:
    status, answer = server.post("/prompt", {"prompt": prompt, "prompt_id": prompt_id, "client_id": client_id})
    # With some outputs invalid and others not, the server says 200 and leaves the invalid ones out.
    if status != 200 or answer["node_errors"]:
        cancel(server, prompt_id)
        raise ToolError("\n".join(_refusal(prompt, answer)))


def _refusal(prompt: dict, answer: dict) -> list[str]:
    sentences = [
        f"{_title(prompt, node)} (node {node}): {_sentence(error)}"
        for node, errors in answer["node_errors"].items()
        for error in errors["errors"]
    ]
    return ["ComfyUI does not take the workflow:", *(sentences or [_sentence(answer["error"])])]


def _sentence(error: dict) -> str:
    parts = [str(error.get(key, "")).strip().rstrip(".") for key in ("message", "details")]
    return ": ".join(dict.fromkeys(part for part in parts if part)) + "."


def _failure(event: str, title: str, data: dict) -> str | None:
    if event == "execution_error":
        return f"{title} failed: {data['exception_message'].strip()}"
    if event == "execution_interrupted":
        return f"{title} was interrupted."
    return None


def _title(prompt: dict, node: str) -> str:
    found = prompt.get(node) or prompt.get(node.partition(".")[0])  # a node that another one put in: "7.0.0.1"
    if not isinstance(found, dict):
        return node
    return found.get("_meta", {}).get("title") or found.get("class_type") or node


def _output(server: Server, prompt: dict, node: str, data: dict) -> Output:
    # What lies in the temporary folder is gone with the server.
    files = [
        server.base / "output" / item["subfolder"] / item["filename"]
        for items in data.values()
        for item in items
        if isinstance(item, dict) and item.get("type") == "output"
    ]
    texts = [str(text) for text in data.get("text", ())]
    return Output(node, _title(prompt, node), files, texts)
