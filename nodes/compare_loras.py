"""Compare LoRAs: samples LoRAs at several strengths from one seed, side by side, and draws their effect."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy_api.latest import io

from ..trainer.lora_file import can_scale
from . import host
from .compared_loras import NO_MILESTONES, collect_loras
from .comparison_grid import draw_grid
from .effect_curve import RULE, Effect, describe_effect, measure_effects
from .input_checks import check_values, sampling_inputs, seed_input, size_inputs
from .load_lora import LoRAModel
from .output_path import output_path
from .progress import SamplingProgress
from .strengths import describe_strength, read_strengths

MOST_IMAGES = 200
FOLDER = "compare"  # in the output folder

logger = logging.getLogger(__name__)


class CompareLoRAs(io.ComfyNode):
    """Samples LoRAs at several strengths from one seed, side by side, and draws their effect."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs, outputs and texts."""
        return io.Schema(
            node_id="TrainTrain_CompareLoRAs",
            display_name="Compare LoRAs",
            category="TrainTrain",
            description="Samples LoRAs at several strengths from one seed, side by side, and says from which strength on more adds little or breaks the image. Saves the grid and the chart to output/compare.",
            search_aliases=["xy plot", "strength grid", "lora strength", "test lora", "compare checkpoints", "slider"],
            inputs=[
                io.Model.Input("model", tooltip="The model without these LoRAs. It is not modified."),
                io.Conditioning.Input("positive", tooltip="Prompt of all images."),
                io.Conditioning.Input("negative", tooltip="Negative prompt of all images. An empty prompt is enough."),
                io.Vae.Input("vae", tooltip="Decodes the images."),
                io.Autogrow.Input(
                    "loras",
                    template=io.Autogrow.TemplatePrefix(
                        LoRAModel.Input("lora", tooltip="From a training node or Load LoRA. One row of the grid."),
                        "lora",
                        min=1,
                        max=16,
                    ),
                ),
                io.String.Input(
                    "strengths",
                    default="-1, 0, 0.5, 1, 1.5, 2",
                    tooltip="The columns of the grid: numbers separated by commas. 0 is the model without LoRA; it is always there and sampled once.",
                ),
                io.Boolean.Input(
                    "milestones",
                    default=False,
                    tooltip="On: the LoRAs that save_every in Training Settings has saved during the same training get rows of their own, in the order of their steps.",
                ),
                *size_inputs("Pixels. Size of an image: 512 for SD 1.5, 1024 for SDXL and later."),
                *sampling_inputs(),
                seed_input("Seed of the noise that all images start from, so that they can be compared."),
                io.String.Input(
                    "name",
                    default="comparison",
                    tooltip="Name of the grid (.png) and the chart (_curve.png) in output/compare. If it is taken, a number is added.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="With reference: also draws how alike the images and the reference are to this CLIP vision model.",
                ),
                io.Image.Input(
                    "reference",
                    optional=True,
                    tooltip="One or more images of what the LoRA should show, for clip_vision.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "grid", tooltip="All images with labels: a row for each LoRA, a column for each strength."
                ),
                io.Image.Output("images", tooltip="The images as a batch, row by row."),
                io.Image.Output("curve", tooltip="Chart of the effect at each strength, and what it says in words."),
                io.String.Output("report", tooltip="What the chart says in words."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, strengths: Any = None, loras: Any = None) -> bool | str:
        """Return what is wrong with the strengths before the workflow starts; None if they come by a wire.

        loras: the host gives every growing input, wanted or not
        """
        try:
            return strengths is None or bool(read_strengths(str(strengths)))
        except ValueError as error:
            return str(error)

    @classmethod
    def execute(
        cls, model, strengths, milestones, name, loras=None, clip_vision=None, reference=None, **sampling
    ) -> io.NodeOutput:
        """Return the grid, all images, the chart and the report. Raises ValueError before sampling if inputs are wrong."""
        check_values(cls, {"model": model, "strengths": strengths, "milestones": milestones, **sampling})
        if (clip_vision is None) != (reference is None):
            raise ValueError("Only one of clip_vision and reference is connected: connect both, or neither.")
        _find_path(name)
        at, sampling = read_strengths(strengths), host.Sampling(**sampling)
        wired = {slot: lora for slot, lora in (loras or {}).items() if lora is not None}
        named = collect_loras(wired, cls.hidden.prompt or {}, cls.hidden.unique_id, milestones)
        _check(model, sampling, named, at)
        rows, curves = _sample(model, sampling, named, at, cls.hidden.unique_id)
        similar = None
        if clip_vision is not None:
            similar = {name: host.image_similarities(clip_vision, reference, images) for name, images in rows.items()}
        report = _report(named, curves, at, similar)
        if milestones and len(named) == len(wired):
            report = f"{report}\n{NO_MILESTONES}"
        return _show(name, rows, curves, at, report, similar)


def _find_path(name: str) -> Path:
    """Return the path for the grid. Raises ValueError if the name is not valid."""
    return output_path(FOLDER, name, ".png", overwrite=False)


def _check(model: Any, sampling: host.Sampling, loras: dict[str, dict], strengths: list[float]) -> None:
    """Raise ValueError or RuntimeError for what could only fail after some images have been sampled."""
    count = _count(loras, strengths)
    if count > MOST_IMAGES:
        raise ValueError(
            f"{len(loras)} LoRAs at {len(strengths)} strengths are {count} images: compare fewer, {MOST_IMAGES} images at "
            "most."
        )
    host.check_sampling(sampling, model)
    for lora in loras.values():
        host.with_lora(model, lora)


def _sample(
    model: Any, sampling: host.Sampling, loras: dict[str, dict], strengths: list[float], node_id: str
) -> tuple[dict[str, Sequence[torch.Tensor]], dict[str, list[Effect]]]:
    """Return the images (H, W, 3) and effects of each LoRA at each strength; 0 is sampled once."""
    progress = SamplingProgress(node_id, _count(loras, strengths), sampling.steps)

    def sample(patched: Any) -> tuple[torch.Tensor, torch.Tensor]:
        latent = host.sample_latent(patched, sampling, progress.step)
        image = host.decode_image(sampling.vae, latent)
        progress.end_image()
        return latent, image

    plain = sample(model)
    rows, curves = {}, {}
    for name, lora in loras.items():
        samples = [sample(host.with_lora(model, lora, strength)) if strength else plain for strength in strengths]
        latents, rows[name] = zip(*samples)
        curves[name] = measure_effects(strengths, latents, rows[name])
    return rows, curves


def _count(loras: dict[str, dict], strengths: list[float]) -> int:
    """Return how many images are sampled."""
    return len(loras) * (len(strengths) - 1) + 1


def _report(
    loras: dict[str, dict],
    curves: dict[str, list[Effect]],
    strengths: list[float],
    similar: dict[str, list[float]] | None,
) -> str:
    lines = [
        f"{name}, {sentence}"
        for name, curve in curves.items()
        for sentence in describe_effect(curve, can_scale(loras[name]))
    ]
    if similar is not None:
        value, name, strength = max(
            (value, name, strength) for name, row in similar.items() for value, strength in zip(row, strengths)
        )
        lines.append(f"Most like the reference: {name}, {describe_strength(strength)} (similarity {value:.2f}).")
    if any(host.has_text_encoder(lora) for lora in loras.values()):
        lines.append(
            "The prompts are encoded without the LoRAs' text encoder layers: the images show what the other layers do."
        )
    return "\n".join([*lines, RULE])


def _show(
    name: str,
    rows: dict[str, Sequence[torch.Tensor]],
    curves: dict[str, list[Effect]],
    strengths: list[float],
    report: str,
    similar: dict[str, list[float]] | None,
) -> io.NodeOutput:
    """Draw and save the grid and the chart, and return the node's outputs."""
    from .effect_chart import draw_effects  # matplotlib takes a second to import: not when ComfyUI starts
    from .loss_chart import save_png

    logger.info("%s", report)
    grid = draw_grid(rows, [describe_strength(strength) for strength in strengths])
    chart = draw_effects(curves, report, similar)[None]
    path = save_png(_find_path(name), grid[0])
    files = path, save_png(path.with_name(f"{path.stem}_curve.png"), chart[0])
    subfolder = path.parent.relative_to(Path(folder_paths.get_output_directory()).resolve()).as_posix()
    shown = [{"filename": file.name, "subfolder": subfolder, "type": "output"} for file in files]
    images = torch.stack([image for row in rows.values() for image in row])
    return io.NodeOutput(grid, images, chart, report, ui={"text": [report], "images": shown})
