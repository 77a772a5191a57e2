"""Save LoRA: saves a LoRA with its training settings and workflow."""

from __future__ import annotations

from pathlib import Path

from comfy.cli_args import args
from comfy_api.latest import io

from ..trainer.lora_file import PRECISIONS, TRAINING, WEIGHTS, is_changed, save_lora
from ..trainer.lora_metadata import file_metadata
from .input_checks import check_values
from .load_lora import LoRAModel
from .output_path import write_output
from .run_store import describe_location


class SaveLoRA(io.ComfyNode):
    """Saves a LoRA with its training settings and workflow."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs, outputs and texts."""
        return io.Schema(
            node_id="TrainTrain_SaveLoRA",
            display_name="Save LoRA",
            category="TrainTrain",
            description="Saves a LoRA to output/loras, where ComfyUI's own Load LoRA finds it, with its training settings and workflow.",
            search_aliases=["export lora", "safetensors", "write lora"],
            inputs=[
                LoRAModel.Input("lora", tooltip="From a training node or Load LoRA."),
                io.String.Input(
                    "name",
                    default="my_lora",
                    tooltip="File name in output/loras, without extension. style/my_lora saves it in a subfolder.",
                ),
                io.Combo.Input(
                    "save_precision",
                    options=list(PRECISIONS),
                    default="fp16",
                    tooltip="fp16 is half the size of fp32, samples practically the same, and works in every program.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-100,
                    max=100,
                    step=0.1,
                    advanced=True,
                    tooltip="Multiplies the LoRA in the file: saved with 2, strength 1 acts like 2 does now. 1 is usual; a negative value reverses a slider.",
                ),
                io.Boolean.Input(
                    "overwrite",
                    default=False,
                    tooltip="On: replaces a file with this name. Off: adds a number to the name instead.",
                ),
                io.Boolean.Input(
                    "for_publishing",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="On: leaves the workflow, captions and folder names out of the file, for a LoRA that you publish. What "
                    "programs need to use it stays. ComfyUI's --disable-metadata does the same for all files.",
                ),
            ],
            outputs=[io.String.Output("path", tooltip="Path of the file.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, lora, name, save_precision, strength, overwrite, for_publishing=False) -> io.NodeOutput:
        """Save the LoRA, and return its path. Raises OSError with where the LoRA is kept if that fails."""
        check_values(cls, {"lora": lora, "strength": strength, "save_precision": save_precision})
        sent = cls.hidden.extra_pnginfo  # clients may send anything
        workflow = {"prompt": cls.hidden.prompt, **(sent if isinstance(sent, dict) else {})}

        is_private = not (for_publishing or args.disable_metadata)
        is_other = strength != 1 or is_changed(lora)

        def write(path: Path) -> None:
            metadata = file_metadata(lora, path.stem, workflow, is_private)
            if is_other:  # the saved training state is for the LoRA as it was
                metadata = {key: value for key, value in metadata.items() if key not in (TRAINING, WEIGHTS)}
            save_lora(path, lora, save_precision, strength, metadata, overwrite)

        try:
            path = write_output("loras", name, ".safetensors", overwrite, write)
        except OSError as error:
            raise OSError(f"{error} {describe_location(lora)}") from error
        return io.NodeOutput(str(path), ui={"text": [str(path)]})
