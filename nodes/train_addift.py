"""Train ADDifT: trains a slider on the difference between the images of pairs."""

from __future__ import annotations

from typing import Any, Sequence

import torch
from comfy_api.latest import io

from ..trainer.config import NetworkConfig, TrainingConfig
from ..trainer.dataset.masks import mask_at
from ..trainer.denoiser import Conditioning
from ..trainer.lora_file import METHOD
from ..trainer.methods.addift import FULL_AT, ADDifT, ExamplePair
from ..trainer.training_example import TrainingExample
from . import host
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
    model_output,
    training_inputs,
    vae_input,
)

LEARNING_RATE_LARGE_MODELS = 2e-4  # SDXL and larger
MODEL, IMAGES = "model", "images"  # what the two directions are learned from
DIFFERENCE_THRESHOLD = 10 / 255  # summed over the channels; smaller differences are camera noise or JPEG artifacts


class TrainADDifT(TrainingNode, io.ComfyNode):
    """Trains a slider on the difference between the images of pairs."""

    preset = Preset(
        NetworkConfig(rank=4, alpha=1.0),
        TrainingConfig(
            steps=30,
            batch_size=1,
            learning_rate=1e-4,
            optimizer="CAME",
            lr_scheduler="cosine_annealing",
            lr_scheduler_settings="eta_min=1e-5",
            min_timestep=500,
        ),
    )

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs, outputs and texts."""
        return io.Schema(
            node_id="TrainTrain_TrainADDifT",
            display_name="Train ADDifT",
            category="TrainTrain",
            description="Learns the difference between two images, or many pairs of images, in a minute: a slider that works both ways.",
            search_aliases=["addift", "multi-addift", "difference", "slider", "before after", "image pair"],
            is_input_list=True,
            inputs=[
                model_input("train"),
                vae_input(),
                io.Image.Input(
                    "original", tooltip="The minus side: a negative strength leads here. One image, or one per pair."
                ),
                io.Image.Input(
                    "target",
                    tooltip="The plus side: a positive strength leads here. One per original, each of the same size as its original.",
                ),
                io.Conditioning.Input(
                    "original_conditioning",
                    tooltip="A prompt for the original without the difference. One for all pairs, or one per pair.",
                ),
                io.Conditioning.Input(
                    "target_conditioning",
                    tooltip="A prompt for the target, usually the same one. One for all pairs, or one per pair.",
                ),
                *training_inputs(
                    cls.preset,
                    "30 to 100; an even number, because the two directions alternate.",
                    "0 uses the preset: 1e-4 for SD1 and SD2, 2e-4 for SDXL and larger.",
                    learning_rate=0.0,
                ),
                io.Boolean.Input(
                    "swap",
                    default=False,
                    tooltip="On: swaps the two images, so that a positive strength leads to the original.",
                ),
                io.Boolean.Input(
                    "difference_mask",
                    default=False,
                    tooltip="On: trains only where the two images differ. Good for a small change in otherwise identical images.",
                ),
                io.Float.Input(
                    "alternation_ratio",
                    default=1.0,
                    min=0,
                    max=2,
                    step=0.05,
                    advanced=True,
                    tooltip="Strength of the steps that train the reverse direction, relative to the forward one (no unit). 1 is usual; 0 skips them.",
                ),
                io.Int.Input(
                    "bands",
                    default=10,
                    min=1,
                    max=100,
                    advanced=True,
                    tooltip="Number of parts of the timestep range, which are trained in turn. 10 is usual.",
                ),
                *resume_inputs(),
                io.Float.Input(
                    "full_at",
                    default=FULL_AT,
                    min=0.05,
                    max=1,
                    step=0.05,
                    optional=True,
                    advanced=True,
                    tooltip="Strength of the LoRA that shows the full difference. 0.25 lets it go beyond after few steps. 1 takes "
                    "several times the steps and harms less: for small parts, learned from ten or more pairs.",
                ),
                io.Combo.Input(
                    "learn_from",
                    options=[MODEL, IMAGES],
                    default=MODEL,
                    optional=True,
                    advanced=True,
                    tooltip="model: what the model makes of the other image, which is enough for one pair. images: the images "
                    "themselves, as Train LoRA does, in both directions. It keeps the rest better and is faster per step, but "
                    "needs ten or more pairs.",
                ),
            ],
            outputs=[model_output(), *lora_outputs()],
            hidden=HIDDEN,
        )

    @classmethod
    def prepare(
        cls,
        original,
        target,
        original_conditioning,
        target_conditioning,
        network=(None,),
        settings=(None,),
        lora=(None,),
        **values,
    ) -> host.Job:
        """Encode the image pairs. Raises ValueError if the inputs do not fit together."""
        single = {name: value[0] for name, value in values.items()}  # the node takes lists because of the images
        model, vae = single.pop("model"), single.pop("vae")
        swap, masked = single.pop("swap"), single.pop("difference_mask")
        alternation, bands = single.pop("alternation_ratio"), single.pop("bands")
        full_at, learns_images = single.pop("full_at", FULL_AT), single.pop("learn_from", MODEL) == IMAGES
        single["learning_rate"] = single["learning_rate"] or (
            LEARNING_RATE_LARGE_MODELS if host.is_large(model) else cls.preset.training.learning_rate
        )
        network, config = merge_configs(cls.preset, network[0], settings[0], lora[0], single)
        host.check_network(model, network)
        sides = (original, original_conditioning), (target, target_conditioning)
        pairs = _encode_pairs(model, vae, *sides, masked)
        pairs = [ExamplePair(pair.target, pair.original) for pair in pairs] if swap else pairs
        batches = draw_batches([pair.target for pair in pairs], config)
        method = ADDifT(pairs, batches, bands, alternation, config, full_at, learns_images)
        return host.Job(model, network, config, method, {METHOD: "ADDifT"}, lora=lora[0])


def _encode_pairs(
    model: Any, vae: Any, original: tuple[list, list], target: tuple[list, list], masked: bool
) -> list[ExamplePair]:
    """Encode (images, prompts) of both sides, each a list of batches (B, H, W, 3) and of CONDITIONING, into pairs."""
    sides = [[image[:, :, :3] for batch in images for image in batch] for images, _ in (original, target)]
    _check_pairs(*sides)
    masks = _difference_masks(*sides) if masked else [None] * len(sides[0])
    examples = []
    for images, (_, prompts), name in zip(sides, (original, target), ("original", "target")):
        latents = host.encode_images(vae, model, images)
        conditionings = _one_per_image(prompts, len(images), name)
        examples.append(
            [
                TrainingExample(latent, conditioning, None if mask is None else mask_at(mask, latent))
                for latent, conditioning, mask in zip(latents, conditionings, masks)
            ]
        )
    return [ExamplePair(*pair) for pair in zip(*examples)]


def _check_pairs(originals: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> None:
    if len(originals) != len(targets):
        raise ValueError(
            f"There are {len(originals)} originals and {len(targets)} targets: connect the same number of both."
        )
    wrong = [
        f"pair {number} is {format_size(original)} and {format_size(target)}"
        for number, (original, target) in enumerate(zip(originals, targets), 1)
        if original.shape != target.shape
    ]
    if wrong:
        raise ValueError(
            f"The two images of a pair must have the same size, but {'; '.join(wrong)}: resize or crop them."
        )


def _one_per_image(prompts: Sequence[list], count: int, side: str) -> list[Conditioning]:
    """Return one prompt per image from a list of CONDITIONING, which may hold a single one for all."""
    read = [
        prompt for conditioning in prompts for prompt in host.read_conditioning(conditioning, f"{side}_conditioning")
    ]
    if len(read) not in (1, count):
        raise ValueError(
            f"{side}_conditioning has {len(read)} prompts for {count} images: connect one for all, or one per image."
        )
    return read * count if len(read) == 1 else read


def _difference_masks(originals: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return where the images (H, W, 3) of each pair differ, as bool (H, W). Raises ValueError for pairs that do nowhere."""
    masks = [(original - target).abs().sum(-1) > DIFFERENCE_THRESHOLD for original, target in zip(originals, targets)]
    alike = [str(number) for number, mask in enumerate(masks, 1) if not mask.any()]
    if alike:
        raise ValueError(
            f"The two images of pair {', '.join(alike)} are almost identical, so there is nothing to learn: connect two that "
            "differ."
        )
    return masks
