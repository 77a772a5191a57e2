"""Train Copy Machine and Train Difference: what one picture has and another has not becomes a LoRA."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..trainer import presets
from ..trainer.config import TrainingConfig
from ..trainer.data import TrainingExample
from ..trainer.files import METHOD, PICTURE_SIZE
from ..trainer.methods.denoise import Denoise
from . import host
from .files import LoRAModel
from .training import (
    HIDDEN,
    TrainingNode,
    configs,
    draw_batches,
    lora_outputs,
    model_input,
    size_of,
    training_inputs,
    vae_input,
)


class TrainCopyMachine(TrainingNode, io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TrainTrain_TrainCopyMachine",
            display_name="Train Copy Machine",
            category="TrainTrain",
            description="Teaches the model one picture until it draws nothing else: the first half of a difference.",
            search_aliases=["copier", "copy machine", "difference", "overfit", "slider"],
            inputs=[
                model_input("teach"),
                vae_input(),
                io.Image.Input("image", tooltip="The picture without what is to be learned. One, 512 or 1024 pixels."),
                io.Conditioning.Input(
                    "conditioning",
                    tooltip="What both pictures have in common, in words; not what they differ in. Several prompts, joined by "
                    "Conditioning (Combine), make it copy whatever is asked.",
                ),
                *training_inputs(
                    presets.COPY_MACHINE,
                    "500; until every sample is the picture.",
                    "5e-4 is usual.",
                ),
            ],
            outputs=[
                io.Model.Output("model", tooltip="The copy machine itself: sample it to see whether it is done."),
                *lora_outputs("Goes into copy_machine of Train Difference, or into Save LoRA to be used again."),
            ],
            hidden=HIDDEN,
        )

    @classmethod
    def prepare(
        cls, model, vae, image, conditioning, network=None, settings=None, lora=None, **training
    ) -> host.Training:
        network, config = configs(presets.COPY_MACHINE, network, settings, lora, training)
        host.check_network(model, network)
        method = _learn_picture(model, vae, image, conditioning, config)
        labels = {METHOD: "copy machine", PICTURE_SIZE: size_of(image[0])}
        return host.Training(model, network, config, method, labels, lora=lora)


class TrainDifference(TrainingNode, io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TrainTrain_TrainDifference",
            display_name="Train Difference",
            category="TrainTrain",
            description="With a copy machine of one picture on the model, learns a second picture: the LoRA holds what differs.",
            search_aliases=["difference", "copier", "slider", "before after", "image pair"],
            inputs=[
                model_input("teach"),
                vae_input(),
                io.Image.Input("image", tooltip="The picture with what is to be learned, as large as the first one."),
                io.Conditioning.Input("conditioning", tooltip="The same prompt as for the copy machine."),
                LoRAModel.Input("copy_machine", tooltip="The lora of Train Copy Machine, or a saved one by Load LoRA."),
                *training_inputs(
                    presets.DIFFERENCE, "500; fewer if more than the difference changes.", "1e-4 is usual."
                ),
            ],
            outputs=[
                io.Model.Output(
                    "model", tooltip="The model with the difference alone on it, without the copy machine."
                ),
                *lora_outputs(),
            ],
            hidden=HIDDEN,
        )

    @classmethod
    def prepare(
        cls, model, vae, image, conditioning, copy_machine, network=None, settings=None, lora=None, **training
    ) -> host.Training:
        network, config = configs(presets.DIFFERENCE, network, settings, lora, training)
        host.check_network(model, network)
        _check_same_size(image, copy_machine)
        copying = host.with_lora(model, copy_machine)
        method = _learn_picture(model, vae, image, conditioning, config)
        return host.Training(copying, network, config, method, {METHOD: "difference"}, lora=lora, base=model)


def _learn_picture(model: Any, vae: Any, image: torch.Tensor, conditioning: list, config: TrainingConfig) -> Denoise:
    """Return the method that learns one picture by one or more prompts."""
    if len(image) != 1:
        raise ValueError(f"{len(image)} pictures were given and one is learned: pick one with ImageFromBatch.")
    (latent,) = host.encode_images(vae, model, [image[0, :, :, :3]])
    examples = [TrainingExample(latent, prompt) for prompt in host.read_conditioning(conditioning)]
    return Denoise(examples, draw_batches(examples, config, [config.batch_size] * len(examples)), config)


def _check_same_size(image: torch.Tensor, copy_machine: dict[str, torch.Tensor]) -> None:
    """Raise ValueError if the copy machine is known to copy a picture of another size."""
    copied = getattr(copy_machine, "metadata", {}).get(PICTURE_SIZE)
    if copied not in (None, size_of(image[0])):
        raise ValueError(
            f"The copy machine has learned a picture of {copied} and this one is {size_of(image[0])}: the two must be of "
            "one size, so scale or crop one of them."
        )
