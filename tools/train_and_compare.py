"""The blueprint "Train and compare": a whole training with samples before and after, as one node."""

from __future__ import annotations

from pathlib import Path

from .graph import Slot
from .parts import save
from .subgraph import Subgraph

INPUTS = {
    "model": "MODEL",
    "clip": "CLIP",
    "vae": "VAE",
    "training_images": "TRAINING_IMAGES",
    "prompt": "STRING",
    "steps": "INT",
    "learning_rate": "FLOAT",
    "seed": "INT",
    "name": "STRING",
    "width": "INT",
    "height": "INT",
}
DESCRIPTION = (
    "Trains a LoRA on the pictures of Bucket Images, saves it and plots its loss, and draws the prompt with the model "
    "before and after, side by side."
)
ALIASES = ["train lora", "finetune", "dreambooth", "before and after", "compare lora", "traintrain"]


def train_and_compare(object_info: dict) -> Subgraph:
    """Build the subgraph."""
    graph = Subgraph(object_info, "Train and compare", INPUTS)
    wires = graph.inputs
    with graph.group("Training"):
        graph.column(0)
        trained, trained_clip, lora, loss = graph.add(
            "TrainTrain_TrainLoRA",
            **{name: wires[name] for name in ("model", "clip", "vae", "training_images")},
            **{name: wires[name] for name in ("steps", "learning_rate", "seed")},
        )
        save(graph, lora, [loss], wires["name"])
    image = _samples(graph, trained, trained_clip)
    for name, slot in {"model": trained, "clip": trained_clip, "lora": lora, "image": image}.items():
        graph.output(name, slot)
    return graph


def write(graph: Subgraph, folder: Path) -> None:
    """Write the blueprint."""
    graph.write_blueprint(folder, DESCRIPTION, "TrainTrain", ALIASES)


def _samples(graph: Subgraph, trained: Slot, trained_clip: Slot) -> Slot:
    """Place the same sample from both models; return both side by side."""
    wires = graph.inputs
    with graph.group("Samples"):
        graph.column(1)
        (positive,) = graph.add("CLIPTextEncode", "Prompt", clip=wires["clip"], text=wires["prompt"])
        (positive_after,) = graph.add("CLIPTextEncode", "Prompt after", clip=trained_clip, text=wires["prompt"])
        (negative,) = graph.add("CLIPTextEncode", "Negative prompt", clip=wires["clip"], text="")
        (latent,) = graph.add("EmptyLatentImage", width=wires["width"], height=wires["height"], batch_size=1)
        pictures = []
        for title, model, prompt in (("Before", wires["model"], positive), ("After", trained, positive_after)):
            graph.column(2 + len(pictures))
            (samples,) = graph.add(
                "KSampler",
                title,
                model=model,
                positive=prompt,
                negative=negative,
                latent_image=latent,
                seed=wires["seed"],
                steps=20,
                cfg=7.0,
                sampler_name="euler",
                scheduler="normal",
            )
            pictures += graph.add("VAEDecode", samples=samples, vae=wires["vae"])
        graph.column(4)
        (image,) = graph.add("ImageStitch", "Before and after", image1=pictures[0], image2=pictures[1])
    return image
