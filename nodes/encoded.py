"""Training Images from Latents: what the host's own dataset nodes have encoded, for Train LoRA."""

from __future__ import annotations

from comfy_api.latest import io

from ..trainer.data import EncodedImage
from . import host
from .images import TrainingImages
from .inputs import check_values


class EncodedTrainingImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TrainTrain_EncodedTrainingImages",
            display_name="Training Images from Latents",
            category="TrainTrain",
            description="Takes latents and prompts that are encoded already, as Make Training Dataset and Resolution Bucket give them, to Train LoRA.",
            search_aliases=[
                "make training dataset",
                "resolution bucket",
                "load training dataset",
                "latents to training images",
            ],
            is_input_list=True,
            inputs=[
                io.Latent.Input("latents", tooltip="A list, from Make Training Dataset or Resolution Bucket."),
                io.Conditioning.Input("conditioning", tooltip="The list beside it: a prompt for each latent."),
            ],
            outputs=[TrainingImages.Output("training_images", tooltip="Goes into Train LoRA.")],
        )

    @classmethod
    def execute(cls, latents, conditioning) -> io.NodeOutput:
        check_values(cls, {"latents": latents, "conditioning": conditioning})
        samples = [sample for latent in latents for sample in latent["samples"]]
        prompts = [prompt for entries in conditioning for prompt in host.read_conditioning(entries)]
        if len(samples) != len(prompts):
            raise ValueError(
                f"There are {len(samples)} latents and {len(prompts)} prompts: wire both outputs of the same node, a prompt for "
                "each latent."
            )
        return io.NodeOutput([EncodedImage(*pair) for pair in zip(samples, prompts)])
