"""A ComfyUI server on this machine: start it, talk to it, stop it. Standard library only, for dev.py."""

from __future__ import annotations

import argparse
import json
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import ToolError
from .host_paths import has_nvidia_driver

# A proxy of the environment has no business between us and this machine.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_STARTS_WITHIN = 300.0  # seconds; 15 are usual
_STOPS_WITHIN = 10.0  # seconds, before it is killed
_COLOUR = re.compile(r"\x1b\[[\d;]*m")


class Server:
    """A running ComfyUI; use it in a `with` block, which ends when the server has stopped."""

    def __init__(
        self,
        comfyui: Path,
        base: Path,
        python: Path | str = sys.executable,
        port: int = 0,
        log: Path | None = None,
        options: Sequence[str] = (),
    ) -> None:
        """Describe the server; port 0 is any free one, options are more arguments of ComfyUI's main.py."""
        self.comfyui, self.base, self.python = comfyui, base, python
        self.port, self.options = port, options
        self.log = log or base / "server.log"
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> Server:
        self.port = _free_port() if self.port == 0 else self.port
        if _is_taken(self.port):
            raise ToolError(f"Port {self.port} is taken by another program: choose another one with --port.")
        try:
            self._start()
            self._wait()
        except BaseException:  # Ctrl-C while it starts, too
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """Name the address that the server answers at."""
        return f"127.0.0.1:{self.port}"

    def stop(self) -> None:
        """Stop the server and wait until it is gone."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOPS_WITHIN)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdin.close()
        self._process = None

    def is_running(self) -> bool:
        """Tell whether the server's program still runs."""
        return self._process is not None and self._process.poll() is None

    def get(self, path: str) -> Any:
        """Get an answer of the server, read from JSON. Raises ToolError if there is none."""
        return json.loads(self.request("GET", path)[1])

    def post(self, path: str, data: dict) -> tuple[int, Any]:
        """Send JSON; give the HTTP status and the answer, None if it is empty. Raises ToolError if nobody answers."""
        status, body = self.request("POST", path, json.dumps(data).encode())
        return status, json.loads(body) if body else None

    def request(
        self, method: str, path: str, body: bytes | None = None, content_type: str = "application/json"
    ) -> tuple[int, bytes]:
        """Send a request; give the HTTP status and the body of the answer. Raises ToolError if nobody answers."""
        headers = {} if body is None else {"Content-Type": content_type}
        request = urllib.request.Request(f"http://{self.address}{path}", body, headers, method=method)
        try:
            with _OPENER.open(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except OSError as error:
            raise self.lost() from error

    def lost(self) -> ToolError:
        """Give the error for a server that no longer answers; if it has ended, with the end of its log."""
        try:
            code = self._process and self._process.wait(1)  # a connection breaks a moment before its program has ended
        except subprocess.TimeoutExpired:
            code = None
        if code is None:
            return ToolError(f"ComfyUI does not answer at {self.address}; its log is {self.log}.")
        tail = _COLOUR.sub("", self.log.read_text(encoding="utf-8", errors="replace")).splitlines()[-15:]
        return ToolError(
            "\n".join(
                [f"ComfyUI has stopped by itself; the end of its log {self.log}:", *(f"    {line}" for line in tail)]
            )
        )

    def wait(self) -> None:
        """Return when the server has ended by itself."""
        self._process.wait()

    def _start(self) -> None:
        arguments = [
            "--listen",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--base-directory",
            str(self.base),
            "--database-url",
            "sqlite:///:memory:",
            "--disable-auto-launch",
            "--disable-api-nodes",
            "--use-pytorch-cross-attention",
            *([] if has_nvidia_driver() else ["--cpu"]),
            *self.options,
        ]
        launch = Path(__file__).with_name("launch.py")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "wb") as log:
            # A session of its own: Ctrl-C is ours to answer. The pipe tells the server when we are gone.
            self._process = subprocess.Popen(
                [str(self.python), str(launch), str(self.comfyui), *arguments],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.comfyui,
                start_new_session=True,
            )

    def _wait(self) -> None:
        end = time.monotonic() + _STARTS_WITHIN
        while self.is_running() and time.monotonic() < end:
            if _is_taken(self.port):
                self.get("/queue")
                return
            time.sleep(0.1)
        raise self.lost()


def server_of_arguments(description: str) -> Server:
    """Return the server that the command line names, by --comfyui and --base, for a tool that takes nothing else."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    options = parser.parse_args()
    return Server(options.comfyui.resolve(), options.base.resolve())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
