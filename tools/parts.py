"""What the example workflows are put together from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .graph import Graph, Slot

NOTES = Path(__file__).parent / "notes"


@dataclass(frozen=True)
class ModelKind:
    """A checkpoint, and how it is sampled."""

    checkpoint: str
    size: int  # pixels of its pictures
    samples: int  # of each row
    cell: int  # pixels of a sample in the picture of all
    sampling: dict[str, Any]


SHAPES = ModelKind(
    "shapes.safetensors", 64, 4, 192, {"steps": 20, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal"}
)
SDXL = ModelKind(
    "sd_xl_base_1.0.safetensors",
    1024,
    2,
    768,
    {"steps": 30, "cfg": 7.0, "sampler_name": "dpmpp_2m", "scheduler": "karras"},
)

PAIR_PROMPT = "a red circle"
ILECO_NETWORK = {"rank": 4, "alpha": 8.0}
ILECO_TRAINING = {"width": 64, "height": 64, "steps": 200, "batch_size": 2, "learning_rate": 1e-3, "seed": 1}
ADDIFT_NETWORK = {"network_type": "c3lier", "rank": 4, "alpha": 2.0}
ADDIFT_SETTINGS = {"optimizer": "AdamW", "min_timestep": 500}
ADDIFT_TRAINING = {"steps": 100, "batch_size": 1, "learning_rate": 6e-4, "seed": 1}


def note(name: str) -> str:
    """Read what a workflow tells its user."""
    return (NOTES / f"{name}.md").read_text(encoding="utf-8")


def load_folder(graph: Graph, text: str, kind: ModelKind, folder: str, **frame: Any) -> tuple[Slot, ...]:
    """Place the loaders of a model and of a folder of pictures, and Bucket Images; `text` names the note."""
    with graph.group("1. Model and pictures"):
        graph.column(0)
        model, clip, vae = graph.add("CheckpointLoaderSimple", ckpt_name=kind.checkpoint)
        images, masks, captions, names = graph.add("TrainTrain_LoadImageFolder", folder=folder)
        graph.note(note(text), height=420)
        graph.column(1)
        wires = {"images": images, "captions": captions, "masks": masks, "names": names}
        images, _, _ = graph.add("TrainTrain_BucketImages", width=kind.size, height=kind.size, **wires, **frame)
    return model, clip, vae, images


def learn_pictures(
    graph: Graph,
    name: str,
    text: str,
    wires: tuple[Slot, ...],
    network: dict,
    settings: dict,
    training: dict,
    kind: ModelKind,
) -> None:
    """Place Train LoRA on what `load_folder` gave, and samples of `text` before and after."""
    model, clip, vae, images = wires
    with graph.group("2. Training"):
        graph.column(2)
        (network,) = graph.add("TrainTrain_LoRANetwork", **network)
        (settings,) = graph.add("TrainTrain_TrainingSettings", **settings)
        graph.column(3)
        trained, trained_clip, lora, loss = graph.add(
            "TrainTrain_TrainLoRA",
            model=model,
            clip=clip,
            vae=vae,
            training_images=images,
            network=network,
            settings=settings,
            **training,
        )
        save(graph, lora, [loss], name)
    compare(graph, 4, trained_clip, vae, [("Before", model), ("After", trained)], text, name, kind=kind)


def load_pair(graph: Graph, text: str) -> tuple[Slot, ...]:
    """Place the loaders of a model and two pictures, and their prompt."""
    graph.column(0)
    model, clip, vae = graph.add("CheckpointLoaderSimple", ckpt_name=SHAPES.checkpoint)
    (prompt,) = graph.add("CLIPTextEncode", "What both show", clip=clip, text=PAIR_PROMPT)
    graph.note(text, height=420)
    graph.column(1)
    original, _ = graph.add("LoadImage", "Original", image="pair_background.png")
    target, _ = graph.add("LoadImage", "Target", image="pair_background_target.png")
    return model, clip, vae, original, target, prompt


def prompts(graph: Graph, clip: Slot, title: str, texts: Sequence[str], joined: Slot | None = None) -> Slot:
    """Place a column of prompts and join them, and what is given, to one CONDITIONING."""
    for number, text in enumerate(texts, 1):
        (prompt,) = graph.add("CLIPTextEncode", f"{title} {number}", clip=clip, text=text)
        if joined:
            (prompt,) = graph.add("ConditioningCombine", conditioning_1=joined, conditioning_2=prompt)
        joined = prompt
    return joined


def train_ileco(graph: Graph, column: int, name: str, guidance: float = 0.0, **wires: Slot) -> Slot:
    """Place iLECO's training and return the trained MODEL."""
    with graph.group("2. Training"):
        graph.column(column)
        (network,) = graph.add("TrainTrain_LoRANetwork", **ILECO_NETWORK)
        graph.column(column + 1)
        trained, lora, loss = graph.add(
            "TrainTrain_TrainILECO", network=network, guidance=guidance, **wires, **ILECO_TRAINING
        )
        save(graph, lora, [loss], name)
    return trained


