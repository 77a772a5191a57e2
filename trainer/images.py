"""Reads a folder of pictures: their pixels, their masks and their captions."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar, get_args

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

CaptionSource = Literal["caption file", "file name", "trigger word only"]
CAPTION_SOURCES: tuple[str, ...] = get_args(CaptionSource)
EXTENSIONS = (".jpg", ".jpeg", ".png", ".gif", ".tif", ".tiff", ".bmp", ".webp", ".pcx", ".ico")
CAPTION_EXTENSIONS = (".txt", ".caption")  # the first one that exists wins
# Only these decoders: a file that merely calls itself .png must not start, say, the PostScript interpreter.
DECODERS = ("JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP", "PCX", "ICO")

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class LoadedImage:
    """A picture as it stands in its folder, upright."""

    pixels: torch.Tensor  # (H, W, 3), float32 in [0, 1]
    mask: torch.Tensor  # (H, W), float32 in [0, 1]: the alpha, so 1 means "train here"
    caption: str
    path: Path


@dataclass(frozen=True)
class _ImageFile:
    path: Path
    caption_path: Path | None


def load_folder(
    folder: Path, include_subfolders: bool, caption_source: CaptionSource, trigger_word: str
) -> list[LoadedImage]:
    """Load every picture of `folder` in natural order ("2.png" before "10.png"), subfolders included if wanted.

    Raises ValueError if there is none, or one that names every file that cannot be used, each with its reason.
    """
    if caption_source not in CAPTION_SOURCES:
        raise ValueError(f"There is no caption source {caption_source!r}: choose one of {', '.join(CAPTION_SOURCES)}.")
    files = _find_images(folder, include_subfolders)
    if not files:
        raise ValueError(_explain_empty(folder, include_subfolders))
    problems: dict[Path, str] = {}

    def load(file: _ImageFile) -> LoadedImage | None:
        decoded = _attempt(_decode, file.path, problems)
        caption = _attempt(_read_caption, file.caption_path, problems) if caption_source == "caption file" else None
        words = _name_to_words(file.path) if caption_source == "file name" else caption
        return LoadedImage(*decoded, _join_caption(trigger_word, words), file.path) if decoded else None

    with _refuse_truncated(), ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        loaded = list(pool.map(load, files))
    if problems:
        raise ValueError(_explain_problems(folder, problems))
    return [image for image in loaded if image is not None]


def pair_by_suffix(images: Sequence[LoadedImage], suffix: str) -> list[tuple[LoadedImage, LoadedImage]]:
    """Pair each picture NAME with NAME<suffix> of its folder, of whatever format: (original, target).

    Raises ValueError naming every picture without a partner and every pair of two sizes.
    """
    if not suffix:
        raise ValueError("The suffix is empty: write what the names of the targets end with, as in _target.")
    originals = {image.path.with_suffix(""): image for image in images if not image.path.stem.endswith(suffix)}
    targets = {
        image.path.with_name(image.path.stem.removesuffix(suffix)): image
        for image in images
        if image.path.stem.endswith(suffix)
    }
    alone = sorted(str((originals | targets)[key].path.name) for key in originals.keys() ^ targets.keys())
    if alone:
        raise ValueError(f"No partner by the suffix {suffix!r} for {', '.join(alone)}: name the target NAME{suffix}.")
    pairs = [(image, targets[key]) for key, image in originals.items()]
    wrong = [f"{a.path.name} and {b.path.name}" for a, b in pairs if a.pixels.shape != b.pixels.shape]
    if wrong:
        raise ValueError(f"The pictures of a pair must be of one size, and these are not: {'; '.join(wrong)}.")
    return pairs


def fingerprint_folder(folder: Path, include_subfolders: bool) -> str:
    """Return a hash over names, sizes and modification times of the pictures and captions; "" for a missing folder."""
    digest = hashlib.sha256()
    for file in _find_images(folder, include_subfolders) if folder.is_dir() else []:
        for path in filter(None, (file.path, file.caption_path)):
            status = path.stat()
            digest.update(repr((path.relative_to(folder).as_posix(), status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest() if folder.is_dir() else ""


def _find_images(folder: Path, include_subfolders: bool) -> list[_ImageFile]:
    if not folder.is_dir():
        raise ValueError(f"There is no folder {str(folder)!r}: check its name.")
    paths = list(_walk(folder, include_subfolders))
    texts = {(path.parent, path.stem, path.suffix.lower()): path for path in paths}
    images = [
        _ImageFile(path, _first(texts.get((path.parent, path.stem, suffix)) for suffix in CAPTION_EXTENSIONS))
        for path in paths
        if path.suffix.lower() in EXTENSIONS
    ]
    return sorted(images, key=lambda image: _natural_key(image.path.relative_to(folder)))


def _walk(folder: Path, include_subfolders: bool) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        # Hidden ones are not the user's pictures: thumbnails, and the "._photo.jpg" that macOS leaves beside photo.jpg.
        folders[:] = [name for name in folders if include_subfolders and not name.startswith(".")]
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def _first(candidates: Iterator[Path | None]) -> Path | None:
    return next((path for path in candidates if path is not None), None)


def _natural_key(path: Path) -> tuple[list[list[str | int]], str]:
    split = [re.split(r"(\d+)", part.casefold()) for part in path.parts]
    numbered = [[int(text) if index % 2 else text for index, text in enumerate(part)] for part in split]
    return numbered, path.as_posix()


def _attempt(read: Callable[[Path | None], T], path: Path | None, problems: dict[Path, str]) -> T | None:
    try:
        return read(path)
    # A broken file makes decoders raise almost anything (SyntaxError, struct.error, EOFError, ...); all are reported.
    except Exception as error:
        problems[path] = _reason(error)
        return None


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "is no picture in a known format, or it is broken"
    if isinstance(error, UnicodeDecodeError):
        return f"is not UTF-8 (byte {error.start + 1} is 0x{error.object[error.start]:02x}): save the caption as UTF-8"
    return getattr(error, "strerror", None) or str(error).strip() or type(error).__name__


@contextmanager
def _refuse_truncated() -> Iterator[None]:
    """Make Pillow raise on a truncated file, whatever another node pack set: half of it would be gray."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _decode(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pixels (H, W, 3) and alpha (H, W) of the first frame, both in [0, 1], upright."""
    if path.stat().st_size == 0:
        raise ValueError("is empty (0 bytes)")
    # A file, not its path: by path Pillow maps uncompressed TIFFs into memory and scrambles those turned by 90 degrees.
    with path.open("rb") as file, Image.open(file, formats=DECODERS) as opened:
        image = ImageOps.exif_transpose(opened)
    if image.mode.startswith(("I", "F")):
        gray = _deep_gray(image)
        return gray[:, :, None].repeat(1, 1, 3), torch.ones_like(gray)
    if image.has_transparency_data:
        rgba = _to_unit(image.convert("RGBA"))
        return rgba[:, :, :3].contiguous(), rgba[:, :, 3].contiguous()
    pixels = _to_unit(image.convert("RGB"))
    return pixels, torch.ones(pixels.shape[:2])


