"""Tries bad inputs of all kinds, counts what came of them, and prints a table."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import comfy.sd
import hypothesis
import torch
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis.database import DirectoryBasedExampleDatabase
from hypothesis.errors import Flaky
from hypothesis.strategies import SearchStrategy
from PIL import Image

from ..base_folder import make_folders, share_model
from ..host_paths import host_folder
from ..server import Server
from . import bad_captions, bad_graphs, bad_images, bad_loras, bad_requests, bad_values
from .case import Case, Result, run_case
from .sandbox import Sandbox

# The kinds, each with its share of the inputs.
KINDS: dict[str, tuple[Callable[[Sandbox], SearchStrategy[Case]], float]] = {
    "captions": (bad_captions.cases, 0.06),
    "LoRA files": (bad_loras.cases, 0.2),
    "states": (bad_loras.state_cases, 0.06),
    "node values": (bad_values.cases, 0.2),
    "images": (bad_images.cases, 0.2),
    "workflows": (bad_graphs.cases, 0.16),
    "routes": (bad_requests.cases, 0.12),
}
ROW = "{:<14}{:>8}{:>9}{:>10}{:>8}{:>10}"


class Failed(AssertionError):
    """An input has done what none may do."""


def run(comfyui: Path, base: Path, count: int, seed: int, only: str) -> int:
    """Try `count` inputs, print the table and what failed, and return the exit status."""
    checkpoint = base / "models" / "checkpoints" / "shapes.safetensors"
    with torch.inference_mode():
        models = comfy.sd.load_checkpoint_guess_config(str(checkpoint))[:3]
    print(ROW.format("kind", "inputs", "refused", "accepted", "worst", "failures"))
    failures = []
    with tempfile.TemporaryDirectory() as folder, start_server(comfyui, base, Path(folder, "server")) as server:
        sandbox = Sandbox(Path(folder).resolve(), models, server)
        for kind, (_, share) in KINDS.items():
            if only in kind:
                results = try_kind(sandbox, kind, round(count * share), seed, host_folder() / "fuzz")
                print(summary(kind, results), flush=True)
                failures += smallest_failure(results)
    for failure in failures:
        print(failure.encode(errors="backslashreplace").decode())  # half a surrogate pair is an input, too
    return bool(failures)


def start_server(comfyui: Path, base: Path, folder: Path) -> Server:
    """Return a ComfyUI to start in an empty folder, with the demonstration model."""
    folder.mkdir()
    make_folders(folder)
    share_model(base, folder)
    return Server(comfyui, folder)


def try_kind(sandbox: Sandbox, kind: str, count: int, seed: int, memory: Path) -> list[Result]:
    """Try inputs of one kind, the same ones for the same seed, and those that failed before.

    memory: the folder of failures
    """
    watch, results = sandbox.watch(), []

    @settings(  # after `seed`, which takes the database away
        max_examples=count,
        phases=(Phase.reuse, Phase.generate, Phase.shrink),
        database=DirectoryBasedExampleDatabase(memory / kind),
        verbosity=Verbosity.quiet,
        deadline=None,  # ours is in run_case
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.seed(seed)
    @given(KINDS[kind][0](sandbox))
    def attempt(case: Case) -> None:
        results.append(run_case(case, watch))
        if results[-1].failure:
            raise Failed

    with _quiet(), sandbox.in_host():
        bad_graphs.prepare(sandbox)
        files, weights = _tree(sandbox.server), sandbox.weights()
        with suppress(Failed, Flaky):
            attempt()
        assert sandbox.server.is_running(), sandbox.server.lost()
        assert _tree(sandbox.server) == files, "the server has written outside its folders"
        assert sandbox.weights() == weights, "the model has changed"
    return results


def smallest_failure(results: list[Result]) -> list[str]:
    """Return what went wrong with the input that hypothesis has shrunk to, which it tries last; nothing if all is well."""
    return [f"{each.case.kind}: {each.case.name}: {each.failure}" for each in results if each.failure][-1:]


def summary(kind: str, results: list[Result]) -> str:
    """Return the row of a kind."""
    refused = sum(bool(result.refusal) for result in results)
    worst = max((result.seconds for result in results), default=0.0)
    failures = len({result.failure for result in results if result.failure})
    return ROW.format(kind, len(results), refused, len(results) - refused, f"{worst:.1f} s", failures)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings, and lift Pillow's limit of pixels, as other packs do."""
    pixels, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(action="ignore"):
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = pixels
            logging.disable(logging.NOTSET)


def _tree(server: Server) -> set[tuple[str, int]]:
    """Return all that is beside the folders that a server may write in, with times."""
    theirs = [str(server.base / name) for name in ("output", "temp", "user")]
    walked = [entry for entry in os.walk(server.base) if not entry[0].startswith(tuple(theirs))]
    files = [os.path.join(folder, name) for folder, _, names in walked for name in names if name != server.log.name]
    files += [
        os.path.join(folder, name) for folder in (server.comfyui, server.base.parent) for name in os.listdir(folder)
    ]
    return {(path, 0 if os.path.isdir(path) else os.lstat(path).st_mtime_ns) for path in files}
