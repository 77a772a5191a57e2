"""Loads ComfyUI's modules and the pack's into this process, without a server.

Imports nothing of this repository itself, so that the tests can run it as a file.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def load_pack(comfyui: Path, host_attention: bool = False) -> None:
    """Make ComfyUI importable, and the pack as `pack`, whose __init__.py is not run.

    The repository leaves `sys.path`: its `nodes` would shadow ComfyUI's nodes.py.

    host_attention: leaves attention as ComfyUI chooses it; else it is PyTorch's, as in our server
    """
    sys.path[:] = [str(comfyui), *(entry for entry in sys.path if Path(entry or ".").resolve() != ROOT)]
    spec = importlib.util.spec_from_file_location("pack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    sys.modules["pack"] = importlib.util.module_from_spec(spec)
    importlib.import_module("pack.tools.launch").prepare_torchvision()
    import torch
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()  # ComfyUI decides at import, and fails where there is no GPU
    args.use_pytorch_cross_attention = not host_attention  # its default on the CPU is slow
