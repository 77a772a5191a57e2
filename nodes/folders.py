"""The routes of the page's folder chooser: lists the folders that may be read, and makes thumbnails of their images."""

from __future__ import annotations

import asyncio
import base64
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import folder_paths
from aiohttp import web
from PIL import Image

from ..trainer.dataset.cropping import crop_image
from ..trainer.dataset.image_decoding import refuse_truncated, to_unit_range
from ..trainer.dataset.image_formats import IMAGE_EXTENSIONS
from ..trainer.dataset.image_on_disk import read_header
from .input_path import allowed_folders, find_folder
from .kept_files import FOLDER, OLD_FOLDER

MAX_DEPTH = 5  # folders below a root
MAX_VISITED = 5000  # folders
MAX_LISTED = 500  # folders
OWN = (FOLDER, OLD_FOLDER, "loss", "compare")  # in the output folder: samples, charts and grids of the pack's nodes
THUMBNAILS = 8
THUMBNAIL_SIZE = 288, 96  # pixels, at most

_listed: dict[str, Folder] = {}  # the last list
_concurrent = asyncio.Semaphore(2)  # each request decodes images of up to 179 million pixels


@dataclass
class Folder:
    """Describes a folder that may be read."""

    name: str  # as find_folder reads it
    path: Path
    count: int  # images in it
    below: int = 0  # images in its subfolders


async def send_folders(request: web.Request) -> web.Response:
    """Send the list of folders that may be read. The body of the request is ignored."""
    folders, complete = await asyncio.to_thread(list_folders)
    found = [{"name": folder.name, "count": folder.count, "below": folder.below} for folder in folders]
    return web.json_response({"folders": found, "complete": complete})


async def send_thumbnails(request: web.Request) -> web.Response:
    """Send image counts and thumbnails of a listed folder: {"folder": "my_cat"}."""
    try:
        name = (await request.json())["folder"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return web.json_response({"error": 'Send {"folder": "<name of a listed folder>"}.'}, status=400)
    async with _concurrent:
        shown = await asyncio.to_thread(_show, name)
    if shown is None:
        return web.json_response({"error": "No listed folder has this name."}, status=404)
    return web.json_response(shown)


ROUTES = [("/traintrain/folders", send_folders), ("/traintrain/thumbnails", send_thumbnails)]


def list_folders() -> tuple[list[Folder], bool]:
    """Return the folders with images in or below them, except the pack's own, and whether the list is complete.

    Links are not followed.
    """
    global _listed
    visits = iter(range(MAX_VISITED))
    roots = dict.fromkeys(Path(root).resolve() for root in allowed_folders())
    folders = {folder.path: folder for root in roots for folder in _scan(root, 0, visits)}
    # A root without images of its own would mean all folders together.
    filled = [
        folder
        for folder in folders.values()
        if (folder.count or (folder.below and folder.path not in roots)) and _name(folder)
    ]
    _listed = {folder.name: folder for folder in filled[:MAX_LISTED]}
    return filled[:MAX_LISTED], len(filled) <= MAX_LISTED and next(visits, None) is not None


def _scan(path: Path, depth: int, visits: Iterator[int]) -> list[Folder]:
    """Return a folder and those below it, with their counts."""
    if _is_own(path) or next(visits, None) is None:
        return []
    images, subfolders = _read_entries(path)
    deeper = depth < MAX_DEPTH
    below = [_scan(path / name, depth + 1, visits) for name in subfolders] if deeper else []
    under = sum(folders[0].count + folders[0].below for folders in below if folders)
    return [Folder("", path, len(images), under), *(folder for folders in below for folder in folders)]


def _is_own(path: Path) -> bool:
    """Return whether a folder holds what the pack's nodes have drawn, which nobody trains on."""
    output = Path(folder_paths.get_output_directory()).resolve()
    return any(path == output / name for name in OWN)


def _read_entries(path: Path) -> tuple[list[str], list[str]]:
    """Return the names of images and subfolders, except hidden ones and linked folders."""
    try:
        with os.scandir(path) as scanned:
            visible = (entry for entry in scanned if not entry.name.startswith("."))
            entries = sorted(visible, key=lambda entry: entry.name.casefold())
    except OSError:  # no permission, or gone
        return [], []
    images = [entry.name for entry in entries if entry.name.lower().endswith(IMAGE_EXTENSIONS) and entry.is_file()]
    return images, [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]


def _name(folder: Folder) -> str:
    """Set and return the shortest name that find_folder resolves to the folder, or ""."""
    roots = [Path(root).resolve() for root in allowed_folders()]
    short = [folder.path.relative_to(root).as_posix() for root in roots if folder.path.is_relative_to(root)]
    folder.name = next((name for name in (*short, str(folder.path)) if _resolves_to(name, folder.path)), "")
    return folder.name


def _resolves_to(name: str, path: Path) -> bool:
    try:
        return find_folder(name) == path
    except (ValueError, OSError):
        return False


def _show(name: object) -> dict | None:
    """Return image counts and thumbnails of a listed folder, or None for any other name."""
    if not isinstance(name, str):
        return None
    if name not in _listed:
        list_folders()
    folder = _listed.get(name)
    if folder is None or not _resolves_to(name, folder.path):  # a link may have replaced it
        return None
    images, _ = _read_entries(folder.path)
    return {"count": len(images), "below": folder.below, "thumbnails": list(_draw_thumbnails(folder.path, images))}


def _draw_thumbnails(folder: Path, names: list[str]) -> Iterator[str]:
    roots = [Path(root).resolve() for root in allowed_folders()]
    for name in names[:THUMBNAILS]:
        path = (folder / name).resolve()
        if any(path.is_relative_to(root) for root in roots):
            try:
                yield _draw_thumbnail(path)
            # Decoders raise almost anything for a damaged file. The loading node reports it, the chooser need not.
            except Exception:
                continue


def _draw_thumbnail(path: Path) -> str:
    """Return a small JPEG of an image, decoded as for training, as a data URI."""
    with refuse_truncated():
        file = read_header(path)
        scale = min(1, *(most / side for most, side in zip(THUMBNAIL_SIZE, file.size)))
        (pixels,) = crop_image(file, [tuple(max(1, round(side * scale)) for side in file.size)])
    written = io.BytesIO()
    Image.fromarray(to_unit_range(pixels).mul(255).round().byte().numpy()).save(written, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(written.getvalue()).decode()}"