def _to_unit(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).float().div_(255)


def _deep_gray(image: Image.Image) -> torch.Tensor:
    """Return the gray of a picture with more than 8 bits, (H, W) in [0, 1]; Pillow's own conversion would clip it."""
    values = np.asarray(image).astype(np.float32)
    white = 1 if image.mode == "F" else 65535
    if not (values.min() >= 0 and values.max() <= white):
        raise ValueError(f"has gray values from {values.min():g} to {values.max():g}: save it with 8 or 16 bits")
    return torch.from_numpy(values / white)


def _read_caption(path: Path | None) -> str:
    return path.read_bytes().decode("utf-8-sig") if path else ""


def _name_to_words(path: Path) -> str:
    return path.stem.split("_id_")[0].replace("_", ",")


def _join_caption(trigger_word: str, words: str | None) -> str:
    return ", ".join(part for part in (trigger_word.strip(), (words or "").strip()) if part)


def _explain_empty(folder: Path, include_subfolders: bool) -> str:
    below = 0 if include_subfolders else len(_find_images(folder, include_subfolders=True))
    hint = f"; its subfolders hold {below}, switch include_subfolders on to use them" if below else ""
    formats = ", ".join(extension[1:] for extension in EXTENSIONS)
    return f"The folder {str(folder)!r} holds no pictures ({formats}){hint}."


def _explain_problems(folder: Path, problems: dict[Path, str]) -> str:
    paths = sorted(problems, key=lambda path: _natural_key(path.relative_to(folder)))
    lines = [f"- {path.relative_to(folder).as_posix()}: {problems[path]}" for path in paths]
    files = "1 file" if len(lines) == 1 else f"{len(lines)} files"
    return "\n".join([f"{files} in {str(folder)!r} cannot be used: repair or remove them.", *lines])
