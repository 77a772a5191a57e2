#!/usr/bin/env python3
"""The commands of this repository: `python3 dev.py demo`, `run`, `evaluate`, `bench`, `bundle`, `test`, `serve`, `setup`.

Standard library only. This file must be readable by every Python 3, so that an old one gets a sentence.
"""

import argparse
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

if sys.version_info < (3, 10):
    sys.exit(
        "Python 3.10 or newer is needed, and this is {}.{} ({}): run dev.py with another one.".format(
            sys.version_info[0], sys.version_info[1], sys.executable
        )
    )

from tools.base_folder import forget_trainings, prepare_base
from tools.browser import ensure_browser
from tools.checkers import ensure_checkers
from tools.errors import ToolError
from tools.host_paths import ROOT, existing_host, host_folder, keep_bytecode, own_host, python_command, require_packages
from tools.host_setup import PINNED, REQUIREMENTS, RUNNER_REQUIREMENTS, set_up
from tools.newest_host import newest_folder, newest_versions
from tools.server import Server
from tools.suite_report import report
from tools.terminal import StatusLine

PACK = ROOT / "requirements.txt"
ENDS_WITHIN = 25  # seconds, for a program that keeps what it has learned when it is ended
KILLED = -9  # exit status of a program that Linux or macOS has ended for its memory
NEWEST_HELP = (
    "with the newest ComfyUI, page, PyTorch and packages that can be had, in .host-newest; .host stays as it is"
)
SET_HELP = "another value, NODE being a title, class or id; again for more: --set 'Train LoRA.steps=500'"


def setup(host, arguments):
    """Install ComfyUI for the other commands and make the demonstration model."""
    print("ComfyUI: {}\nPython: {}\nBase folder: {}".format(host.comfyui, host.python, host.base))
    return 0


def demo(host, arguments):
    """Train a LoRA in a ComfyUI graph and sample with it."""
    forget_trainings(host.base)
    workflow = ROOT / "example_workflows" / "1_Train_a_LoRA.json"
    return run_program(
        python_command(host, "tools.run_command", "--comfyui", host.comfyui, "--base", host.base, workflow)
    )


def run(host, arguments):
    """Run a workflow without a browser; under torchrun, its trainings by several processes together."""
    command = python_command(host, "tools.run_command", "--comfyui", host.comfyui, "--base", host.base)
    values = [text for value in arguments.set for text in ("--set", value)]
    return run_program(command + values + [str(arguments.workflow.absolute())])


def evaluate(host, arguments):
    """Train each method on the demonstration model and measure its images."""
    forget_trainings(host.base)
    command = python_command(host, "tools.evaluate", "--comfyui", host.comfyui, "--base", host.base)
    values = [text for value in arguments.set for text in ("--set", value)]
    return run_program(command + ["--quick"] * arguments.quick + ["--only", arguments.only] + values)


def bench(host, arguments):
    """Time trainings beside ComfyUI's own trainer, diffusers with PEFT, and the bare model."""
    folders = ["--comfyui", host.comfyui, "--base", host.base, "--folder", host.folder / "bench"]
    command = python_command(host, "tools.bench", *folders, "--only", arguments.only)
    # Memory that is freed stays with the process, as on a GPU: the first touch of fresh memory would be most of the time.
    kept = {"MALLOC_MMAP_THRESHOLD_": str(2**34), "MALLOC_TRIM_THRESHOLD_": str(2**34)}
    return run_program(command + ["--quick"] * arguments.quick, env=dict(os.environ, **kept))


def bundle(host, arguments):
    """Pack what a machine with a GPU and without a network needs to run `bench` and the precision tests."""
    options = ["--has", arguments.has.absolute()] if arguments.has else []
    command = python_command(host, "tools.bundle", "--comfyui", host.comfyui, *options)
    return run_program(command + ["--python-version", arguments.version, str(arguments.folder.absolute())])


