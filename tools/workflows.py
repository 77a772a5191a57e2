"""Writes `example_workflows/`: each graph is a few lines here, from the loader to samples before and after.

    python -m tools.workflows --comfyui .host/ComfyUI --base .host/base

Asks a running ComfyUI for the order of each node's inputs, so the files fit the nodes as they are.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from .graph import Graph, Slot
from .host import ROOT
from .server import Server

EXAMPLES = ROOT / "example_workflows"
NOTES = Path(__file__).parent / "notes"
SIZE = 64  # pixels of the demonstration model's pictures
SAMPLES = 4  # of each row


PAIR_PROMPT = "a red circle"
COPIED_WORDS = ["", "green triangle", "blue", "yellow square", "black background"]

ILECO_WORDS = ["red", "a red shape", "a red circle"]
ERASE_WORDS = ["triangle", "a triangle"]
ERASE_TARGETS = [""]
PRESERVE_WORDS = ["circle", "square"]

# What works on the demonstration model; the notes say what does on real ones.
ILECO_NETWORK = {"rank": 4, "alpha": 8.0}
ILECO_TRAINING = {"width": SIZE, "height": SIZE, "steps": 200, "batch_size": 2, "learning_rate": 1e-3, "seed": 1}
COPY_NETWORK = {"network_type": "c3lier", "rank": 16, "alpha": 16.0}
COPY_TRAINING = {"steps": 400, "batch_size": 2, "learning_rate": 2e-3, "seed": 1}
DIFFERENCE_NETWORK = {"network_type": "c3lier", "rank": 4, "alpha": 4.0}
DIFFERENCE_TRAINING = {"steps": 200, "batch_size": 2, "learning_rate": 2e-3, "seed": 1}
ADDIFT_NETWORK = {"network_type": "c3lier", "rank": 4, "alpha": 2.0}
ADDIFT_SETTINGS = {"optimizer": "AdamW", "min_timestep": 500}
ADDIFT_TRAINING = {"steps": 100, "batch_size": 1, "learning_rate": 6e-4, "seed": 1}


def train_lora(graph: Graph) -> None:
    """Teach the model a purple star, and compare."""
    with graph.group("1. Model and pictures"):
        graph.column(0)
        model, clip, vae = graph.add("CheckpointLoaderSimple", ckpt_name="shapes.safetensors")
        images, masks, captions, names = graph.add("TrainTrain_LoadImageFolder", folder="purple_star")
        graph.note(note("train_lora"), height=380)
        graph.column(360)
        images, preview, _ = graph.add(
            "TrainTrain_BucketImages",
            images=images,
            captions=captions,
            masks=masks,
            names=names,
            width=SIZE,
            height=SIZE,
            buckets_step=8,
            min_length=SIZE,
            mirroring=True,
        )
        graph.add("PreviewImage", "What is trained", images=preview)
    with graph.group("2. Training"):
        graph.column(740)
        (network,) = graph.add("TrainTrain_LoRANetwork", network_type="c3lier", rank=16, alpha=16.0)
        (settings,) = graph.add("TrainTrain_TrainingSettings")
        graph.column(1100)
        trained, trained_clip, lora, loss = graph.add(
            "TrainTrain_TrainLoRA",
            model=model,
            clip=clip,
            vae=vae,
            training_images=images,
            network=network,
            settings=settings,
            steps=500,
            batch_size=4,
            learning_rate=2e-3,
            seed=1,
        )
        save(graph, lora, [loss], "purple_star")
    compare(
        graph,
        1480,
        trained_clip,
        vae,
        [("Before", model), ("After", trained)],
        "a purple star on a white background",
        "purple_star",
    )


def ileco_replace(graph: Graph) -> None:
    """Turn red into blue by words alone."""
    with graph.group("1. Model and words"):
        graph.column(0)
        model, clip, vae = graph.add("CheckpointLoaderSimple", ckpt_name="shapes.safetensors")
        graph.note(note("ileco_replace"), height=420)
        graph.column(360)
        originals = prompts(graph, clip, "Original", ILECO_WORDS)
        graph.column(720)
        targets = prompts(graph, clip, "Target", [text.replace("red", "blue") for text in ILECO_WORDS])
    trained = train_ileco(graph, 1080, "red_to_blue", model=model, original=originals, target=targets)
    models = [("Before", model), ("After", trained)]
    compare(graph, 1480, clip, vae, models, "a red square on a white background", "red_to_blue")


def ileco_erase(graph: Graph) -> None:
    """Erase the triangle, and keep the other shapes."""
    with graph.group("1. Model and words"):
        graph.column(0)
        model, clip, vae = graph.add("CheckpointLoaderSimple", ckpt_name="shapes.safetensors")
        graph.note(note("ileco_erase"), height=420)
        graph.column(360)
        originals = prompts(graph, clip, "Original", ERASE_WORDS)
        graph.column(720)
        targets = prompts(graph, clip, "Target", ERASE_TARGETS)
        preserved = prompts(graph, clip, "Preserve", PRESERVE_WORDS)
    trained = train_ileco(
        graph, 1080, "no_triangle", 1.0, model=model, original=originals, target=targets, preserve=preserved
    )
    models = [("Before", model), ("After", trained)]
    compare(graph, 1480, clip, vae, models, "a green triangle on a white background", "no_triangle")


def copy_machine_difference(graph: Graph) -> None:
    """Learn what the second picture has and the first has not."""
    with graph.group("1. Model and two pictures"):
        model, clip, vae, original, target, prompt = load_pair(graph, note("copy_machine_difference"))
        graph.column(720)
        copied = prompts(graph, clip, "Copied for", COPIED_WORDS, prompt)
    with graph.group("2. Copy machine"):
        graph.column(1080)
        (network,) = graph.add("TrainTrain_LoRANetwork", **COPY_NETWORK)
        (settings,) = graph.add("TrainTrain_TrainingSettings")
        graph.column(1440)
        copying, copy_machine, copy_loss = graph.add(
            "TrainTrain_TrainCopyMachine",
            model=model,
            vae=vae,
            image=original,
            conditioning=copied,
            network=network,
            settings=settings,
            **COPY_TRAINING,
        )
        graph.add("TrainTrain_SaveLoRA", "Save copy machine", lora=copy_machine, name="black_background_copy")
    with graph.group("3. Difference"):
        graph.column(1800)
        (network,) = graph.add("TrainTrain_LoRANetwork", **DIFFERENCE_NETWORK)
        (settings,) = graph.add("TrainTrain_TrainingSettings")
        graph.column(2160)
        trained, lora, loss = graph.add(
            "TrainTrain_TrainDifference",
            model=model,
            vae=vae,
            image=target,
            conditioning=prompt,
            copy_machine=copy_machine,
            network=network,
            settings=settings,
            **DIFFERENCE_TRAINING,
        )
        save(graph, lora, [copy_loss, loss], "black_background")
        (back,) = graph.add("LoraModelLoader", "The other way", model=model, lora=lora, strength_model=-1.0)
    models = [("Before", model), ("Copy machine", copying), ("Strength 1", trained), ("Strength -1", back)]
    compare(graph, 2540, clip, vae, models, "a green triangle", "black_background")


def addift(graph: Graph) -> None:
    """Make a slider of two pictures."""
    with graph.group("1. Model and two pictures"):
        model, clip, vae, original, target, prompt = load_pair(graph, note("addift"))
    with graph.group("2. Training"):
        graph.column(720)
        trained, lora = train_addift(graph, "black_background_addift", model, vae, original, target, prompt)
        (back,) = graph.add("LoraModelLoader", "The other way", model=model, lora=lora, strength_model=-1.0)
    models = [("Strength -1", back), ("Before", model), ("Strength 1", trained)]
    compare(graph, 1480, clip, vae, models, "a green triangle", "black_background_addift")


def compare_sliders(graph: Graph) -> None:
    """Lay two LoRAs at strengths from -2 to 2 side by side."""
    with graph.group("1. Model, pictures, words"):
        model, clip, vae, original, target, prompt = load_pair(graph, note("compare_sliders"))
        graph.column(720)
        originals = prompts(graph, clip, "Original", ILECO_WORDS)
        graph.column(1080)
        targets = prompts(graph, clip, "Target", [text.replace("red", "blue") for text in ILECO_WORDS])
    with graph.group("2. Two trainings"):
        graph.column(1440)
        _, background = train_addift(graph, "slider_background", model, vae, original, target, prompt)
        graph.column(1800)
        (network,) = graph.add("TrainTrain_LoRANetwork", **ILECO_NETWORK)
        _, colour, loss = graph.add(
            "TrainTrain_TrainILECO", model=model, original=originals, target=targets, network=network, **ILECO_TRAINING
        )
        save(graph, colour, [loss], "slider_colour")
    for place, (name, lora, text) in enumerate(
        [("background", background, "a green triangle"), ("colour", colour, "a red square on a white background")]
    ):
        with graph.group(f"The {name} at four strengths"):
            graph.column(2180, place * 2100)
            models = [
                (f"{strength:+g}", graph.add("LoraModelLoader", model=model, lora=lora, strength_model=strength)[0])
                for strength in (-2.0, -1.0, 1.0, 2.0)
            ]
        models.insert(2, ("0", model))
        compare(graph, 2560, clip, vae, models, text, f"slider_{name}", y=place * 2100)


def note(name: str) -> str:
    """Read what a workflow tells its user."""
    return (NOTES / f"{name}.md").read_text(encoding="utf-8")


def load_pair(graph: Graph, text: str) -> tuple[Slot, ...]:
    """Place the loaders of a model and two pictures, and their prompt."""
    graph.column(0)
    model, clip, vae = graph.add("CheckpointLoaderSimple", ckpt_name="shapes.safetensors")
    (prompt,) = graph.add("CLIPTextEncode", "What both show", clip=clip, text=PAIR_PROMPT)
    graph.note(text, height=420)
    graph.column(360)
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


def train_ileco(graph: Graph, x: int, name: str, guidance: float = 0.0, **wires: Slot) -> Slot:
    """Place iLECO's training and return the trained MODEL."""
    with graph.group("2. Training"):
        graph.column(x)
        (network,) = graph.add("TrainTrain_LoRANetwork", **ILECO_NETWORK)
        trained, lora, loss = graph.add(
            "TrainTrain_TrainILECO", network=network, guidance=guidance, **wires, **ILECO_TRAINING
        )
        save(graph, lora, [loss], name)
    return trained


