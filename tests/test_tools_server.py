"""Starting and stopping a server: with a stand-in for ComfyUI of a few lines."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from pack.tools.errors import ToolError
from pack.tools.host_paths import ROOT
from pack.tools.server import Server

ANSWERS = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"{}")
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + ANSWERS


def server(folder, program, **options):
    (folder / "main.py").write_text(program)
    return Server(folder, folder / "base", **options)


def answers(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_the_server_answers_inside_the_block_and_is_gone_after_it(tmp_path):
    with server(tmp_path, ANSWERS) as running:
        assert running.get("/queue") == {}
        assert running.is_running()
    assert not running.is_running()
    assert not answers(running.port)


def test_a_server_that_dies_shows_the_end_of_its_log(tmp_path):
    with pytest.raises(ToolError, match=r"(?s)has stopped by itself.*server.log.*\n    no model, no fun"):
        with server(tmp_path, "raise SystemExit('\\033[32mno model, no fun\\033[0m')"):
            pass


def test_a_taken_port_is_named(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ToolError, match=f"Port {port} is taken by another program: choose another one with --port"):
            with server(tmp_path, ANSWERS, port=port):
                pass


@pytest.mark.skipif(sys.platform == "win32", reason="Windows knows no SIGTERM")
def test_a_server_that_does_not_listen_to_a_polite_word_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("pack.tools.server._STOPS_WITHIN", 0.5)
    with server(tmp_path, DEAF) as running:
        pass
    assert not answers(running.port)


def test_the_server_ends_when_the_program_that_started_it_is_killed(tmp_path):
    (tmp_path / "main.py").write_text(ANSWERS)
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\nfrom pathlib import Path\nfrom tools.server import Server\n"
        "folder = Path(sys.argv[2])\n"
        "with Server(folder, folder / 'base') as s: print(s.port, flush=True); time.sleep(600)"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", code, str(ROOT), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    port = int(starter.stdout.readline())
    assert answers(port)
    starter.kill()
    starter.wait()
    end = time.monotonic() + 10
    while answers(port) and time.monotonic() < end:
        time.sleep(0.1)
    assert not answers(port)
    starter.stdout.close()


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent otherwise there")
def test_serve_prints_the_address_and_ends_with_its_signal(tmp_path):
    """The command as it stands, with a ComfyUI and a host folder that cost nothing."""
    for name in ("comfy", "host"):
        (tmp_path / name).mkdir()
    for name, content in (("main.py", ANSWERS), ("nodes.py", ""), ("comfy/sd.py", "")):
        (tmp_path / name).write_text(content)
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1))\nimport dev\ndev.prepare_base = lambda *_: None\n"
        "sys.exit(dev.main())"
    )
    started = subprocess.Popen(
        [
            sys.executable,
            "-c",
            code,
            str(ROOT),
            "serve",
            "--comfyui",
            str(tmp_path),
            "--port",
            "0",
            "--base",
            str(tmp_path / "base"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TRAINTRAIN_HOST": str(tmp_path / "host")},
    )
    assert started.stdout.readline() == "ComfyUI starts ...\n"
    line = started.stdout.readline()
    assert line.startswith("ComfyUI answers at http://127.0.0.1:")
    port = int(line.split("127.0.0.1:")[1].split()[0])
    started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=30)
    assert (started.returncode, said) == (130, "Stopped.\n")
    assert not answers(port)
