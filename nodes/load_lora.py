"""Load LoRA: loads a LoRA file for nodes that take a LoRA."""

from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..trainer.lora_file import load_lora
from ..trainer.peft_settings import CONFIG
from .input_checks import SHOWN
from .kept_files import kept_loras

LoRAModel = io.Custom("LORA_MODEL")  # ComfyUI's own type: a dict of tensors


class LoadLoRA(io.ComfyNode):
    """Loads a LoRA file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs, outputs and texts."""
        return io.Schema(
            node_id="TrainTrain_LoadLoRA",
            display_name="Load LoRA (TrainTrain)",
            category="TrainTrain",
            description="Loads a LoRA file for nodes with a LoRA input.",
            search_aliases=["open lora", "lora file", "import lora"],
            inputs=[
                io.Combo.Input(
                    "lora_name",
                    options=_safetensors_names(),
                    tooltip="A .safetensors file in ComfyUI's LoRA folders. Those in trained/ are LoRAs that trainings have kept.",
                )
            ],
            outputs=[LoRAModel.Output("lora", tooltip="Goes into Save LoRA, or into ComfyUI's Load LoRA Model.")],
        )

    @classmethod
    def execute(cls, lora_name) -> io.NodeOutput:
        """Load the LoRA. Raises ValueError if there is no such file, or it is not a LoRA."""
        return io.NodeOutput(load_lora(_find_lora(lora_name)))

    @classmethod
    def fingerprint_inputs(cls, lora_name) -> str:
        """Return a text that changes with the file, or PEFT's config beside it, so that ComfyUI loads it again."""
        path = _find_lora(lora_name)
        config = path.with_name(CONFIG)
        files = [path, config] if config.is_file() else [path]
        return " ".join([lora_name, *(f"{file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)])


def _safetensors_names() -> list[str]:
    """Return the names of the files in ComfyUI's LoRA folders, and of those that trainings keep."""
    names = [name for name in folder_paths.get_filename_list("loras") if name.lower().endswith(".safetensors")]
    return list(dict.fromkeys([*names, *kept_loras()]))


def _find_lora(name: str) -> Path:
    """Return the path of a file in ComfyUI's LoRA folders, or of a kept training. Raises ValueError if there is none."""
    try:
        kept = kept_loras()
        if name in kept and folder_paths.get_full_path("loras", name) is None:
            return kept[name]
        return Path(folder_paths.get_full_path_or_raise("loras", name))
    except (OSError, ValueError) as error:  # ValueError: not a possible file name
        raise ValueError(
            f"There is no LoRA {name[:SHOWN]!r} in ComfyUI's LoRA folders: choose one from the list."
        ) from error
