"""ComfyUI's page in a headless Chromium, by playwright: open it, load a graph, queue it, look at its nodes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from .server import Server

CANVASES = ("classic", "nodes 2.0")
OURS = "traintrain"  # in the address or the text of everything that comes from the pack
NO_TRANSLATION = re.compile(r"404 .*/docs/\w+/[\w-]+\.md")  # the host asks for help in the page's language first
OPTIONS = """--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
             --disable-component-update --disable-sync""".split()
# Put into the page before its own scripts: finds nodes, also inside subgraphs.
FIND = """
window.findNodes = (name, graph = app.rootGraph, path = "") => graph.nodes.flatMap((node) => [
    ...([node.type, node.title].includes(name) ? [{ node, path: path + node.id }] : []),
    ...(node.subgraph ? findNodes(name, node.subgraph, `${path}${node.id}:`) : []),
]);
"""
READY = """!!(window.app?.extensionManager?.workflow.activeWorkflow
           && window.LiteGraph?.registered_node_types["TrainTrain_TrainLoRA"])"""
BLANK = {"last_node_id": 0, "last_link_id": 0, "nodes": [], "links": [], "groups": [], "version": 0.4}


class Node:
    """A node on the page; `path` is the server's id of it, "2:7" for node 7 of subgraph node 2."""

    def __init__(self, handle, path: str) -> None:
        self._handle, self.path = handle, path

    def evaluate(self, function: str, argument: Any = None) -> Any:
        """Call a JavaScript function `(node, argument) => ...`."""
        return self._handle.evaluate(function, argument)

    def values(self) -> dict[str, Any]:
        """Return what its widgets hold."""
        return self.evaluate("(node) => Object.fromEntries(node.widgets.map((w) => [w.name, w.value]))")

    def set(self, **values: Any) -> Node:
        """Set widgets as a person does: value, then the widget's callback."""
        self.evaluate(
            """(node, values) => Object.entries(values).forEach(([name, value]) => {
                const widget = node.widgets.find((w) => w.name === name);
                if (!widget) throw new Error(`${node.title} has no widget ${name}`);
                widget.value = value;
                widget.callback?.(value, app.canvas, node);
            })""",
            values,
        )
        return self


