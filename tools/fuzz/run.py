"""Tries bad inputs of all kinds, counts what came of them, and says it in a table."""

from __future__ import annotations

import logging
import os
import random
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import comfy.sd
import torch
from PIL import Image

from ..base_folder import make_folders, share_model
from ..server import Server
from . import captions, graphs, loras, pictures, routes, values
from .case import Case, Result, run_case
from .world import World

Cases = Callable[[World, random.Random, int], Iterator[Case]]
# The kinds, each with its share of the inputs.
KINDS: dict[str, tuple[Cases, float]] = {
    captions.KIND: (captions.cases, 0.06),
    loras.LORAS: (loras.cases, 0.2),
    loras.STATES: (loras.state_cases, 0.06),
    values.KIND: (values.cases, 0.2),
    pictures.KIND: (pictures.cases, 0.2),
    graphs.KIND: (graphs.cases, 0.16),
    routes.KIND: (routes.cases, 0.12),
}
ROW = "{:<14}{:>8}{:>9}{:>10}{:>8}{:>10}"


def run(comfyui: Path, base: Path, count: int, seed: int, only: str) -> int:
    """Try `count` inputs, print the table and what failed, and return the exit status."""
    checkpoint = base / "models" / "checkpoints" / "shapes.safetensors"
    with torch.inference_mode():
        models = comfy.sd.load_checkpoint_guess_config(str(checkpoint))[:3]
    print(ROW.format("kind", "inputs", "refused", "accepted", "worst", "failures"))
    failed = []
    with tempfile.TemporaryDirectory() as folder, start_server(comfyui, base, Path(folder, "server")) as server:
        world = World(Path(folder).resolve(), models, server)
        for kind, (_, share) in KINDS.items():
            if only in kind:
                results = try_kind(world, kind, round(count * share), seed)
                print(summary(kind, results), flush=True)
                failed += [result for result in results if result.failure]
    for result in failed:
        line = f"{result.case.kind}: {result.case.name}: {result.failure}"
        print(line.encode(errors="backslashreplace").decode())  # half a letter is an input, too
    return bool(failed)


def start_server(comfyui: Path, base: Path, folder: Path) -> Server:
    """Return a ComfyUI to start in an empty folder, with the demonstration model."""
    folder.mkdir()
    make_folders(folder)
    share_model(base, folder)
    return Server(comfyui, folder)


def try_kind(world: World, kind: str, count: int, seed: int) -> list[Result]:
    """Try inputs of one kind, the same ones for the same seed."""
    cases, watch = KINDS[kind][0], world.watch()
    pixels, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # as other packs leave it
    logging.disable(logging.WARNING)
    with world.in_host(), warnings.catch_warnings(action="ignore"):
        try:
            graphs.prepare(world.server)
            before = _tree(world.server)
            results = [run_case(case, watch) for case in cases(world, random.Random(f"{seed} {kind}"), count)]
            assert world.server.is_running(), world.server.lost()
            assert _tree(world.server) == before, "the server has written outside its folders"
            return results
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


def summary(kind: str, results: list[Result]) -> str:
    """Return the row of a kind."""
    refused = sum(bool(result.refusal) for result in results)
    worst = max((result.seconds for result in results), default=0.0)
    failures = sum(bool(result.failure) for result in results)
    return ROW.format(kind, len(results), refused, len(results) - refused, f"{worst:.1f} s", failures)
