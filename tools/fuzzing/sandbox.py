"""Where bad inputs are tried: folders of their own, a model, a server, and a folder that nothing may be read from."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import folder_paths
import matplotlib
import torch
from comfy.model_management import InterruptProcessingException

from ..server import Server
from .case import Watch

FOLDERS = ("input", "output", "temp", "loras")


@dataclass(eq=False)
class Sandbox:
    """Folders below `base`, what the host has loaded (MODEL, CLIP and VAE), and a running ComfyUI."""

    base: Path
    models: tuple[Any, Any, Any]
    server: Server
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        for name in (*FOLDERS, "secret"):
            (self.base / name).mkdir(parents=True, exist_ok=True)
        (self.base / "secret" / "secret.txt").write_text("secret")

    def new_folder(self) -> Path:
        """Make an empty folder in the input folder."""
        folder = self.base / "input" / f"folder_{next(self._numbers)}"
        folder.mkdir()
        return folder

    def watch(self) -> Watch:
        """Return what sees a file that is written outside these folders or read from the secret one."""
        ours = [self.base / name for name in FOLDERS]
        matplotlibs = [Path(folder()) for folder in (matplotlib.get_configdir, matplotlib.get_cachedir)]
        return Watch([*ours, *matplotlibs], [self.base / "secret"])

    @contextmanager
    def in_host(self) -> Iterator[None]:
        """Give the host these folders until the block ends."""
        before = {name: getattr(folder_paths, f"{name}_directory") for name in FOLDERS[:3]}
        known = folder_paths.folder_names_and_paths.copy()
        for name in before:
            setattr(folder_paths, f"{name}_directory", str(self.base / name))
        folder_paths.folder_names_and_paths["loras"] = ([str(self.base / "loras")], {".safetensors"})
        try:
            yield
        finally:
            for name, path in before.items():
                setattr(folder_paths, f"{name}_directory", path)
            folder_paths.folder_names_and_paths.clear()
            folder_paths.folder_names_and_paths.update(known)

    @contextmanager
    def until_first_step(self) -> Iterator[None]:
        """End the block as a user's Cancel does when the model is run: what is wrong with an input is said before."""

        def cancel(*_: Any) -> None:
            raise InterruptProcessingException

        handle = self.models[0].model.diffusion_model.register_forward_pre_hook(cancel)
        try:
            with suppress(InterruptProcessingException):
                yield
        finally:
            handle.remove()

    def weights(self) -> list[int]:
        """Return a checksum of each tensor of MODEL, CLIP and VAE."""
        model, clip, vae = self.models
        modules = model.model, clip.cond_stage_model, vae.first_stage_model
        tensors = [tensor for module in modules for tensor in module.state_dict().values()]
        return [zlib.crc32(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()) for tensor in tensors]
