"""What the tests of one host came to: its versions, how many passed, and what fell."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from xml.etree import ElementTree

from .host_paths import Host

PACKAGES = {
    "comfyui-frontend-package": "page",
    "comfyui-workflow-templates": "templates",
    "comfy-kitchen": "comfy-kitchen",
    "comfy-aimdo": "comfy-aimdo",
    "torch": "torch",
    "transformers": "transformers",
    "numpy": "numpy",
    "pillow": "Pillow",
    "pytorch-optimizer": "pytorch-optimizer",
    "peft": "PEFT",
    "diffusers": "diffusers",
    "bitsandbytes": "bitsandbytes",
}
_ASK = """
import importlib.metadata as m, json, platform, runpy, sys
versions = {"ComfyUI": runpy.run_path(sys.argv[1])["__version__"], "Python": platform.python_version()}
there = {d.metadata["Name"].lower().replace("_", "-"): d.version for d in m.distributions()}
print(json.dumps(versions | {n: there[n] for n in sys.argv[2:] if n in there}))
"""


def read_versions(host: Host) -> dict[str, str]:
    """Ask a host's Python for the versions of ComfyUI, Python and the packages that matter."""
    command = [str(host.python), "-c", _ASK, str(host.comfyui / "comfyui_version.py"), *PACKAGES]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {PACKAGES.get(name, name): version for name, version in found.items()}


def read_results(results: Path) -> tuple[dict[str, int], list[str]]:
    """Read pytest's XML: the counts by outcome, and the names of the tests that did not pass."""
    counts, fell = {"passed": 0, "failed": 0, "skipped": 0}, []
    for case in ElementTree.parse(results).iter("testcase"):
        is_bad = case.find("failure") is not None or case.find("error") is not None
        outcome = "failed" if is_bad else "skipped" if case.find("skipped") is not None else "passed"
        counts[outcome] += 1
        if is_bad:
            fell.append(f"{case.get('classname').replace('.', '/')}.py::{case.get('name')}")
    return counts, fell


def report(host: Host, results: Path) -> str:
    """Say in a few lines what the tests of a host came to; `results` may be missing if pytest did not get that far."""
    lines = ["Versions: " + ", ".join(f"{name} {version}" for name, version in read_versions(host).items())]
    if not results.is_file():
        return "\n".join([*lines, "No test was run."])
    counts, fell = read_results(results)
    lines.append(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
    return "\n".join([*lines, *(f"fell: {name}" for name in fell)])