class ComfyPage:
    """An open page of a running ComfyUI. `page` is playwright's."""

    def __init__(self, page, server: Server, canvas: str) -> None:
        self.page, self.server, self.canvas = page, server, canvas
        self.errors: list[str] = []
        page.on("console", self._on_console)
        self._calls = page.context.new_cdp_session(page)  # playwright's own event has no stack: who called console.warn
        self._calls.on("Runtime.consoleAPICalled", self._on_call)
        self._calls.send("Runtime.enable")
        page.on("pageerror", lambda error: self.errors.append(f"{error} {error.stack}"))
        page.add_init_script(FIND)
        self.open()

    def open(self) -> None:
        """Open the page, or open it again, and wait until it can be used."""
        nodes_2 = self.canvas != "classic"
        self.server.post("/settings", {"Comfy.VueNodes.Enabled": nodes_2, "Comfy.TutorialCompleted": True})
        self.page.goto(f"http://{self.server.address}")
        self.wait_for(READY, timeout=60)
        self.record("traintrain.step", "executing", "executed", "execution_error", "execution_success")
        assert not self.our_errors(), self.our_errors()

    def evaluate(self, script: str, argument: Any = None) -> Any:
        """Evaluate JavaScript in the page."""
        return self.page.evaluate(script, argument)

    def wait_for(self, script: str, argument: Any = None, timeout: float = 30) -> Any:
        """Wait until JavaScript is true and return its value; `timeout` in seconds."""
        return self.page.wait_for_function(script, arg=argument, timeout=timeout * 1000).json_value()

    def record(self, *events: str) -> None:
        """Keep these events of the server from now on."""
        self.evaluate(
            """(names) => { window.recorded ??= []; for (const name of names)
                app.api.addEventListener(name, ({ detail }) => recorded.push({ name, detail })); }""",
            events,
        )

    def events(self, name: str) -> list[Any]:
        """Return what the recorded events of a name carried."""
        return self.evaluate("(name) => recorded.filter((e) => e.name === name).map((e) => e.detail)", name)

    def wait_for_event(self, name: str, count: int = 1, timeout: float = 60) -> Any:
        """Wait for the count-th recorded event of a name and return what it carried."""
        script = "([name, count]) => recorded.filter((e) => e.name === name).length >= count"
        self.wait_for(script, [name, count], timeout)
        return self.events(name)[count - 1]

    def load(self, workflow: dict) -> None:
        """Put a workflow on the canvas."""
        self.evaluate("(workflow) => app.loadGraphData(workflow)", workflow)
        self.page.wait_for_timeout(100)  # what the new nodes do at once

    def load_template(self, name: str) -> dict:
        """Load a template of the pack from ComfyUI's own route, and return it."""
        workflow = self.server.get(f"/api/workflow_templates/{OURS}/{name}.json")
        self.load(workflow)
        # A newer page may put the nodes there after the call has returned.
        self.wait_for("(count) => app.rootGraph.nodes.length === count", len(workflow["nodes"]))
        return workflow

    def find_all(self, name: str) -> list[Node]:
        """Find nodes by their class or title, also inside subgraphs."""
        count = self.evaluate("(name) => findNodes(name).length", name)
        handles = [self.page.evaluate_handle("([name, i]) => findNodes(name)[i].node", [name, i]) for i in range(count)]
        return [
            Node(h, p) for h, p in zip(handles, self.evaluate("(name) => findNodes(name).map((f) => f.path)", name))
        ]

    def find(self, name: str) -> Node:
        """Find the one node of this class or title."""
        (node,) = self.find_all(name)
        return node

    def serialize(self) -> dict:
        """Return the graph on the canvas as the page saves it."""
        return json.loads(self.evaluate("() => JSON.stringify(app.rootGraph.serialize())"))

    def queue(self) -> str:
        """Queue the graph as the page's button does, and return the prompt's id."""
        with self.page.expect_response(
            lambda answer: answer.url.endswith("/prompt") and answer.request.method == "POST"
        ) as sent:
            self.evaluate("() => app.queuePrompt(0)")
        answer = sent.value.json()
        assert sent.value.ok and not answer["node_errors"], answer
        return answer["prompt_id"]

    def wait_until_done(self, prompt: str, timeout: float = 120) -> dict:
        """Wait until a queued prompt has ended, and return its entry of the history."""
        for _ in range(int(timeout * 5)):
            if entry := self.server.get(f"/history/{prompt}").get(prompt):
                return entry
            self.page.wait_for_timeout(200)
        raise AssertionError(f"{prompt} has not ended within {timeout} seconds")

    def run(self, timeout: float = 120) -> dict[str, dict]:
        """Queue the graph, wait until it has ended well, and return what its nodes show, by their ids."""
        entry = self.wait_until_done(self.queue(), timeout)
        assert entry["status"]["status_str"] == "success", entry["status"]
        return entry["outputs"]

    def drop(self, path: Path) -> None:
        """Drop a file on the canvas as a person does."""
        self.page.set_input_files(self._file_chooser(), path)
        self.evaluate(
            """async () => {
                const data = new DataTransfer();
                data.items.add(document.querySelector("#dropped").files[0]);
                const at = { clientX: innerWidth / 2, clientY: innerHeight / 2, bubbles: true, cancelable: true };
                const target = document.elementFromPoint(at.clientX, at.clientY);
                for (const kind of ["dragenter", "dragover", "drop"])
                    target.dispatchEvent(new DragEvent(kind, { ...at, dataTransfer: data }));
            }"""
        )

    def our_errors(self) -> list[str]:
        """Return the errors and warnings that come from the pack, or that the page wrote because the pack called it."""
        return [error for error in self.errors if OURS in error.lower() and not NO_TRANSLATION.search(error)]

    def _file_chooser(self) -> str:
        self.evaluate(
            """() => { if (document.querySelector("#dropped")) return;
                const input = Object.assign(document.createElement("input"), { type: "file", id: "dropped", hidden: true });
                document.body.append(input); }"""
        )
        return "#dropped"

    def _on_call(self, call: dict) -> None:
        if call["type"] not in ("error", "warning"):
            return
        words = [str(value.get("value", value.get("description", ""))) for value in call["args"]]
        callers = [frame["url"] for frame in call.get("stackTrace", {}).get("callFrames", [])]
        self.errors.append(" ".join(words + callers))

    def _on_console(self, message) -> None:
        if message.type == "error":
            self.errors.append(f"{message.text} {message.location.get('url', '')}")
