"""Loads the host and the pack for the bench, and silences them."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from ..load_pack import load_pack
from ..terminal import StatusLine

if TYPE_CHECKING:
    from .bench import Bench


def start_bench(comfyui: Path, base: Path, folder: Path, quick: bool) -> Bench:
    """Make the pack importable and return a run of the bench."""
    load_pack(comfyui, host_attention=True)
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore", message="In CPU autocast", category=UserWarning)  # the host's trainer in fp32
    import comfy.utils

    from .bench import Bench

    comfy.utils.set_progress_bar_enabled(False)
    return Bench(comfyui, base, folder, quick, StatusLine())
