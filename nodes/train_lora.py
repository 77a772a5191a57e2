"""Train LoRA: trains a LoRA on captioned images."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainer.caption_draw import CaptionConfig
from ..trainer.config import NetworkConfig, TrainingConfig
from ..trainer.dataset.image_captions import split_captions
from ..trainer.dataset.masks import mask_at
from ..trainer.dataset.training_image import TrainingImage
from ..trainer.denoiser import Conditioning
from ..trainer.lora_file import METHOD
from ..trainer.lora_metadata import tag_frequency
from ..trainer.methods.denoise import Denoise, Preserved
from ..trainer.training_example import EncodedImage, TrainingExample
from ..trainer.validation import Validation
from . import host
from .bucket_images import TrainingImages
from .input_checks import guidance_input
from .resume import resume_inputs
from .training_captions import TrainingCaptions, caption_inputs
from .training_node import (
    HIDDEN,
    Preset,
    TrainingNode,
    draw_batches,
    lora_outputs,
    merge_configs,
    model_input,
    model_output,
    training_inputs,
    vae_input,
)


class TrainLoRA(TrainingNode, io.ComfyNode):
    """Trains a LoRA on captioned images."""

    preset = Preset(NetworkConfig(rank=16, alpha=8.0), TrainingConfig(steps=1000, batch_size=2, learning_rate=1e-4))

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs, outputs and texts."""
        return io.Schema(
            node_id="TrainTrain_TrainLoRA",
            display_name="Train LoRA",
            category="TrainTrain",
            description="Trains a LoRA on captioned images. Sample with its MODEL and CLIP outputs right away, or save the LoRA.",
            search_aliases=["finetune", "dreambooth", "kohya", "lora training", "teach"],
            inputs=[
                model_input("train"),
                io.Clip.Input("clip", tooltip="Encodes the captions."),
                vae_input(),
                TrainingImages.Input(
                    "training_images",
                    tooltip="Captioned images from Bucket Images, or from Training Images from Latents.",
                ),
                *training_inputs(cls.preset, "500 to 2000 for 10 to 30 images.", "1e-4 is usual."),
                *resume_inputs(),
                guidance_input(),
                io.Autogrow.Input(
                    "more_training_images",
                    optional=True,
                    template=io.Autogrow.TemplatePrefix(
                        TrainingImages.Input("set", tooltip="More images to train on, with their own repeats."),
                        "set",
                        min=0,
                        max=16,
                    ),
                ),
                *caption_inputs(),
                *_validation_inputs(),
                *_preserve_inputs(),
            ],
            outputs=[
                model_output(),
                io.Clip.Output("clip", tooltip="The CLIP with the LoRA applied, to sample with."),
                *lora_outputs(),
            ],
            hidden=HIDDEN,
        )

    @classmethod
    def prepare(
        cls,
        model,
        clip,
        vae,
        training_images,
        network=None,
        settings=None,
        lora=None,
        distilled_guidance=1.0,
        more_training_images=None,
        shuffle_tags=False,
        keep_tags=1,
        caption_dropout=0.0,
        validation_images=None,
        validate_every=100,
        preserve="",
        regularization_images=None,
        preserve_weight=1.0,
        **training,
    ) -> host.Job:
        """Encode the images and captions. Raises ValueError if the inputs do not fit together."""
        network, config = merge_configs(cls.preset, network, settings, lora, training)
        trains_text = _trains_text_encoder(model, clip, network, config, lora)
        if trains_text:
            clip = host.trainable_clip(clip, model)
        sets = [training_images, *(each for each in (more_training_images or {}).values() if each is not None)]
        kept = regularization_images or []
        learned = [image for each in sets for image in each]
        images = [*learned, *kept]
        varied = CaptionConfig(shuffle_tags, keep_tags, caption_dropout)
        captions = TrainingCaptions(model, None if trains_text else clip, distilled_guidance, varied, config.seed)
        captions.check(learned)
        captions.fixed().check(kept)
        held_out = _encode_held_out(model, vae, validation_images, captions.fixed())
        encoded = [_encode_images(model, vae, each, captions) for each in sets]
        if kept:
            encoded.append(_encode_images(model, vae, kept, captions.fixed(), preserve_weight))
        examples, choices = ([item for part in parts for item in part] for parts in zip(*encoded))
        preserved = _encode_preserved(preserve, captions, preserve_weight)
        batches = draw_batches(examples, config, [image.repeats for image in images])
        guidance = distilled_guidance if host.has_guidance_input(model) else None
        encoder = host.TrainedTextEncoder(clip, guidance) if trains_text else None
        method = Denoise(examples, batches, config, encoder, captions.draw(choices, len(learned)), preserved)
        texts = [text for each in learned if isinstance(each, TrainingImage) for text in split_captions(each.caption)]
        labels = {METHOD: "LoRA", "ss_tag_frequency": tag_frequency(texts)}
        validation = Validation(held_out, validate_every, config, encoder) if held_out else None
        clip = clip if trains_text else None
        return host.Job(model, network, config, method, labels, clip, lora, validation=validation)


