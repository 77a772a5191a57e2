"""What the pack costs when ComfyUI starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

IMPORTS = """
import sys
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
