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


def write_samples(training: Path, step: int, samples: list[host.Sample]) -> None:
    """Write the samples of a step, and delete those that it had of more prompts. Raises OSError if that fails.

    training: path that the names of its files begin with
    """
    first = f"{training.name}_{step:06d}"
    names = [first, *(f"{first}_{number}" for number in range(2, len(samples) + 1))]
    for name, sample in zip(names, samples):
        image = Image.fromarray((sample.image * 255).round().byte().cpu().numpy())
        comment = "" if args.disable_metadata else sample.prompt[:LONGEST_PROMPT]
        with write_atomically(training.with_name(f"{name}.jpg")) as part:
            image.save(part, "JPEG", quality=92, **({"comment": comment.encode()} if comment else {}))
    for path in training.parent.glob(f"{first}_*.jpg"):
        if path.stem not in names:
            path.unlink(missing_ok=True)


def describe_samples(files: Iterable[Path]) -> list[dict[str, Any]]:
    """Return sample files for ComfyUI's /view, in order, with their steps and with prompts where the file names one."""
    placed = {file: match for file in files if (match := _PLACE.search(file.stem))}
    in_order = sorted(placed, key=lambda file: (int(placed[file][1]), int(placed[file][2] or 1)))
    return [
        {"step": int(placed[file][1]), "filename": file.name, "subfolder": subfolder_of(file), **_prompt_of(file)}
        for file in in_order
    ]


def _prompt_of(file: Path) -> dict[str, str]:
    """Return the prompt that a sample file names, if it does."""
    try:
        with Image.open(file) as image:
            comment = image.info.get("comment", b"")
    except OSError:  # includes a damaged file
        return {}
    return {"prompt": comment.decode(errors="replace")} if comment else {}