def train_addift(
    graph: Graph, name: str, model: Slot, vae: Slot, original: Slot, target: Slot, prompt: Slot
) -> tuple[Slot, Slot]:
    """Place ADDifT's training and return the trained MODEL and the LoRA."""
    (network,) = graph.add("TrainTrain_LoRANetwork", **ADDIFT_NETWORK)
    (settings,) = graph.add("TrainTrain_TrainingSettings", **ADDIFT_SETTINGS)
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


def save(graph: Graph, lora: Slot, losses: list[Slot], name: str) -> None:
    """Place Save LoRA and Plot Loss."""
    graph.add("TrainTrain_SaveLoRA", "Save LoRA", lora=lora, name=name)
    graph.add("TrainTrain_PlotLoss", "Plot Loss", loss=losses, name=name)


def compare(
    graph: Graph, x: int, clip: Slot, vae: Slot, models: list[tuple[str, Slot]], text: str, name: str, y: int = 0
) -> None:
    """Place the same samples from each model, a row for each, and their picture."""
    title = "Rows: " + ", ".join(title for title, _ in models)
    with graph.group(title):
        graph.column(x, y)
        (positive,) = graph.add("CLIPTextEncode", "Prompt", clip=clip, text=text)
        (negative,) = graph.add("CLIPTextEncode", "Negative prompt", clip=clip, text="")
        (latent,) = graph.add("EmptyLatentImage", width=SIZE, height=SIZE, batch_size=SAMPLES)
        graph.column(x + 360, y)
        rows_of_latents = [
            graph.add(
                "KSampler",
                row,
                model=model,
                seed=42,
                steps=20,
                cfg=4.0,
                sampler_name="euler",
                scheduler="normal",
                positive=positive,
                negative=negative,
                latent_image=latent,
            )[0]
            for row, model in models
        ]
        graph.column(x + 720, y)
        (latents,) = graph.add("BatchLatentsNode", latents=rows_of_latents)
        (images,) = graph.add("VAEDecode", samples=latents, vae=vae)
        (images,) = graph.add("RebatchImages", images=images, batch_size=1)
        (grid,) = graph.add("ImageGrid", images=images, columns=SAMPLES, cell_width=192, cell_height=192)
        graph.column(x + 1080, y)
        graph.add("SaveImage", title, node_width=440, images=grid, filename_prefix=name)


GRAPHS = [train_lora, ileco_replace, ileco_erase, copy_machine_difference, addift, compare_sliders]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    options = parser.parse_args()
    with Server(options.comfyui.resolve(), options.base.resolve()) as server:
        object_info = server.get("/object_info")
    for build in GRAPHS:
        graph = Graph(object_info)
        build(graph)
        graph.write(EXAMPLES / f"{build.__name__}.json")


if __name__ == "__main__":
    main()
