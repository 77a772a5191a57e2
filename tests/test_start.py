"""What the pack costs when ComfyUI starts."""

from __future__ import annotations

import runpy
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from torch.torch_version import TorchVersion

IMPORTS = """
import sys
from contextlib import nullcontext
sys.path.insert(0, sys.argv[1])
import conftest
import server, nodes
from comfy_api.latest import io
before = set(sys.modules)
import pack.nodes
print(*{name.partition(".")[0] for name in set(sys.modules) - before})
"""


def test_the_pack_brings_no_large_package_when_comfyui_starts():
    """Charts and optimizers are imported when they are wanted: each takes a second."""
    output = subprocess.check_output([sys.executable, "-c", IMPORTS, Path(__file__).parent], text=True)
    ours = set(output.splitlines()[-1].split())
    assert "pack" in ours
    assert not ours & {"matplotlib", "pytorch_optimizer", "bitsandbytes", "transformers", "diffusers", "peft", "scipy"}


@pytest.mark.parametrize("version, is_refused", [("2.4.1+cu121", True), ("2.5.0", False), ("2.13.0+cpu", False)])
def test_an_old_pytorch_is_refused_in_a_sentence_when_the_pack_is_imported(monkeypatch, version, is_refused):
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    expected = pytest.raises(ImportError, match=r"needs PyTorch 2.5 or newer, and ComfyUI runs on 2.4.1\+cu121: update")
    with expected if is_refused else nullcontext():
        runpy.run_path(str(ROOT / "trainer" / "__init__.py"))
