"""What the page's folder chooser asks for: the folders that may be read, and small pictures of what is in them."""

from __future__ import annotations

import asyncio
import base64
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from aiohttp import web
from PIL import Image, ImageOps

from ..trainer.images import EXTENSIONS
from ..trainer.picture import DECODERS, refuse_truncated
from .allowed import allowed_folders, find_folder

MAX_DEPTH = 5  # folders below a root
MAX_VISITED = 5000  # folders that are looked into
MAX_LISTED = 500  # folders
THUMBNAILS = 8
THUMBNAIL_SIZE = 288, 96  # pixels, at most
MAX_PIXELS = 89_478_485  # Pillow's own limit, which other packs switch off

_listed: dict[str, Folder] = {}  # what was listed last
_at_once = asyncio.Semaphore(2)  # each decodes pictures of up to MAX_PIXELS


@dataclass
class Folder:
    """A folder that may be read."""

    name: str  # as find_folder reads it
    path: Path
    count: int  # pictures in it
    below: int = 0  # pictures in its subfolders


async def answer_folders(request: web.Request) -> web.Response:
    """List the folders that may be read. What the request says is of no account."""
    folders, complete = await asyncio.to_thread(list_folders)
    found = [{"name": folder.name, "count": folder.count, "below": folder.below} for folder in folders]
    return web.json_response({"folders": found, "complete": complete})


async def answer_thumbnails(request: web.Request) -> web.Response:
    """Show what is in a folder that the list names: {"folder": "my_cat"}."""
    try:
        name = (await request.json())["folder"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return web.json_response({"error": 'Send {"folder": "<a name of the list of folders>"}.'}, status=400)
    async with _at_once:
        shown = await asyncio.to_thread(_show, name)
    if shown is None:
        return web.json_response({"error": "No folder of this name is listed."}, status=404)
    return web.json_response(shown)


ROUTES = [("/traintrain/folders", answer_folders), ("/traintrain/thumbnails", answer_thumbnails)]


def list_folders() -> tuple[list[Folder], bool]:
    """Return the folders with pictures in or below them, and whether those are all; links are not followed."""
    global _listed
    visits = iter(range(MAX_VISITED))
    roots = dict.fromkeys(Path(root).resolve() for root in allowed_folders())
    folders = {folder.path: folder for root in roots for folder in _look_into(root, 0, visits)}
    # A root with nothing of its own would be all folders together.
    filled = [f for f in folders.values() if (f.count or (f.below and f.path not in roots)) and _name(f)]
    _listed = {folder.name: folder for folder in filled[:MAX_LISTED]}
    return filled[:MAX_LISTED], len(filled) <= MAX_LISTED and next(visits, None) is not None


def _look_into(path: Path, depth: int, visits: Iterator[int]) -> list[Folder]:
    """Return a folder and those below it, each counted."""
    if next(visits, None) is None:
        return []
    images, subfolders = _read_entries(path)
    deeper = depth < MAX_DEPTH
    below = [_look_into(path / name, depth + 1, visits) for name in subfolders] if deeper else []
    under = sum(folders[0].count + folders[0].below for folders in below if folders)
    return [Folder("", path, len(images), under), *(folder for folders in below for folder in folders)]


def _read_entries(path: Path) -> tuple[list[str], list[str]]:
    """Return the names of the pictures and of the subfolders; hidden ones and linked folders are left out."""
    try:
        with os.scandir(path) as scanned:
            entries = sorted((e for e in scanned if not e.name.startswith(".")), key=lambda e: e.name.casefold())
    except OSError:  # it may not be read, or is gone
        return [], []
    images = [e.name for e in entries if e.name.lower().endswith(EXTENSIONS) and e.is_file()]
    return images, [e.name for e in entries if e.is_dir(follow_symlinks=False)]


def _name(folder: Folder) -> str:
    """Give the folder the shortest name that means it, "" if there is none; another root may have one of that name."""
    roots = [Path(root).resolve() for root in allowed_folders()]
    short = [folder.path.relative_to(root).as_posix() for root in roots if folder.path.is_relative_to(root)]
    folder.name = next((name for name in (*short, str(folder.path)) if _means(name, folder.path)), "")
    return folder.name


def _means(name: str, path: Path) -> bool:
    try:
        return find_folder(name) == path
    except (ValueError, OSError):
        return False


def _show(name: object) -> dict | None:
    """Return the count and the thumbnails of a listed folder, None for any other name."""
    if not isinstance(name, str):
        return None
    if name not in _listed:
        list_folders()
    folder = _listed.get(name)
    if folder is None or not _means(name, folder.path):  # a link may have taken its place
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
            # A broken file makes decoders raise almost anything; the loading node names it, a chooser needs not.
            except Exception:
                continue


def _draw_thumbnail(path: Path) -> str:
    """Return a small JPEG as a data URI."""
    width = THUMBNAIL_SIZE[0]
    with refuse_truncated(), path.open("rb") as file, Image.open(file, formats=DECODERS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError("it is too large")
        image.thumbnail((width, width))  # before it is turned: a JPEG is then decoded small
        small = _to_rgb(ImageOps.exif_transpose(image))
    small.thumbnail(THUMBNAIL_SIZE)
    written = io.BytesIO()
    small.save(written, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(written.getvalue()).decode()}"


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # more than 8 bits, which Pillow would clip
        values = np.asarray(image).astype(np.float32) * (255 if image.mode == "F" else 1 / 257)
        return Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")