def train_addift(
    graph: Graph, column: int, name: str, model: Slot, vae: Slot, original: Slot, target: Slot, prompt: Slot
) -> tuple[Slot, Slot]:
    """Place ADDifT's training and return the trained MODEL and the LoRA."""
    graph.column(column)
    (network,) = graph.add("TrainTrain_LoRANetwork", **ADDIFT_NETWORK)
    (settings,) = graph.add("TrainTrain_TrainingSettings", **ADDIFT_SETTINGS)
    graph.column(column + 1)
    trained, lora, loss = graph.add(
        "TrainTrain_TrainADDifT",
        model=model,
        vae=vae,
        original=original,
        target=target,
        original_conditioning=prompt,
        target_conditioning=prompt,
        network=network,
        settings=settings,
        **ADDIFT_TRAINING,
    )
    save(graph, lora, [loss], name)
    return trained, lora


def save(graph: Graph, lora: Slot, losses: list[Slot], name: str | Slot) -> None:
    """Place Save LoRA and Plot Loss."""
    graph.add("TrainTrain_SaveLoRA", "Save LoRA", lora=lora, name=name)
    graph.add("TrainTrain_PlotLoss", "Plot Loss", loss=losses, name=name)


def compare(
    graph: Graph,
    column: int,
    clip: Slot,
    vae: Slot,
    models: list[tuple[str, Slot]],
    text: str,
    name: str,
    y: int = 0,
    kind: ModelKind = SHAPES,
) -> None:
    """Place the same samples from each model, a row for each, and their picture."""
    title = "Rows: " + ", ".join(title for title, _ in models)
    with graph.group(title):
        graph.column(column, y)
        (positive,) = graph.add("CLIPTextEncode", "Prompt", clip=clip, text=text)
        (negative,) = graph.add("CLIPTextEncode", "Negative prompt", clip=clip, text="")
        (latent,) = graph.add("EmptyLatentImage", width=kind.size, height=kind.size, batch_size=kind.samples)
        graph.column(column + 1, y)
        rows_of_latents = [
            graph.add(
                "KSampler",
                row,
                model=model,
                seed=42,
                positive=positive,
                negative=negative,
                latent_image=latent,
                **kind.sampling,
            )[0]
            for row, model in models
        ]
        graph.column(column + 2, y)
        (latents,) = graph.add("BatchLatentsNode", latents=rows_of_latents)
        (images,) = graph.add("VAEDecode", samples=latents, vae=vae)
        (images,) = graph.add("RebatchImages", images=images, batch_size=1)
        (grid,) = graph.add(
            "ImageGrid", images=images, columns=kind.samples, cell_width=kind.cell, cell_height=kind.cell
        )
        graph.column(column + 3, y)
        graph.add("SaveImage", title, node_width=440, images=grid, filename_prefix=name)
