"""The pack and the host in one process, without a server."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from ..host import ROOT
from ..launch import prepare_torchvision


def import_pack(comfyui: Path) -> None:
    """Make the host importable, and the pack as `pack`: its own `nodes` would shadow the host's nodes.py."""
    import torch

    sys.path[:] = [str(comfyui), *(entry for entry in sys.path if Path(entry or ".").resolve() != ROOT)]
    spec = importlib.util.spec_from_file_location("pack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    sys.modules["pack"] = importlib.util.module_from_spec(spec)
    prepare_torchvision()
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()  # the host decides at import, and fails where there is no GPU
