"""Plot Loss: draws a chart and writes a table of the losses of trainings."""

from __future__ import annotations

from pathlib import Path

from comfy_api.latest import io, ui

from ..trainer.history import History
from .input_checks import SHOWN, check_values
from .loss_table import read_table, write_table
from .output_path import output_path
from .unique_names import with_unique_names


class PlotLoss(io.ComfyNode):
    """Draws a chart and writes a table of the losses of trainings."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs, outputs and texts."""
        return io.Schema(
            node_id="TrainTrain_PlotLoss",
            display_name="Plot Loss",
            category="TrainTrain",
            description="Draws the loss of one or more trainings, and saves the chart and a table to output/loss.",
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
                    tooltip="Steps that the smoothed curve averages over. 25 suits most; 1 draws only the raw loss.",
                ),
                io.String.Input(
                    "name",
                    default="loss",
                    tooltip="Name of the chart (.png) and the table (.csv) in output/loss. If it is taken, a number is added.",
                ),
                io.Boolean.Input(
                    "logarithmic",
                    default=False,
                    tooltip="On: a logarithmic axis, which shows differences between small losses.",
                ),
                io.String.Input(
                    "tables",
                    default="",
                    tooltip="Names of earlier tables in output/loss to draw too, separated by commas: loss, purple_star_2. May be empty.",
                ),
            ],
            outputs=[io.Image.Output("image", tooltip="The chart.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, smoothing, name, loss=None, logarithmic=False, tables="") -> io.NodeOutput:
        """Save a chart and a table of the losses, and return the chart (1, H, W, 3). Raises ValueError for no losses."""
        check_values(cls, {"smoothing": smoothing})
        from .loss_chart import (  # matplotlib takes a second to import: not when ComfyUI starts
            draw_losses,
            save_png,
        )

        wired = [run for run in (loss or {}).values() if run is not None]
        histories = [(run, _history(run)) for run in wired]
        runs = with_unique_names(
            [(str(run.get("name", f"run {number}")), history) for number, (run, history) in enumerate(histories, 1)]
            + [run for table in tables.split(",") if table.strip() for run in read_table(_find_table(table)).items()]
        )
        if not runs:
            raise ValueError(
                "There is no loss to draw: connect the loss of a training node, or name a table in output/loss."
            )
        path = output_path("loss", name, ".csv", overwrite=False)
        write_table(path, runs, smoothing)
        image = draw_losses(runs, smoothing, logarithmic)
        chart = save_png(path.with_suffix(".png"), image)
        return io.NodeOutput(
            image[None], ui={"text": [str(chart), str(path)], **ui.PreviewImage(image[None], cls=cls).as_dict()}
        )


def _history(run: dict) -> History:
    """Return the history in a LOSS_MAP; ComfyUI's own may hold tensors, or a single loss."""
    if not isinstance(run, dict) or "loss" not in run:
        raise ValueError(f"{str(run)[:SHOWN]} is not a loss: connect the loss of a training node.")
    losses = run["loss"] if isinstance(run["loss"], (list, tuple)) else [run["loss"]]
    return History(
        [float(loss) for loss in losses],
        [float(rate) for rate in run.get("learning_rate", ())],
        list(run.get("skipped", ())),
        {int(step): float(loss) for step, loss in run.get("validation", ())},
    )


def _find_table(name: str) -> Path:
    """Return the path of a table in output/loss. Raises ValueError if there is none, or if the name leads elsewhere."""
    path = output_path("loss", name, ".csv", overwrite=True)
    if not path.is_file():
        raise ValueError(f"There is no table {path.name} in {path.parent}: use the name of a .csv file there.")
    return path