def test(host, arguments):
    """Run the tests; further arguments go to pytest."""
    ensure_browser(host.python, host.folder / "browser.log", StatusLine())
    ensure_checkers(host.folder, arguments.versions, StatusLine())
    environment = dict(os.environ, TRAINTRAIN_COMFYUI=str(host.comfyui), TRAINTRAIN_HOST=str(host.folder))
    environment.setdefault("OMP_NUM_THREADS", "1")  # two processes of one thread each are twice as fast as one of two
    command = [str(host.python), "-m", "pytest", "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]
    if not arguments.newest:
        return run_program(command + arguments.rest, env=environment)
    results = host.folder / "results.xml"
    with suppress(FileNotFoundError):
        results.unlink()
    status = run_program(command + ["--junitxml", str(results)] + arguments.rest, env=environment)
    print(report(host, results))
    return status


def serve(host, arguments):
    """Start ComfyUI with the pack and the demonstration model, for a browser."""
    base = arguments.base.absolute() if arguments.base else host.base
    prepare_base(host, base, StatusLine())
    print("ComfyUI starts ...", flush=True)
    with Server(host.comfyui, base, host.python, arguments.port) as server:
        print("ComfyUI answers at http://{} (log: {}). Ctrl-C stops it.".format(server.address, server.log), flush=True)
        server.wait()
        raise server.lost()


# The command, and the requirement files that a ComfyUI of one's own (--comfyui) must have installed for it.
COMMANDS = {
    setup: [PACK],
    demo: [PACK, RUNNER_REQUIREMENTS],
    run: [PACK, RUNNER_REQUIREMENTS],
    evaluate: [PACK, RUNNER_REQUIREMENTS],
    bench: REQUIREMENTS + [RUNNER_REQUIREMENTS],
    bundle: REQUIREMENTS + [RUNNER_REQUIREMENTS],
    test: REQUIREMENTS + [RUNNER_REQUIREMENTS],
    serve: [PACK],
}


def run_program(command, env=None):
    """Run a program in the repository and give its exit status; Ctrl-C is the program's to answer."""
    process = subprocess.Popen(command, cwd=str(ROOT), env=env)
    try:
        while True:
            try:
                status = process.wait()
                break
            except KeyboardInterrupt:
                continue
    except SystemExit:  # somebody ends us
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(ENDS_WITHIN)
        raise
    finally:
        process.kill()  # only if something else ended us
    if status == KILLED:
        raise ToolError("The system has killed the program, most likely because it needed more memory than there is.")
    return status


def find_host(arguments, requirements):
    """Make the host, or check the one that the user named."""
    folder = newest_folder(host_folder()) if arguments.newest else host_folder()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return ready_host(folder, arguments)
    if arguments.comfyui:
        host = existing_host(folder, arguments.comfyui, arguments.python)
        require_packages(host.python, requirements)
    else:
        set_up(folder, StatusLine(), arguments.versions)
        host = own_host(folder)
    prepare_base(host, host.base, StatusLine())
    return host


def ready_host(folder, arguments):
    """Find the host that is there: of the processes that torchrun starts at once, none can make it."""
    if arguments.run is not run:
        raise ToolError("torchrun starts `dev.py run` alone: start `dev.py {}` without it.".format(arguments.command))
    named = arguments.comfyui and existing_host(folder, arguments.comfyui, arguments.python)
    host = named or own_host(folder)
    if not host.python.is_file() or not (host.base / "custom_nodes" / "traintrain").exists():
        raise ToolError("ComfyUI is not set up in {}: run `python3 dev.py setup` here first.".format(folder))
    return host


def add_options(command, sub):
    """Add the options that only this command has."""
    if command is run:
        sub.add_argument("workflow", type=Path, metavar="WORKFLOW.json", help="as the page saves or exports it")
    if command in (run, evaluate):
        sub.add_argument("--set", action="append", default=[], metavar="NODE.INPUT=VALUE", help=SET_HELP)
    if command in (evaluate, bench):
        parts = "trainings" if command is evaluate else "parts"
        sub.add_argument("--quick", action="store_true", help="a rough table in a few minutes")
        sub.add_argument("--only", default="", metavar="NAME", help="only the {} with this in their name".format(parts))
    if command is test:
        sub.add_argument("--newest", action="store_true", help=NEWEST_HELP)
    if command is bundle:
        sub.add_argument("folder", type=Path, metavar="FOLDER", help="where the parts of at most 60 MB go")
        sub.add_argument("--has", type=Path, metavar="FILE", help="`pip freeze` of that machine: not packed again")
        sub.add_argument("--version", default="3.12", metavar="X.Y", help="the Python there")
    if command is serve:
        sub.add_argument("--port", type=int, default=8188)
        sub.add_argument("--base", type=Path, metavar="DIR", help="another folder for models, input and output")


def read_arguments():
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for command in COMMANDS:
        sub = commands.add_parser(command.__name__, help=command.__doc__, description=command.__doc__)
        sub.set_defaults(run=command, newest=False)
        sub.add_argument("--comfyui", type=Path, metavar="PATH", help="a ComfyUI that is there already")
        sub.add_argument(
            "--python", type=Path, metavar="PATH", help="the interpreter that runs it, if not its own venv's"
        )
        add_options(command, sub)
    arguments, arguments_rest = parser.parse_known_args()
    arguments.rest = arguments_rest
    if not arguments.command:
        parser.error("name a command: " + ", ".join(command.__name__ for command in COMMANDS))
    if arguments.rest and arguments.run is not test:
        parser.error("{} does not know {}".format(arguments.command, " ".join(arguments.rest)))
    arguments.versions = newest_versions() if arguments.newest else PINNED
    if arguments.newest and arguments.comfyui:
        parser.error("--newest makes a ComfyUI of its own: leave out --comfyui, or --newest")
    if arguments.python and not arguments.comfyui:
        parser.error("--python names the interpreter of a ComfyUI: give --comfyui, too")
    return arguments


def end(*_):
    """Answer SIGTERM so that what we started ends, too; once, for torchrun sends it more than once."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


def main():
    """Run the command that the command line names; give the exit status."""
    signal.signal(signal.SIGTERM, end)
    arguments = read_arguments()
    keep_bytecode(host_folder() / "bytecode")
    try:
        return arguments.run(find_host(arguments, COMMANDS[arguments.run]), arguments)
    except ToolError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
