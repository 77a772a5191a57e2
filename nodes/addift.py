"""Train ADDifT: what differs between the pictures of pairs becomes a slider."""

from __future__ import annotations

from typing import Any, Sequence

import torch
from comfy_api.latest import io

from ..trainer import presets
from ..trainer.data import TrainingExample, mask_at
from ..trainer.denoiser import Conditioning
from ..trainer.files import METHOD
from ..trainer.methods.addift import ADDifT, ExamplePair
from . import host
from .training import (
    HIDDEN,
    TrainingNode,
    configs,
    draw_batches,
    lora_outputs,
    model_input,
    model_output,
    size_of,
    training_inputs,
    vae_input,
)

DIFFERENCE_THRESHOLD = 10 / 255  # summed over the channels; what differs less is noise of a camera or of a JPEG


class TrainADDifT(TrainingNode, io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TrainTrain_TrainADDifT",
            display_name="Train ADDifT",
            category="TrainTrain",
            description="Learns what differs between two pictures, or many pairs of them, in a minute: a slider that goes both ways.",
            search_aliases=["addift", "multi-addift", "difference", "slider", "before after", "image pair"],
            is_input_list=True,
            inputs=[
                model_input("teach"),
                vae_input(),
                io.Image.Input(
                    "original", tooltip="Minus: a negative strength leads here. One picture, or one of each pair."
                ),
                io.Image.Input(
                    "target",
                    tooltip="Plus: a positive strength leads here. As many pictures, each as large as its original.",
                ),
                io.Conditioning.Input(
                    "original_conditioning",
                    tooltip="What the original shows apart from the difference, in words. One for all, or one for each pair.",
                ),
                io.Conditioning.Input(
                    "target_conditioning",
                    tooltip="The same for the target; mostly the same prompt. One for all, or one for each pair.",
                ),
                *training_inputs(
                    presets.ADDIFT,
                    "30 to 100; an even number, for the two directions take turns.",
                    "0 takes the preset: 1e-4 for SD1 and SD2, 2e-4 for SDXL and larger.",
                    learning_rate=0.0,
                ),
                io.Boolean.Input(
                    "swap",
                    default=False,
                    tooltip="Exchange the two pictures: a positive strength leads to the original.",
                ),
                io.Boolean.Input(
                    "difference_mask",
                    default=False,
                    tooltip="Learn only where the two pictures differ. Good for a small thing on a picture that is otherwise the same.",
                ),
                io.Float.Input(
                    "alternation_ratio",
                    default=1.0,
                    min=0,
                    max=2,
                    step=0.05,
                    advanced=True,
                    tooltip="Strength of the steps that teach the way back, against those that teach the way there. 0 leaves them out.",
                ),
                io.Int.Input(
                    "bands",
                    default=10,
                    min=1,
                    max=100,
                    advanced=True,
                    tooltip="Parts of the range of timesteps that the training goes through in turn.",
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
    ) -> host.Training:
        single = {name: value[0] for name, value in values.items()}  # the node takes lists, for the pictures' sake
        model, vae = single.pop("model"), single.pop("vae")
        swap, masked = single.pop("swap"), single.pop("difference_mask")
        alternation, bands = single.pop("alternation_ratio"), single.pop("bands")
        preset = presets.addift(host.is_large(model))
        single["learning_rate"] = single["learning_rate"] or preset.training.learning_rate
        network, config = configs(preset, network[0], settings[0], lora[0], single)
        host.check_network(model, network)
        sides = (original, original_conditioning), (target, target_conditioning)
        pairs = _encode_pairs(model, vae, *(reversed(sides) if swap else sides), masked)
        batches = draw_batches([pair.target for pair in pairs], config)
        method = ADDifT(pairs, batches, bands, alternation, config)
        return host.Training(model, network, config, method, {METHOD: "ADDifT"}, lora=lora[0])


def _encode_pairs(
    model: Any, vae: Any, original: tuple[list, list], target: tuple[list, list], masked: bool
) -> list[ExamplePair]:
    """Encode (pictures, prompts) of both sides, as they come in lists, into pairs."""
    sides = [[picture[:, :, :3] for batch in pictures for picture in batch] for pictures, _ in (original, target)]
    _check_pairs(*sides)
    masks = [_difference_mask(*pair) for pair in zip(*sides)] if masked else [None] * len(sides[0])
    examples = []
    for pictures, (_, prompts), name in zip(sides, (original, target), ("original", "target")):
        latents = host.encode_images(vae, model, pictures)
        conditionings = _one_for_each(prompts, len(pictures), name)
        examples.append(
            [
                TrainingExample(latent, conditioning, None if mask is None else mask_at(mask, latent))
                for latent, conditioning, mask in zip(latents, conditionings, masks)
            ]
        )
    return [ExamplePair(*pair) for pair in zip(*examples)]


def _check_pairs(originals: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> None:
    if len(originals) != len(targets):
        raise ValueError(f"There are {len(originals)} originals and {len(targets)} targets: wire as many of each.")
    wrong = [
        f"pair {number} is {size_of(original)} and {size_of(target)}"
        for number, (original, target) in enumerate(zip(originals, targets), 1)
        if original.shape != target.shape
    ]
    if wrong:
        raise ValueError(f"The two pictures of a pair must be of one size, but {'; '.join(wrong)}: scale or crop them.")


def _one_for_each(prompts: Sequence[list], count: int, side: str) -> list[Conditioning]:
    """Read one prompt for each picture out of a list of CONDITIONING, where one may serve all."""
    read = [prompt for conditioning in prompts for prompt in host.read_conditioning(conditioning)]
    if len(read) not in (1, count):
        raise ValueError(
            f"{side}_conditioning has {len(read)} prompts for {count} pictures: give one for all, or one for each."
        )
    return read * count if len(read) == 1 else read


def _difference_mask(original: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return where two pictures (H, W, 3) differ, as bool (H, W). Raises ValueError if they are alike."""
    mask = (original - target).abs().sum(-1) > DIFFERENCE_THRESHOLD
    if not mask.any():
        raise ValueError("The two pictures of a pair are alike, so nothing is left to learn: wire two that differ.")
    return mask
