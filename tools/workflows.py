"""Writes `example_workflows/` and `subgraphs/`: each graph is a few lines, from the loader to samples before and after.

    python -m tools.workflows --comfyui .host/ComfyUI --base .host/base

Asks a running ComfyUI for the order of each node's inputs, so the files fit the nodes as they are.
"""

from __future__ import annotations

from .graph import Graph
from .host import ROOT
from .parts import (
    ILECO_NETWORK,
    ILECO_TRAINING,
    SDXL,
    SHAPES,
    compare,
    learn_pictures,
    load_folder,
    load_pair,
    note,
    prompts,
    save,
    train_addift,
    train_ileco,
)
from .server import server_of_arguments
from .train_and_compare import train_and_compare, write

EXAMPLES, BLUEPRINTS = ROOT / "example_workflows", ROOT / "subgraphs"

COPIED_WORDS = ["", "green triangle", "blue", "yellow square", "black background"]
ILECO_WORDS = ["red", "a red shape", "a red circle"]
ERASE_WORDS = ["triangle", "a triangle"]
ERASE_TARGETS = [""]
PRESERVE_WORDS = ["circle", "square"]

# What works on the demonstration model; the notes say what does on real ones.
COPY_NETWORK = {"network_type": "c3lier", "rank": 16, "alpha": 16.0}
COPY_TRAINING = {"steps": 400, "batch_size": 2, "learning_rate": 2e-3, "seed": 1}
DIFFERENCE_NETWORK = {"network_type": "c3lier", "rank": 4, "alpha": 4.0}
DIFFERENCE_TRAINING = {"steps": 200, "batch_size": 2, "learning_rate": 2e-3, "seed": 1}


def train_lora(graph: Graph) -> None:
    """Teach the model a purple star, and compare."""
    wires = load_folder(graph, "train_lora", SHAPES, "purple_star", buckets_step=8, min_length=64, mirroring=True)
    network = {"network_type": "c3lier", "rank": 16, "alpha": 16.0}
    training = {"steps": 500, "batch_size": 4, "learning_rate": 2e-3, "seed": 1}
    learn_pictures(graph, "purple_star", "a purple star on a white background", wires, network, {}, training, SHAPES)


def train_lora_sdxl(graph: Graph) -> None:
    """Teach SDXL a person, a thing or a style, and compare."""
    wires = load_folder(graph, "train_lora_sdxl", SDXL, "my_pictures", buckets_step=64, min_length=512)
    network = {"network_type": "lierla", "rank": 16, "alpha": 8.0}
    training = {"steps": 1500, "batch_size": 1, "learning_rate": 1e-4, "seed": 1}
    settings = {"gradient_checkpointing": True}
    learn_pictures(graph, "my_lora_sdxl", "a photo of ohwx person", wires, network, settings, training, SDXL)


def ileco_replace(graph: Graph) -> None:
    """Turn red into blue by words alone."""
    with graph.group("1. Model and words"):
        graph.column(0)
        model, clip, vae = graph.add("CheckpointLoaderSimple", ckpt_name=SHAPES.checkpoint)
        graph.note(note("ileco_replace"), height=420)
        graph.column(1)
        originals = prompts(graph, clip, "Original", ILECO_WORDS)
        graph.column(2)
        targets = prompts(graph, clip, "Target", [text.replace("red", "blue") for text in ILECO_WORDS])
    trained = train_ileco(graph, 3, "red_to_blue", model=model, original=originals, target=targets)
    models = [("Before", model), ("After", trained)]
    compare(graph, 5, clip, vae, models, "a red square on a white background", "red_to_blue")


def ileco_erase(graph: Graph) -> None:
    """Erase the triangle, and keep the other shapes."""
    with graph.group("1. Model and words"):
        graph.column(0)
        model, clip, vae = graph.add("CheckpointLoaderSimple", ckpt_name=SHAPES.checkpoint)
        graph.note(note("ileco_erase"), height=420)
        graph.column(1)
        originals = prompts(graph, clip, "Original", ERASE_WORDS)
        graph.column(2)
        targets = prompts(graph, clip, "Target", ERASE_TARGETS)
        preserved = prompts(graph, clip, "Preserve", PRESERVE_WORDS)
    trained = train_ileco(
        graph, 3, "no_triangle", 1.0, model=model, original=originals, target=targets, preserve=preserved
    )
    models = [("Before", model), ("After", trained)]
    compare(graph, 5, clip, vae, models, "a green triangle on a white background", "no_triangle")


