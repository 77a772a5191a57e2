"""Training Images from Latents: passes on to Train LoRA what ComfyUI's own dataset nodes have encoded."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..trainer.dataset.masks import MASK_THRESHOLD
from ..trainer.training_example import EncodedImage
from . import host
from .bucket_images import TrainingImages
from .input_checks import check_values


class EncodedTrainingImages(io.ComfyNode):
    """Pairs latents with their prompts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TrainTrain_EncodedTrainingImages",
            display_name="Training Images from Latents",
            category="TrainTrain",
            description="Passes on latents and prompts encoded by Make Training Dataset or Resolution Bucket to Train LoRA.",
            search_aliases=[
                "make training dataset",
                "resolution bucket",
                "load training dataset",
                "latents to training images",
            ],
            is_input_list=True,
            inputs=[
                io.Latent.Input(
                    "latents", tooltip="The list of latents from Make Training Dataset or Resolution Bucket."
                ),
                io.Conditioning.Input(
                    "conditioning", tooltip="The other list of the same node: one prompt per latent."
                ),
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
                f"The number of prompts ({len(prompts)}) must match the number of latents ({len(samples)})."
                " Connect both outputs of the same node."
            )
        masks = [mask for latent in latents for mask in _masks_of(latent)]
        return io.NodeOutput(
            [EncodedImage(sample, prompt, mask=mask) for sample, prompt, mask in zip(samples, prompts, masks)]
        )


def _masks_of(latent: dict[str, Any]) -> list[torch.Tensor | None]:
    """Return the mask of each sample of a LATENT, (H, W) bool: fewer masks than samples are repeated, as in sampling.

    Raises ValueError if a mask leaves nothing to train.
    """
    count, mask = len(latent["samples"]), latent.get("noise_mask")
    if mask is None:
        return [None] * count
    masks = mask.reshape(-1, *mask.shape[-2:]) > MASK_THRESHOLD
    if not masks.flatten(1).any(1).all():
        raise ValueError(
            "The mask on a latent leaves nothing to train. In a mask, 1 means train here: invert it, or remove it."
        )
    return [masks[place % len(masks)] for place in range(count)]
