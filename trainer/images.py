"""Reads a folder of pictures: their files and their captions."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar, get_args

from .picture import PictureFile, attempt, read_header, refuse_truncated

CaptionSource = Literal["caption file", "file name", "trigger word only"]
CAPTION_SOURCES: tuple[str, ...] = get_args(CaptionSource)
EXTENSIONS = (".jpg", ".jpeg", ".png", ".gif", ".tif", ".tiff", ".bmp", ".webp", ".pcx", ".ico")
CAPTION_EXTENSIONS = (".txt", ".caption")  # the first one that exists wins
LONGEST_CAPTION = 100_000  # bytes

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class LoadedImage:
    """A picture of a folder with its caption; its pixels are still on disk."""

    file: PictureFile
    caption: str


@dataclass(frozen=True)
class _ImageFile:
    path: Path
    caption_path: Path | None


def load_folder(
    folder: Path,
    include_subfolders: bool,
    caption_source: CaptionSource,
    trigger_word: str,
    check: Callable[[Path], object] = lambda path: None,
) -> list[LoadedImage]:
    """Find every picture of `folder` in natural order ("2.png" before "10.png"), subfolders included if wanted.

    check: raises ValueError for a file that must not be read
    Raises ValueError if there is none, or one that names every file that cannot be used, each with its reason. Pixels
    are not read, so a picture that is damaged inside, and not cut short, shows only when they are.
    """
    if caption_source not in CAPTION_SOURCES:
        raise ValueError(
            f"There is no caption source {caption_source!r:.200}: choose one of {', '.join(CAPTION_SOURCES)}."
        )
    files = _find_images(folder, include_subfolders)
    if not files:
        raise ValueError(_explain_empty(folder, include_subfolders))
    problems: dict[Path, str] = {}

    def read(read_it: Callable[[Path], T], path: Path) -> T | None:
        def read_checked() -> T:
            check(path)
            _check_file(path)
            return read_it(path)

        return attempt(read_checked, path, problems)

    def load(file: _ImageFile) -> LoadedImage | None:
        header = read(read_header, file.path)
        words = _name_to_words(file.path) if caption_source == "file name" else None
        if caption_source == "caption file" and file.caption_path:
            words = read(_read_caption, file.caption_path)
        return LoadedImage(header, _join_caption(trigger_word, words)) if header else None

    with refuse_truncated(), ThreadPoolExecutor(os.cpu_count()) as pool:
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
    by_path = {image.file.path: image for image in images}
    originals = {path.with_suffix(""): image for path, image in by_path.items() if not path.stem.endswith(suffix)}
    targets = {
        path.with_name(path.stem.removesuffix(suffix)): image
        for path, image in by_path.items()
        if path.stem.endswith(suffix)
    }
    alone = sorted((originals | targets)[key].file.path.name for key in originals.keys() ^ targets.keys())
    if alone:
        raise ValueError(
            f"No partner by the suffix {suffix!r:.200} for {', '.join(alone)}: name the target NAME{suffix:.200}."
        )
    pairs = [(image, targets[key]) for key, image in originals.items()]
    wrong = [f"{a.file.path.name} and {b.file.path.name}" for a, b in pairs if a.file.size != b.file.size]
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


def _check_file(path: Path) -> None:
    if path.exists() and not path.is_file():  # reading a pipe would wait for ever
        raise ValueError("is no file")


def _read_caption(path: Path) -> str:
    if path.stat().st_size > LONGEST_CAPTION:
        raise ValueError(f"is longer than {LONGEST_CAPTION} bytes, so it is no caption")
    return path.read_bytes().decode("utf-8-sig")


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
