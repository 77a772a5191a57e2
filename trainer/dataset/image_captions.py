"""Makes the caption of an image: from a text file next to it, from its file name, or from the trigger word alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, get_args

CaptionSource = Literal["caption file", "file name", "trigger word only"]
CAPTION_SOURCES: tuple[str, ...] = get_args(CaptionSource)
CAPTION_EXTENSIONS = (".txt", ".caption")  # the first one that exists wins
MAX_CAPTION_BYTES = 100_000
SEPARATOR = "\u2028"  # between several captions of one image: no keyboard types it, and to a text encoder it is a space
KOHYA_FOLDER = re.compile(r"([1-9]\d{0,2})_(.*)")  # repeats and caption


def read_caption(path: Path) -> str:
    """Return the text of a caption file. Raises ValueError if it is too large or not UTF-8 text."""
    if path.stat().st_size > MAX_CAPTION_BYTES:
        raise ValueError(f"is larger than {MAX_CAPTION_BYTES} bytes, too large for a caption: shorten it")
    text = path.read_bytes().decode("utf-8-sig")
    if "\0" in text:  # UTF-16 without a byte order mark is valid UTF-8
        raise ValueError("has NUL characters, as UTF-16 text does: save it as UTF-8")
    return text.replace(SEPARATOR, "\n")


def lines_to_captions(text: str) -> str:
    """Return the lines of a text that are not blank as several captions of one image, which `split_captions` takes apart."""
    return SEPARATOR.join(line.strip() for line in text.splitlines() if line.strip())


def split_captions(caption: str) -> list[str]:
    """Return the captions of an image: one, unless they are lines of its file."""
    return caption.split(SEPARATOR)


def caption_from_name(path: Path) -> str:
    """Return the file name up to `_id_` with commas for underscores: "red_cat_id_12.png" gives "red,cat".

    Raises ValueError if the name is not valid text.
    """
    return _text(path.stem).split("_id_")[0].replace("_", ",")


def read_kohya_folder(path: Path, root: Path) -> tuple[int, str]:
    """Return the repeats and the caption in the name of an image's folder: (10, "ohwx cat") for "10_ohwx cat/a.png".

    The nearest folder with such a name counts, up to and including `root`; (1, "") if there is none. This is how kohya's
    scripts lay out a dataset. Raises ValueError if the caption is not valid text.
    """
    for folder in path.relative_to(root.parent).parents:
        match = KOHYA_FOLDER.fullmatch(folder.name)
        if match:
            return int(match[1]), _text(match[2]).strip()
    return 1, ""


def add_trigger_word(trigger_word: str, caption: str) -> str:
    """Return the caption, or several, with the trigger word in front, joined with a comma; either may be empty."""
    captions = split_captions(caption)
    return SEPARATOR.join(", ".join(filter(None, (trigger_word.strip(), each.strip()))) for each in captions)


def _text(name: str) -> str:
    """Return a part of a file's path, if it is valid text: on Linux a name can be any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError("has a name that is not UTF-8, so it cannot be a caption: rename it") from None
    return name
