"""Finds the images of a folder and their captions. Pixels stay on disk."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import unicodedata
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from .file_errors import attempt, list_problems
from .image_captions import (
    CAPTION_EXTENSIONS,
    CAPTION_SOURCES,
    CaptionSource,
    add_trigger_word,
    caption_from_name,
    lines_to_captions,
    read_caption,
    read_kohya_folder,
)
from .image_decoding import refuse_truncated
from .image_formats import IMAGE_EXTENSIONS, count_left_out
from .image_on_disk import ImageOnDisk, read_header

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class CaptionedImage:
    """An image of a folder with its caption; its pixels are still on disk."""

    file: ImageOnDisk
    caption: str
    repeats: int = 1  # per epoch


@dataclass(frozen=True)
class _Paths:
    image: Path
    caption: Path | None


def load_folder(
    folder: Path,
    include_subfolders: bool,
    caption_source: CaptionSource,
    trigger_word: str,
    check: Callable[[Path], object] = lambda path: None,
    kohya_folders: bool = False,
    caption_lines: bool = False,
) -> list[CaptionedImage]:
    """Return the images of a folder with their captions, in natural order ("2.png" before "10.png").

    kohya_folders: read repeats from the names of folders such as "10_ohwx cat", and captions where there is no caption file
    caption_lines: each line of a caption file is a caption of its own; see `split_captions`

    `check` raises ValueError for a file that must not be read. Images in formats that are not read are counted, in the
    log and in each image's `folder_note`. Only headers are read, so damage in the middle of a file shows later, when its
    pixels are decoded.

    Raises ValueError if the folder has no images, or naming every file that cannot be used, with the reason.
    """
    if caption_source not in CAPTION_SOURCES:
        raise ValueError(
            f"There is no caption source {caption_source!r:.200}. Choose one of: {', '.join(CAPTION_SOURCES)}."
        )
    found = _find_images(folder, include_subfolders)
    if not found:
        raise ValueError(_explain_empty(folder, include_subfolders))
    note = _note_left_out(folder, include_subfolders)
    reader = _Reader(folder, caption_source, trigger_word, check, kohya_folders, caption_lines, note)
    with refuse_truncated(), ThreadPoolExecutor(os.cpu_count()) as pool:
        loaded = list(pool.map(reader.load, found))
    if reader.problems:
        raise ValueError(_explain_problems(folder, reader.problems))
    if note:
        logger.warning("%s", note)
    return [image for image in loaded if image is not None]


@dataclass(frozen=True)
class _Reader:
    """Reads images and their captions, and notes the problems of their files; see `load_folder`."""

    folder: Path
    caption_source: CaptionSource
    trigger_word: str
    check: Callable[[Path], object]
    kohya_folders: bool
    caption_lines: bool
    note: str
    problems: dict[Path, str] = field(default_factory=dict)

    def load(self, paths: _Paths) -> CaptionedImage | None:
        """Return an image with its caption, or None if one of their files cannot be used."""
        header = self._read(lambda path: replace(read_header(path), folder_note=self.note), paths.image)
        repeats, caption = self._read_caption(paths)
        return CaptionedImage(header, add_trigger_word(self.trigger_word, caption), repeats) if header else None

    def _read_caption(self, paths: _Paths) -> tuple[int, str]:
        """Return repeats and caption of an image."""
        repeats, caption = 1, ""
        if self.kohya_folders:
            found = self._read(lambda path: read_kohya_folder(path, self.folder), paths.image)
            repeats, caption = found or (repeats, caption)
        if self.caption_source == "file name":
            caption = self._read(caption_from_name, paths.image)
        elif self.caption_source == "trigger word only":
            caption = ""
        elif paths.caption:
            caption = self._read(read_caption, paths.caption)
            caption = lines_to_captions(caption) if caption and self.caption_lines else caption
        return repeats, caption or ""

    def _read(self, read: Callable[[Path], T], path: Path) -> T | None:
        def read_checked() -> T:
            self.check(path)
            _check_regular(path)
            return read(path)

        return attempt(read_checked, path, self.problems)


def fingerprint_folder(folder: Path, include_subfolders: bool) -> str:
    """Return a hash over names, sizes and modification times of images and captions; "" if the folder is missing."""
    if not folder.is_dir():
        return ""
    digest = hashlib.sha256()
    for paths in _find_images(folder, include_subfolders):
        for path in filter(None, (paths.image, paths.caption)):
            status = path.stat()
            digest.update(repr((path.relative_to(folder).as_posix(), status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()


def _find_images(folder: Path, include_subfolders: bool) -> list[_Paths]:
    if not folder.is_dir():
        raise ValueError(f"There is no folder {str(folder)!r}. Check its name.")
    paths = list(_walk(folder, include_subfolders))
    images = [path for path in paths if path.suffix.lower() in IMAGE_EXTENSIONS]
    captions = [path for path in paths if path.suffix.lower() in CAPTION_EXTENSIONS]
    found = [_Paths(image, caption) for image, caption in zip(images, _match_captions(images, captions))]
    return sorted(found, key=lambda paths: _natural_key(paths.image.relative_to(folder)))


def _match_captions(images: list[Path], captions: list[Path]) -> list[Path | None]:
    """Return each image's caption file: of the same name, or else of one that differs only in case or Unicode form.

    Some systems treat such names as the same, and programs that copy files between them change the form.
    """
    exact = {(path.parent, path.stem, path.suffix.lower()): path for path in captions}
    taken = {(image.parent, image.stem) for image in images}
    similar = {
        (path.parent, _plain(path.stem), path.suffix.lower()): path
        for path in captions
        if (path.parent, path.stem) not in taken
    }
    return [
        _first(exact.get((image.parent, image.stem, suffix)) for suffix in CAPTION_EXTENSIONS)
        or _first(similar.get((image.parent, _plain(image.stem), suffix)) for suffix in CAPTION_EXTENSIONS)
        for image in images
    ]


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _walk(folder: Path, include_subfolders: bool) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        # Hidden files are not the user's: thumbnails, and the "._photo.jpg" that macOS leaves next to photo.jpg.
        folders[:] = [name for name in folders if include_subfolders and not name.startswith(".")]
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def _note_left_out(folder: Path, include_subfolders: bool) -> str:
    left_out = count_left_out(_walk(folder, include_subfolders))
    return left_out and f"not loaded from {str(folder)!r} (save them as PNG or JPEG): {left_out}"


def _first(candidates: Iterator[Path | None]) -> Path | None:
    return next((path for path in candidates if path is not None), None)


def _natural_key(path: Path) -> tuple[list[list[str | int]], str]:
    split = [re.split(r"(\d+)", part.casefold()) for part in path.parts]
    numbered = [[int(text) if index % 2 else text for index, text in enumerate(part)] for part in split]
    return numbered, path.as_posix()


def _check_regular(path: Path) -> None:
    if path.exists() and not path.is_file():  # reading a pipe would block forever
        raise ValueError("is not a regular file")


def _explain_empty(folder: Path, include_subfolders: bool) -> str:
    below = 0 if include_subfolders else len(_find_images(folder, include_subfolders=True))
    formats = ", ".join(extension[1:] for extension in IMAGE_EXTENSIONS)
    hint = f"Its subfolders have {below}: turn on include_subfolders." if below else f"Supported formats: {formats}."
    left_out = count_left_out(_walk(folder, include_subfolders))
    unread = f" Save these as PNG or JPEG: {left_out}." if left_out else ""
    return f"The folder {str(folder)!r} has no images. {hint}{unread}"


def _explain_problems(folder: Path, problems: dict[Path, str]) -> str:
    names = sorted((path.relative_to(folder) for path in problems), key=_natural_key)
    return list_problems([(name.as_posix(), problems[folder / name]) for name in names], f" in {str(folder)!r}")