def _trains_text_encoder(
    model: Any, clip: Any, network: NetworkConfig | None, config: TrainingConfig, lora: Any
) -> bool:
    """Return whether the text encoder is trained. Raises ValueError if it has a learning rate and is not."""
    trains_text = host.check_network(model, network, clip) or (network is None and host.has_text_encoder(lora))
    if config.text_encoder_learning_rate and not trains_text:
        raise ValueError(
            "text_encoder_learning_rate is set but the text encoder is not trained: add BASE to blocks in LoRA Network "
            "(all, BASE), or set text_encoder_learning_rate to 0."
        )
    return trains_text


def _encode_held_out(
    model: Any, vae: Any, images: list[TrainingImage | EncodedImage] | None, captions: TrainingCaptions
) -> list[TrainingExample]:
    """Return the images of the validation as examples; none if there are no images."""
    captions.check(images or [])
    return _encode_images(model, vae, images, captions)[0] if images else []


def _encode_preserved(preserve: str, captions: TrainingCaptions, weight: float) -> Preserved | None:
    """Return the prompts of a text such as "a woman; a portrait", or None if it has none."""
    prompts = [text.strip() for text in preserve.split(";") if text.strip()]
    return Preserved(captions.encode_prompts(prompts), weight) if prompts else None


def _validation_inputs() -> list[io.Input]:
    """Return the inputs on the loss on held-out images."""
    return [
        TrainingImages.Input(
            "validation_images",
            optional=True,
            tooltip="Captioned images that are not trained on, from another Bucket Images. The loss on them is measured with the "
            "same noise each time: when it rises, the LoRA overfits. 3 to 10 images are enough. Unconnected: none.",
        ),
        io.Int.Input(
            "validate_every",
            default=100,
            min=1,
            max=1_000_000,
            optional=True,
            advanced=True,
            tooltip="Steps between measurements on validation_images. Each takes four forward passes per image.",
        ),
    ]


def _preserve_inputs() -> list[io.Input]:
    """Return the inputs on what must stay as it is."""
    return [
        io.String.Input(
            "preserve",
            default="",
            optional=True,
            advanced=True,
            tooltip="Prompts whose images must stay as they are, separated by ;, such as the class of what you train: a woman; a "
            "portrait. The LoRA learns to change nothing for them. Doubles the time per step. Empty: none.",
        ),
        TrainingImages.Input(
            "regularization_images",
            optional=True,
            tooltip="Captioned images of the class, from another Bucket Images, that are trained on too, so that the LoRA does not "
            "turn everything into what you train. preserve does this without images.",
        ),
        io.Float.Input(
            "preserve_weight",
            default=1.0,
            min=0,
            max=100,
            step=0.1,
            optional=True,
            advanced=True,
            tooltip="Weight of preserve and of regularization_images in the loss. 1 counts as much as the training images.",
        ),
    ]


def _encode_images(
    model: Any, vae: Any, images: list[TrainingImage | EncodedImage], captions: TrainingCaptions, weight: float = 1.0
) -> tuple[list[TrainingExample], list[list[Conditioning]]]:
    """Return the images as examples with their first captions, and for each example all captions to draw from."""
    if isinstance(images[0], EncodedImage):  # all items are of one type
        latents = host.scale_latents(model, [image.latent for image in images])
        choices = captions.with_guidance([image.conditioning for image in images])
    else:
        choices = captions.encode([image.caption for image in images])
        latents = host.encode_images(vae, model, [image.pixels for image in images], [image.name for image in images])
    masks = [None if image.mask is None else mask_at(image.mask, latent) for image, latent in zip(images, latents)]
    examples = [TrainingExample(latent, each[0], mask, weight) for latent, each, mask in zip(latents, choices, masks)]
    return examples, choices
