"""Which module may import which: the trainer knows no host, and the dataset knows no training."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from conftest import ROOT

TRAINER = sorted((ROOT / "trainer").rglob("*.py"))
DATASET = sorted((ROOT / "trainer" / "dataset").glob("*.py"))


def imports_of(module: Path) -> list[tuple[int, str]]:
    """Return the level (dots) and name of every imported module."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    found = [(node.level, node.module or "") for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return found + [(0, alias.name) for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]


@pytest.mark.parametrize("module", TRAINER, ids=lambda path: path.stem)
def test_the_trainer_imports_neither_host_nor_nodes(module):
    host = ("comfy", "comfy_api", "folder_paths", "nodes")
    assert not [name for _, name in imports_of(module) if name.split(".")[0] in host]


@pytest.mark.parametrize("module", DATASET, ids=lambda path: path.stem)
def test_the_dataset_imports_nothing_of_training(module):
    assert not [name for level, name in imports_of(module) if level > 1]
