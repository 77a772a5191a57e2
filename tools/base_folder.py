"""Makes a base folder for ComfyUI: the pack, the demonstration model and its images."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from .build_steps import BuildStep, complete, replace_folder
from .errors import ToolError
from .host_paths import ROOT, Host, python_command
from .terminal import StatusLine

FOLDERS = [
    "custom_nodes",
    "models/checkpoints",
    "models/loras",
    "models/vae",
    "models/text_encoders",
    "models/diffusion_models",
    "input",
    "output",
    "temp",
    "user",
]
SHAPES = ROOT / "tools" / "shapes"
CHECKPOINT = "models/checkpoints/shapes.safetensors"
STAR = "input/purple_star"
PAIRS = "pair_*.png"  # in input itself: Load Image lists no folders
MORE_FOLDERS = ("pairs_*", "stars_alone")  # of the evaluation


def forget_trainings(base: Path) -> None:
    """Remove the trainings that the pack has kept, so that the next run trains instead of taking them from disk."""
    shutil.rmtree(base / "output" / "traintrain", ignore_errors=True)


def prepare_base(host: Host, base: Path, status: StatusLine) -> None:
    """Bring a base folder up to date; a complete one is left as it is. Raises ToolError."""
    make_folders(base)
    weights = [SHAPES / "weights" / name for name in ("unet.safetensors", "autoencoder.safetensors")]
    complete(
        [
            BuildStep(
                "model",
                "Demonstration model",
                "300 MB to write",
                base,
                [*weights, SHAPES / "checkpoint.py", SHAPES / "build_models.py"],
                lambda: _make_checkpoint(host, base, weights),
                lambda: [base / CHECKPOINT],
                disk_mb=600,
            ),
            BuildStep(
                "images",
                "Demonstration images",
                "",
                base,
                [SHAPES / "star_images.py", SHAPES / "shape_pairs.py", SHAPES / "scenes.py"],
                lambda: _make_images(host, base),
                lambda: [
                    *_files(base / STAR),
                    *(base / "input").glob(PAIRS),
                    *(file for folder in _more_folders(base / "input") for file in _files(folder)),
                ],
                disk_mb=10,
            ),
        ],
        status,
    )


def make_folders(base: Path) -> None:
    """Make the folders that ComfyUI expects, with the pack among the custom nodes. Raises ToolError."""
    try:
        for folder in FOLDERS:
            (base / folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ToolError(f"The base folder {base} cannot be made ({error.strerror}): name another one.") from error
    _link_pack(base / "custom_nodes")


def share_model(source: Path, base: Path) -> None:
    """Give a base folder the demonstration model of another one, if that has it."""
    if not (source / CHECKPOINT).is_file():
        return
    try:
        os.link(source / CHECKPOINT, base / CHECKPOINT)
    except OSError:  # another disk
        shutil.copyfile(source / CHECKPOINT, base / CHECKPOINT)


def _link_pack(custom_nodes: Path) -> None:
    link = custom_nodes / "traintrain"
    if ROOT in (custom_nodes.resolve() / name for name in os.listdir(custom_nodes)):
        return  # the repository itself lies there
    if os.path.lexists(link) and link.resolve() == ROOT:
        return
    if link.is_symlink():  # to a repository elsewhere
        link.unlink()
    if os.path.lexists(link):
        raise ToolError(
            f"{link} is in the way: it is not a link to this repository. Remove it, or name another base folder."
        )
    if sys.platform != "win32":
        link.symlink_to(ROOT, target_is_directory=True)
        return
    # A symlink needs a special right on Windows, a junction does not.
    subprocess.run(["cmd", "/c", "mklink", "/J", str(link), str(ROOT)], check=True, capture_output=True)


def _make_checkpoint(host: Host, base: Path, weights: list[Path]) -> None:
    if missing := [str(path) for path in weights if not path.is_file()]:
        raise ToolError(
            f"The demonstration model's weights are missing ({', '.join(missing)}): get them back from the "
            "repository, or train them with tools/shapes/train_shapes.py."
        )
    _run(host, base / CHECKPOINT, "model", host.comfyui)


def _make_images(host: Host, base: Path) -> None:
    part = base / "input" / "images.part"
    _run(host, part, "images")
    for pair in part.glob(PAIRS):
        os.replace(pair, base / "input" / pair.name)
    for folder in _more_folders(part):
        replace_folder(folder, base / "input" / folder.name)
    replace_folder(part, base / STAR)


def _more_folders(inputs: Path) -> list[Path]:
    return [folder for pattern in MORE_FOLDERS for folder in inputs.glob(pattern)]


def _run(host: Host, target: Path, *arguments: str | Path) -> None:
    command = python_command(host, "tools.demonstration", *arguments, target)
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode:
        log = host.folder / "demonstration.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(made.stdout + made.stderr, encoding="utf-8")
        last = (made.stderr.strip() or "it said nothing").splitlines()[-1]
        raise ToolError(f"{target} could not be made with {host.python}: {last} (the whole output is in {log}).")


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
