"""The nodes that save, load and plot what was trained."""

from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.latest import io, ui

from ..trainer.files import PRECISIONS, file_metadata, load_lora, save_lora
from ..trainer.history import History
from .inputs import SHOWN, check_values
from .loss_table import read_table, write_table
from .output_path import output_path, write_output
from .results import TRAINING, where_kept

LoRAModel = io.Custom("LORA_MODEL")


class SaveLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TrainTrain_SaveLoRA",
            display_name="Save LoRA",
            category="TrainTrain",
            description="Writes a LoRA to output/loras, where the host's Load LoRA finds it, with how it was trained and the graph that made it.",
            search_aliases=["export lora", "safetensors", "write lora"],
            inputs=[
                LoRAModel.Input("lora", tooltip="From a training node or Load LoRA."),
                io.String.Input(
                    "name",
                    default="my_lora",
                    tooltip="Name of the file in output/loras, without its ending; style/my_lora puts it into a folder there.",
                ),
                io.Combo.Input(
                    "save_precision",
                    options=list(PRECISIONS),
                    default="fp16",
                    tooltip="fp16 is half the size of fp32 and samples alike; every program reads it.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-100,
                    max=100,
                    step=0.1,
                    advanced=True,
                    tooltip="Multiplies the LoRA in the file: saved at 2, strength 1 works as 2 does now. Negative turns a slider round.",
                ),
                io.Boolean.Input(
                    "overwrite",
                    default=False,
                    tooltip="Replace a file of this name. Off: a number is added to the name instead.",
                ),
            ],
            outputs=[io.String.Output("path", tooltip="Where the file is.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, lora, name, save_precision, strength, overwrite) -> io.NodeOutput:
        check_values(cls, {"lora": lora, "strength": strength, "save_precision": save_precision})
        sent = cls.hidden.extra_pnginfo  # any client sends what it likes
        workflow = {"prompt": cls.hidden.prompt, **(sent if isinstance(sent, dict) else {})}

        def write(path: Path) -> None:
            metadata = file_metadata(lora, path.stem, workflow)
            if strength != 1:
                metadata.pop(TRAINING, None)  # the training's state is of the LoRA as it was
            save_lora(path, lora, save_precision, strength, metadata, overwrite)

        try:
            path = write_output("loras", name, ".safetensors", overwrite, write)
        except OSError as error:
            raise OSError(f"{error} {where_kept(lora)}") from error
        return io.NodeOutput(str(path), ui={"text": [str(path)]})


class LoadLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TrainTrain_LoadLoRA",
            display_name="Load LoRA (TrainTrain)",
            category="TrainTrain",
            description="Reads a LoRA file for nodes that take a LoRA by wire.",
            search_aliases=["open lora", "lora file", "import lora"],
            inputs=[
                io.Combo.Input(
                    "lora_name",
                    options=_safetensors_names(),
                    tooltip="A .safetensors file from the host's LoRA folders.",
                )
            ],
            outputs=[LoRAModel.Output("lora", tooltip="Goes into Save LoRA, or into the host's Load LoRA Model.")],
        )

    @classmethod
    def execute(cls, lora_name) -> io.NodeOutput:
        return io.NodeOutput(load_lora(_find_lora(lora_name)))

    @classmethod
    def fingerprint_inputs(cls, lora_name) -> str:
        status = _find_lora(lora_name).stat()
        return f"{lora_name} {status.st_size} {status.st_mtime_ns}"


class PlotLoss(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TrainTrain_PlotLoss",
            display_name="Plot Loss",
            category="TrainTrain",
            description="Draws the loss of one or more trainings, and writes chart and table to output/loss.",
            search_aliases=["loss graph", "training curve", "loss chart", "csv", "compare trainings"],
            inputs=[
                io.Autogrow.Input(
                    "loss",
                    template=io.Autogrow.TemplatePrefix(
                        io.Custom("LOSS_MAP").Input("run", tooltip="From a training node."), "run", min=0, max=16
                    ),
                ),
                io.Int.Input(
                    "smoothing",
                    default=25,
                    min=1,
                    max=10000,
                    tooltip="Steps that the smooth line averages over. 1 draws the bare losses.",
                ),
                io.String.Input(
                    "name",
                    default="loss",
                    tooltip="Name of the chart (.png) and the table (.csv) in output/loss; a number is added if it is taken.",
                ),
                io.Boolean.Input(
                    "logarithmic",
                    default=False,
                    tooltip="On: an axis of powers of ten, on which small losses can be told apart.",
                ),
                io.String.Input(
                    "tables",
                    default="",
                    tooltip="Earlier tables of output/loss to draw as well, by name, separated by commas: loss, purple_star_2.",
                ),
            ],
            outputs=[io.Image.Output("image", tooltip="The chart.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, smoothing, name, loss=None, logarithmic=False, tables="") -> io.NodeOutput:
        check_values(cls, {"smoothing": smoothing})
        from .plot import draw_losses, save_picture  # matplotlib takes a second to import: not when ComfyUI starts

        wired = [run for run in (loss or {}).values() if run is not None]
        histories = [(run, _history(run)) for run in wired]
        runs = _named_apart(
            [(str(run.get("name", f"run {number}")), history) for number, (run, history) in enumerate(histories, 1)]
            + [run for table in tables.split(",") if table.strip() for run in read_table(_find_table(table)).items()]
        )
        if not runs:
            raise ValueError("There is no loss to draw: wire the loss of a training, or name a table of output/loss.")
        path = output_path("loss", name, ".csv", overwrite=False)
        write_table(path, runs, smoothing)
        image = draw_losses(runs, smoothing, logarithmic)
        chart = save_picture(path.with_suffix(".png"), image)
        return io.NodeOutput(
            image[None], ui={"text": [str(chart), str(path)], **ui.PreviewImage(image[None], cls=cls).as_dict()}
        )


def _history(run: dict) -> History:
    """Read a LOSS_MAP, ours or the host's, whose losses may be tensors, or a single one."""
    if not isinstance(run, dict) or "loss" not in run:
        raise ValueError(f"{str(run)[:SHOWN]} is no loss: wire the loss of a training.")
    losses = run["loss"] if isinstance(run["loss"], (list, tuple)) else [run["loss"]]
    return History([float(loss) for loss in losses], [float(rate) for rate in run.get("learning_rate", ())])


def _named_apart(runs: list[tuple[str, History]]) -> dict[str, History]:
    """Give each run with a loss a name of its own."""
    named: dict[str, History] = {}
    for name, run in runs:
        if run.losses:
            same = sum(known == name or known.startswith(f"{name} (") for known in named)
            named[f"{name} ({same + 1})" if same else name] = run
    return named


def _find_table(name: str) -> Path:
    """Return the table of a name in output/loss. Raises ValueError where there is none, or outside that folder."""
    path = output_path("loss", name, ".csv", overwrite=True)
    if not path.is_file():
        raise ValueError(f"There is no table {path.name} in {path.parent}: give the name of a file there.")
    return path


def _safetensors_names() -> list[str]:
    return [name for name in folder_paths.get_filename_list("loras") if name.lower().endswith(".safetensors")]


def _find_lora(name: str) -> Path:
    """Return the file of a name in the host's LoRA folders. Raises ValueError where there is none."""
    try:
        return Path(folder_paths.get_full_path_or_raise("loras", name))
    except (OSError, ValueError) as error:  # a ValueError for what no file can be called
        raise ValueError(
            f"There is no LoRA {name[:SHOWN]!r} in ComfyUI's LoRA folders: choose one of the list."
        ) from error
