"""What the bench runs on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch


def has_cuda() -> bool:
    """Tell whether there is an NVIDIA GPU."""
    return torch.cuda.is_available()


def describe_machine() -> str:
    """Name the machine and the versions of what is measured."""
    import comfyui_version

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "peft"))
    threads = f"{torch.get_num_threads()} threads"
    return f"{device}, {threads}, {platform.system()}, Python {platform.python_version()}, ComfyUI {comfyui_version.__version__}, {versions}"


def _processor() -> str:
    """Name the processor and how many cores it has here."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
    return f"{name}, {os.cpu_count()} cores"