def copy_machine_difference(graph: Graph) -> None:
    """Learn what the second picture has and the first has not."""
    with graph.group("1. Model and two pictures"):
        model, clip, vae, original, target, prompt = load_pair(graph, note("copy_machine_difference"))
        graph.column(2)
        copied = prompts(graph, clip, "Copied for", COPIED_WORDS, prompt)
    with graph.group("2. Copy machine"):
        graph.column(3)
        (network,) = graph.add("TrainTrain_LoRANetwork", **COPY_NETWORK)
        (settings,) = graph.add("TrainTrain_TrainingSettings")
        graph.column(4)
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
        graph.column(5)
        (network,) = graph.add("TrainTrain_LoRANetwork", **DIFFERENCE_NETWORK)
        (settings,) = graph.add("TrainTrain_TrainingSettings")
        graph.column(6)
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
    compare(graph, 7, clip, vae, models, "a green triangle", "black_background")


def addift(graph: Graph) -> None:
    """Make a slider of two pictures."""
    with graph.group("1. Model and two pictures"):
        model, clip, vae, original, target, prompt = load_pair(graph, note("addift"))
    with graph.group("2. Training"):
        trained, lora = train_addift(graph, 2, "black_background_addift", model, vae, original, target, prompt)
        (back,) = graph.add("LoraModelLoader", "The other way", model=model, lora=lora, strength_model=-1.0)
    models = [("Strength -1", back), ("Before", model), ("Strength 1", trained)]
    compare(graph, 4, clip, vae, models, "a green triangle", "black_background_addift")


def compare_sliders(graph: Graph) -> None:
    """Lay two LoRAs at strengths from -2 to 2 side by side."""
    with graph.group("1. Model, pictures, words"):
        model, clip, vae, original, target, prompt = load_pair(graph, note("compare_sliders"))
        graph.column(2)
        originals = prompts(graph, clip, "Original", ILECO_WORDS)
        graph.column(3)
        targets = prompts(graph, clip, "Target", [text.replace("red", "blue") for text in ILECO_WORDS])
    with graph.group("2. Two trainings"):
        _, background = train_addift(graph, 4, "slider_background", model, vae, original, target, prompt)
        graph.column(6)
        (network,) = graph.add("TrainTrain_LoRANetwork", **ILECO_NETWORK)
        graph.column(7)
        _, colour, loss = graph.add(
            "TrainTrain_TrainILECO", model=model, original=originals, target=targets, network=network, **ILECO_TRAINING
        )
        save(graph, colour, [loss], "slider_colour")
    for place, (name, lora, text) in enumerate(
        [("background", background, "a green triangle"), ("colour", colour, "a red square on a white background")]
    ):
        with graph.group(f"The {name} at four strengths"):
            graph.column(8, place * 2100)
            models = [
                (f"{strength:+g}", graph.add("LoraModelLoader", model=model, lora=lora, strength_model=strength)[0])
                for strength in (-2.0, -1.0, 1.0, 2.0)
            ]
        models.insert(2, ("0", model))
        compare(graph, 9, clip, vae, models, text, f"slider_{name}", y=place * 2100)


GRAPHS = [train_lora, train_lora_sdxl, ileco_replace, ileco_erase, copy_machine_difference, addift, compare_sliders]


def main() -> None:
    with server_of_arguments(__doc__) as server:
        object_info = server.get("/object_info")
    for build in GRAPHS:
        graph = Graph(object_info)
        build(graph)
        graph.write(EXAMPLES / f"{build.__name__}.json")
    write(train_and_compare(object_info), BLUEPRINTS)


if __name__ == "__main__":
    main()
