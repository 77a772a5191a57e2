"""Train LoRA and Train iLECO."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainer import presets
from ..trainer.data import EncodedImage, TrainingExample, TrainingImage, mask_at
from ..trainer.denoiser import Conditioning
from ..trainer.files import METHOD, tag_frequency
from ..trainer.methods.denoise import Denoise
from ..trainer.methods.ileco import ILECO
from . import host
from .images import TrainingImages
from .inputs import size_inputs
from .training import (
    HIDDEN,
    TrainingNode,
    configs,
    draw_batches,
    lora_outputs,
    model_input,
    model_output,
    training_inputs,
    vae_input,
)


class TrainLoRA(TrainingNode, io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TrainTrain_TrainLoRA",
            display_name="Train LoRA",
            category="TrainTrain",
            description="Teaches the model what captioned pictures show. Sample from its MODEL and CLIP at once, or save its LoRA.",
            search_aliases=["finetune", "dreambooth", "kohya", "lora training", "teach"],
            inputs=[
                model_input("teach"),
                io.Clip.Input("clip", tooltip="Reads the captions."),
                vae_input(),
                TrainingImages.Input(
                    "training_images", tooltip="Captioned pictures from Bucket Images, or Training Images from Latents."
                ),
                *training_inputs(presets.LORA, "500 to 2000 for ten to thirty pictures.", "1e-4 is usual."),
            ],
            outputs=[
                io.Model.Output("model", tooltip="The model with the LoRA on it, ready to sample."),
                io.Clip.Output("clip", tooltip="The text encoder for the same sampling."),
                *lora_outputs(),
            ],
            hidden=HIDDEN,
        )

    @classmethod
    def prepare(
        cls, model, clip, vae, training_images, network=None, settings=None, lora=None, **training
    ) -> host.Training:
        network, config = configs(presets.LORA, network, settings, lora, training)
        trains_text = host.check_network(model, network, clip) or (network is None and host.has_text_encoder(lora))
        if config.text_encoder_learning_rate and not trains_text:
            raise ValueError(
                "text_encoder_learning_rate is set and the text encoder is not trained: add BASE to LoRA Network's blocks "
                "(all, BASE), or set it to 0."
            )
        if trains_text:
            clip = host.plain_clip(clip)
        examples = _encode_examples(model, None if trains_text else clip, vae, training_images)
        batches = draw_batches(examples, config, [image.repeats for image in training_images])
        method = Denoise(examples, batches, config, host.TrainedTextEncoder(clip) if trains_text else None)
        captions = [image.caption for image in training_images if isinstance(image, TrainingImage)]
        labels = {METHOD: "LoRA", "ss_tag_frequency": tag_frequency(captions)}
        return host.Training(model, network, config, method, labels, clip=clip if trains_text else None, lora=lora)


class TrainILECO(TrainingNode, io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TrainTrain_TrainILECO",
            display_name="Train iLECO",
            category="TrainTrain",
            description="Makes one prompt act like another, or like nothing: erases or replaces a concept, from words alone.",
            search_aliases=[
                "leco",
                "ileco",
                "concept erase",
                "concept replace",
                "concept editing",
                "unlearn",
                "slider",
            ],
            inputs=[
                model_input("change"),
                io.Conditioning.Input(
                    "original",
                    tooltip="The prompt to change. Several phrasings, joined by Conditioning (Combine), generalise better than one.",
                ),
                io.Conditioning.Input(
                    "target",
                    tooltip="What it acts like from now on; an empty prompt erases. One for all originals, or one for each in order.",
                ),
                *size_inputs(
                    "Pixels of the pictures it is trained for: 512 for SD1.5, 1024 for SDXL and later. Smaller is faster."
                ),
                *training_inputs(presets.ILECO, "300 to 500.", "5e-4 is usual, 1e-4 to 1e-3 the range."),
                io.Int.Input(
                    "denoise_steps",
                    default=0,
                    min=0,
                    max=100,
                    advanced=True,
                    tooltip="0 is instant: trains on noise. 10 to 20 trains on half-denoised pictures of the original prompt, as LECO does: several times slower.",
                ),
                io.Float.Input(
                    "guidance",
                    default=0.0,
                    min=0,
                    max=10,
                    step=0.1,
                    advanced=True,
                    tooltip="How far beyond the target, away from the original. 0 acts like the target; 1 to 2 erases a concept below chance.",
                ),
                io.Conditioning.Input(
                    "preserve",
                    optional=True,
                    tooltip="One or several prompts that must not change, such as neighbours of what is erased. Doubles the time of a step.",
                ),
            ],
            outputs=[model_output(), *lora_outputs()],
            hidden=HIDDEN,
        )

    @classmethod
    def prepare(
        cls,
        model,
        original,
        target,
        width,
        height,
        denoise_steps,
        guidance,
        preserve=None,
        network=None,
        settings=None,
        lora=None,
        **training,
    ) -> host.Training:
        network, config = configs(presets.ILECO, network, settings, lora, training)
        host.check_network(model, network)
        pairs = _pair_prompts(host.read_conditioning(original), host.read_conditioning(target))
        preserved = host.read_conditioning(preserve) if preserve else []
        method = ILECO(pairs, preserved, host.latent_shape(model, width, height), denoise_steps, guidance, config)
        return host.Training(model, network, config, method, {METHOD: "iLECO"}, lora=lora)


def _encode_examples(
    model: Any, clip: Any, vae: Any, images: list[TrainingImage | EncodedImage]
) -> list[TrainingExample]:
    """Encode pictures and captions. Without clip the captions stay text, for the text encoder is trained."""
    if isinstance(images[0], EncodedImage):  # a list is of one kind
        if clip is None:
            raise ValueError(
                "The text encoder cannot be trained on prompts that are encoded already: take BASE out of LoRA Network's "
                "blocks, or wire captions through Bucket Images."
            )
        latents = host.scale_latents(model, [image.latent for image in images])
        return [TrainingExample(latent, image.conditioning) for latent, image in zip(latents, images)]
    captions = [image.caption for image in images]
    conditionings = captions if clip is None else host.HostTextEncoder(clip).encode(captions)
    latents = host.encode_images(vae, model, [image.pixels for image in images])
    return [
        TrainingExample(latent, conditioning, None if image.mask is None else mask_at(image.mask, latent))
        for latent, conditioning, image in zip(latents, conditionings, images)
    ]


def _pair_prompts(
    originals: list[Conditioning], targets: list[Conditioning]
) -> list[tuple[Conditioning, Conditioning]]:
    """Give each original its target: in order, or one for all."""
    if len(targets) not in (1, len(originals)):
        raise ValueError(
            f"original has {len(originals)} prompts and target {len(targets)}: give one target for all of them, or one for each."
        )
    return list(zip(originals, targets * len(originals) if len(targets) == 1 else targets))
