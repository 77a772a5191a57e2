"""The samples of a training on disk: for each step and prompt a JPEG, which names the prompt in its comment."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from comfy.cli_args import args
from PIL import Image

from ..trainer.atomic_write import write_atomically
from . import host
from .kept_files import subfolder_of

_PLACE = re.compile(r"_(\d{6,7})(?:_(\d+))?$")  # at the end of a name: the step, and from the second prompt on a number
LONGEST_PROMPT = 300  # characters that a file and the page keep
_BOTH_WAYS = "[-1, 0, 1] "  # the comment of a file with the strengths of a slider begins with them


def write_samples(training: Path, step: int, samples: list[host.Sample]) -> None:
    """Write the samples of a step, and delete those that it had of more prompts. Raises OSError if that fails.

    training: path that the names of its files begin with
    """
    first = f"{training.name}_{step:06d}"
    names = [first, *(f"{first}_{number}" for number in range(2, len(samples) + 1))]
    for name, sample in zip(names, samples):
        image = Image.fromarray((sample.image * 255).round().byte().cpu().numpy())
        prompt = "" if args.disable_metadata else sample.prompt[:LONGEST_PROMPT]
        comment = f"{_BOTH_WAYS}{prompt}" if sample.is_both_ways else prompt
        with write_atomically(training.with_name(f"{name}.jpg")) as part:
            image.save(part, "JPEG", quality=92, **({"comment": comment.encode()} if comment else {}))
    for path in training.parent.glob(f"{first}_*.jpg"):
        if path.stem not in names:
            path.unlink(missing_ok=True)


def describe_samples(files: Iterable[Path]) -> list[dict[str, Any]]:
    """Return sample files for ComfyUI's /view, in order, with their steps and with what the files say of themselves."""
    placed = {file: match for file in files if (match := _PLACE.search(file.stem))}
    in_order = sorted(placed, key=lambda file: (int(placed[file][1]), int(placed[file][2] or 1)))
    return [
        {"step": int(placed[file][1]), "filename": file.name, "subfolder": subfolder_of(file), **_read_comment(file)}
        for file in in_order
    ]


def _read_comment(file: Path) -> dict[str, Any]:
    """Return the prompt that a sample file names, if it does, and whether it shows both ways of a slider."""
    try:
        with Image.open(file) as image:
            comment = image.info.get("comment", b"").decode(errors="replace")
    except OSError:  # includes a damaged file
        return {}
    prompt = comment.removeprefix(_BOTH_WAYS)
    return ({"prompt": prompt} if prompt else {}) | ({"both_ways": True} if prompt != comment else {})
