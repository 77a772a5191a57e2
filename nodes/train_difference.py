"""Train Difference: learns what a second image adds to that of a copy machine."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..trainer.config import NetworkConfig, TrainingConfig
from ..trainer.lora_file import IMAGE_SIZE, METHOD
from . import host
from .input_checks import guidance_input
from .load_lora import LoRAModel
from .resume import resume_inputs
from .train_copy_machine import learn_image
from .training_node import (
    HIDDEN,
    Preset,
    TrainingNode,
    format_size,
    lora_outputs,
    merge_configs,
    model_input,
    training_inputs,
    vae_input,
)


class TrainDifference(TrainingNode, io.ComfyNode):
    """Trains a LoRA on the difference between a second image and that of a copy machine."""

    # A small rank keeps style and composition, which the copy machine has too, out of the difference.
    preset = Preset(NetworkConfig(rank=4, alpha=4.0), TrainingConfig(steps=500, batch_size=2, learning_rate=1e-4))

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs, outputs and texts."""
        return io.Schema(
            node_id="TrainTrain_TrainDifference",
            display_name="Train Difference",
            category="TrainTrain",
            description="Learns a second image with a copy machine of the first on the model: the LoRA holds only what differs.",
            search_aliases=["difference", "copier", "slider", "before after", "image pair"],
            inputs=[
                model_input("train"),
                vae_input(),
                io.Image.Input(
                    "image", tooltip="The image with the thing to learn, of the same size as the first one."
                ),
                io.Conditioning.Input("conditioning", tooltip="The same prompt as for the copy machine."),
                LoRAModel.Input(
                    "copy_machine", tooltip="The LoRA of Train Copy Machine, or a saved one from Load LoRA."
                ),
                *training_inputs(cls.preset, "500; fewer if more than the difference changes.", "1e-4 is usual."),
                *resume_inputs(),
                guidance_input(),
            ],
            outputs=[
                io.Model.Output(
                    "model", tooltip="The model with only the difference applied, without the copy machine."
                ),
                *lora_outputs(),
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
        copy_machine,
        network=None,
        settings=None,
        lora=None,
        distilled_guidance=1.0,
        **training,
    ) -> host.Job:
        """Encode the image (1, H, W, 3). Raises ValueError if the inputs do not fit together."""
        network, config = merge_configs(cls.preset, network, settings, lora, training)
        host.check_network(model, network)
        _refuse_dora(network, lora)
        _check_same_size(image, copy_machine)
        copying = host.with_lora(model, copy_machine)
        method = learn_image(model, vae, image, conditioning, config, distilled_guidance)
        return host.Job(copying, network, config, method, {METHOD: "difference"}, lora=lora, base=model)


def _refuse_dora(network: NetworkConfig | None, lora: dict[str, torch.Tensor] | None) -> None:
    """Raise ValueError if a DoRA is to be trained: its norms would be those of the model with the copy machine on it."""
    if network.dora if network else any(key.endswith(".dora_scale") for key in lora or ()):
        raise ValueError(
            "Train Difference cannot train a DoRA, because its norms would keep a part of the copy machine, without which it is "
            "used: turn off dora in LoRA Network, or connect no DoRA to lora."
        )


def _check_same_size(image: torch.Tensor, copy_machine: dict[str, torch.Tensor]) -> None:
    """Raise ValueError if the copy machine is known to be for an image of another size."""
    copied = getattr(copy_machine, "metadata", {}).get(IMAGE_SIZE)
    if copied not in (None, format_size(image[0])):
        raise ValueError(
            f"The image of the copy machine is {copied} and this one is {format_size(image[0])}, but both must have the same "
            "size: resize or crop one of them."
        )
