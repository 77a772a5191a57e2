"""What the pack consists of: no pickle, no code out of text, no network, and dependencies with a bound that is tested."""

from __future__ import annotations

import ast
import importlib.metadata
import re
from pathlib import Path

import pytest
from conftest import ROOT

SHIPPED = [ROOT / "__init__.py", *sorted((ROOT / "nodes").rglob("*.py")), *sorted((ROOT / "trainer").rglob("*.py"))]
NETWORK = {"urllib", "requests", "socket", "http", "httpx", "ftplib", "smtplib", "ssl", "websockets", "huggingface_hub"}
CODE = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "code", "codeop", "runpy"}
PROGRAMS = {"subprocess", "pty", "pip", "ctypes", "multiprocessing"}
BUILT_IN = {"eval", "exec", "compile", "__import__", "breakpoint"}
CALLS = {"torch.load", "torch.hub.load", "os.system", "os.popen", "os.startfile", "torch.save"}
FREED = """ctypes.CDLL('libc.so.6').malloc_trim"""  # gives freed memory back, which nothing in Python does
CALLS |= {f"os.{name}" for name in ("execv", "execve", "fork", "spawnv", "posix_spawn")}


def forbidden(tree: ast.AST) -> list[str]:
    """Return what a module imports or calls that the pack must not, with its line."""
    found = [(node, name) for node in ast.walk(tree) for name in (*_imports(node), *_calls(node))]
    found = [(node, name) for node, name in found if name != "ctypes" or not _only_frees(tree)]
    return [f"{name} in line {node.lineno}" for node, name in found]


def _only_frees(tree: ast.AST) -> bool:
    """Tell whether a module uses ctypes for FREED and for nothing else."""
    allowed = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node) == FREED]
    inside = {id(inner) for node in allowed for inner in ast.walk(node)}
    uses = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "ctypes"]
    return bool(uses) and all(id(node) in inside for node in uses)


def _imports(node: ast.AST) -> list[str]:
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    if isinstance(node, ast.ImportFrom) and not node.level:
        names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [n for n in names if n.partition(".")[0] in NETWORK | CODE | PROGRAMS or n in CALLS]


def _calls(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Name) and node.id in BUILT_IN:  # a mere mention, for it may be called under another name
        return [node.id]
    if isinstance(node, ast.Attribute) and ast.unparse(node) in CALLS:
        return [ast.unparse(node)]
    if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
        return ["allow_pickle"]
    return []


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_module_unpickles_runs_text_as_code_starts_programs_or_asks_the_network(path):
    assert forbidden(ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from urllib.request import urlopen", "import torch\ntorch.load('x')", "from torch import load"]
    + ["run = eval", "exec('x')", "import socket as s", "import numpy\nnumpy.load('x', allow_pickle=True)"]
    + [
        "def f():\n    import subprocess",
        "import os\nos.system('x')",
        "from os import system",
        "import ctypes",
        "import ctypes\nctypes.CDLL('libc.so.6').malloc_trim(0)\nctypes.CDLL('libc.so.6').system(b'x')",
        "import ctypes\nlibrary = ctypes\nctypes.CDLL('libc.so.6').malloc_trim(0)",
        "from ctypes import CDLL",
        "compile('x', '', 'exec')",
    ],
)
def test_what_is_forbidden_is_seen(source):
    assert forbidden(ast.parse(source))


def test_what_looks_like_it_is_allowed():
    source = "import re, ast\nre.compile('x')\nast.literal_eval('1')\nmodel.eval()\n'eval(x)'  # exec()"
    assert forbidden(ast.parse(source)) == []


def imported_by_name() -> set[str]:
    """Return the modules that are imported by a name in a string: those of the tables of optimizers and schedules."""
    from pack.trainer.optimizer import OPTIMIZERS
    from pack.trainer.schedule import SCHEDULES

    return {source.module for source in (*OPTIMIZERS.values(), *SCHEDULES.values())}


def test_modules_are_imported_by_name_in_one_place_and_out_of_fixed_tables():
    users = [path.name for path in SHIPPED if "import_module" in path.read_text(encoding="utf-8")]
    assert users == ["settings_text.py"]
    assert {name.partition(".")[0] for name in imported_by_name()} == {
        *("torch", "transformers", "bitsandbytes", "pytorch_optimizer", "pack")
    }


@pytest.mark.parametrize("path", sorted((ROOT / "web").rglob("*.js")), ids=lambda path: path.name)
def test_the_page_asks_our_own_server_alone_and_runs_no_text(path):
    text = path.read_text(encoding="utf-8")
    code = re.sub(r"(?<![:\"'])//.*", "", text).replace("http://www.w3.org/", "")  # the name of a kind of element
    assert not re.search(r"https?://|\bfetch\(|XMLHttpRequest|WebSocket|sendBeacon|EventSource", code)
    assert not re.search(r"\beval\(|\bFunction\(|innerHTML|outerHTML|insertAdjacentHTML|document\.write", code)
    imported = re.findall(r"(?:from|import\()\s*[\"']([^\"']+)", code)
    assert all(name.startswith(("./", "../../scripts/")) for name in imported)


def test_every_dependency_has_a_lower_bound_that_both_files_say_and_that_is_met():
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
    (declared,) = re.findall(r"^dependencies = (\[.*\])$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert sorted(lines) == sorted(ast.literal_eval(declared))
    for line in lines:
        name, bound = re.fullmatch(r"([\w-]+)>=([\d.]+)", line).groups()
        numbers = [[int(part) for part in v.split(".")[:3]] for v in (importlib.metadata.version(name), bound)]
        assert numbers[0] >= numbers[1]


def test_everything_is_looked_at():
    assert len(SHIPPED) > 40 and all(isinstance(path, Path) and path.is_file() for path in SHIPPED)
