"""The route of the block map: the blocks of the model in a file that a loader on the page names."""

from __future__ import annotations

import asyncio
from pathlib import Path

import folder_paths
from aiohttp import web

from ..trainer.config import NetworkConfig
from .host.blocks_in_file import blocks_in_file

ROUTE = "/traintrain/blocks"
FOLDERS = "checkpoints", "diffusion_models"  # ComfyUI's names of them

_one_at_a_time = asyncio.Semaphore(1)  # each request builds a model, though without weights


async def send_blocks(request: web.Request) -> web.Response:
    """Send the blocks of the model in a file: {"folder": "checkpoints", "name": "my_model.safetensors"}.

    The answer has all blocks that can be trained (`ids`), and those of them that have convolutions alone (`plain`).
    """
    try:
        asked = await request.json()
        folder, name = asked["folder"], asked["name"]
    except (ValueError, LookupError, TypeError, RecursionError):
        folder = name = None
    if folder not in FOLDERS or not isinstance(name, str):
        message = 'Send {"folder": "checkpoints" or "diffusion_models", "name": "<file in it>"}.'
        return web.json_response({"error": message}, status=400)
    async with _one_at_a_time:
        found = await asyncio.to_thread(_find_blocks, folder, name)
    if not found["ids"]:
        return web.json_response({"error": "No model with known blocks has this name."}, status=404)
    return web.json_response(found)


def _find_blocks(folder: str, name: str) -> dict[str, list[str]]:
    if name not in folder_paths.get_filename_list(folder):
        return {"ids": [], "plain": []}
    path = Path(folder_paths.get_full_path_or_raise(folder, name))
    ids = blocks_in_file(path, NetworkConfig(network_type="c3lier"))
    attention = set(blocks_in_file(path, NetworkConfig(network_type="lierla")))
    return {"ids": ids, "plain": [block for block in ids if block not in attention]}
