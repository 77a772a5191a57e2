"""Train Copy Machine: overfits a LoRA to one image."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..trainer.config import NetworkConfig, TrainingConfig
from ..trainer.lora_file import IMAGE_SIZE, METHOD
from ..trainer.methods.denoise import Denoise
from ..trainer.training_example import TrainingExample
from . import host
from .input_checks import guidance_input
from .resume import resume_inputs
from .training_node import (
    HIDDEN,
    Preset,
    TrainingNode,
    draw_batches,
    format_size,
    lora_outputs,
    merge_configs,
    model_input,
    training_inputs,
    vae_input,
)


class TrainCopyMachine(TrainingNode, io.ComfyNode):
    """Overfits a LoRA to one image, as the first half of a difference."""

    preset = Preset(NetworkConfig(rank=16, alpha=16.0), TrainingConfig(steps=500, batch_size=2, learning_rate=5e-4))

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs, outputs and texts."""
        return io.Schema(
            node_id="TrainTrain_TrainCopyMachine",
            display_name="Train Copy Machine",
            category="TrainTrain",
            description="Overfits the model to one image until it draws nothing else: the first half of a difference.",
            search_aliases=["copier", "copy machine", "difference", "overfit", "slider"],
            inputs=[
                model_input("train"),
                vae_input(),
                io.Image.Input("image", tooltip="One image without the thing to learn, 512 or 1024 pixels wide."),
                io.Conditioning.Input(
                    "conditioning",
                    tooltip="A prompt for what both images have in common, not for what differs. Several prompts, joined with "
                    "Conditioning (Combine), make it copy the image whatever the prompt.",
                ),
                *training_inputs(
                    cls.preset,
                    "500; enough when every sample is the image.",
                    "5e-4 is usual.",
                ),
                *resume_inputs(),
                guidance_input(),
            ],
            outputs=[
                io.Model.Output("model", tooltip="The copy machine itself: sample with it to see whether it is done."),
                *lora_outputs("Goes into copy_machine of Train Difference, or into Save LoRA to use it again."),
            ],
            hidden=HIDDEN,
        )

    @classmethod
    def prepare(
        cls,
        model,
        vae,
        image,
        conditioning,
        network=None,
        settings=None,
        lora=None,
        distilled_guidance=1.0,
        **training,
    ) -> host.Job:
        """Encode the image (1, H, W, 3). Raises ValueError if the inputs do not fit together."""
        network, config = merge_configs(cls.preset, network, settings, lora, training)
        host.check_network(model, network)
        method = learn_image(model, vae, image, conditioning, config, distilled_guidance)
        labels = {METHOD: "copy machine", IMAGE_SIZE: format_size(image[0])}
        return host.Job(model, network, config, method, labels, lora=lora)


def learn_image(
    model: Any, vae: Any, image: torch.Tensor, conditioning: list, config: TrainingConfig, guidance: float
) -> Denoise:
    """Return a method that learns one image (1, H, W, 3) with one or more prompts. Raises ValueError for several images."""
    if len(image) != 1:
        raise ValueError(f"image has {len(image)} images, but only one can be learned: select one with ImageFromBatch.")
    (latent,) = host.encode_images(vae, model, [image[0, :, :, :3]])
    prompts = host.with_guidance(model, host.read_conditioning(conditioning), guidance)
    examples = [TrainingExample(latent, prompt) for prompt in prompts]
    return Denoise(examples, draw_batches(examples, config, [config.batch_size] * len(examples)), config)
