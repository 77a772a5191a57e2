"""The training nodes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from comfy_api.latest import io

from ..trainer.config import NetworkConfig, TrainingConfig
from ..trainer.data import TrainingExample, TrainingImage, draw_batches, mask_at
from ..trainer.methods.denoise import Denoise
from . import host
from .files import keep_unfinished
from .images import TrainingImages
from .progress import TrainingProgress
from .settings import Network, Settings


class TrainLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TrainTrain_TrainLoRA",
            display_name="Train LoRA",
            category="TrainTrain",
            description="Teaches the model what captioned pictures show. Sample from its MODEL and CLIP at once, or save its LoRA.",
            search_aliases=["finetune", "dreambooth", "kohya", "lora training", "teach"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model to teach. It stays as it is; LoRAs already on it are part of it."
                ),
                io.Clip.Input("clip", tooltip="Reads the captions."),
                io.Vae.Input("vae", tooltip="Encodes the pictures."),
                TrainingImages.Input("training_images", tooltip="Captioned pictures from Bucket Images."),
                io.Int.Input(
                    "steps",
                    default=1000,
                    min=1,
                    max=1_000_000,
                    tooltip="Updates of the LoRA. 500 to 2000 for ten to thirty pictures.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=2,
                    min=1,
                    max=256,
                    tooltip="Pictures a step. More learns more evenly and needs more memory.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=1e-4,
                    min=0,
                    max=1,
                    step=1e-6,
                    round=False,
                    tooltip="Size of each update. 1e-4 is usual; lower if pictures come out burnt, higher if nothing is learned.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=False,
                    tooltip="Of everything random. The same seed gives the same LoRA.",
                ),
                Network.Input(
                    "network", optional=True, tooltip="From LoRA Network. Unwired: lierla, rank 16, alpha 8."
                ),
                Settings.Input(
                    "settings",
                    optional=True,
                    tooltip="From Training Settings. Unwired: AdamW, cosine, min-SNR gamma 5.",
                ),
            ],
            outputs=[
                io.Model.Output("model", tooltip="The model with the LoRA on it, ready to sample."),
                io.Clip.Output("clip", tooltip="The text encoder for the same sampling."),
                io.Custom("LORA_MODEL").Output(
                    "lora", tooltip="Goes into Save LoRA, or into the host's Load LoRA Model."
                ),
                io.Custom("LOSS_MAP").Output("loss", tooltip="Goes into Plot Loss."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, model, clip, vae, training_images, steps, batch_size, learning_rate, seed, network=None, settings=None
    ) -> io.NodeOutput:
        network = network or NetworkConfig()
        config = replace(
            settings or TrainingConfig(), steps=steps, batch_size=batch_size, learning_rate=learning_rate, seed=seed
        )
        host.check_network(model, network)
        examples = _encode_examples(model, clip, vae, training_images)
        batches = draw_batches(
            [e.latent.shape for e in examples],
            batch_size,
            torch.Generator().manual_seed(seed),
            [image.repeats for image in training_images],
        )
        method, progress = Denoise(examples, batches, config), TrainingProgress(cls.hidden.unique_id, steps)
        lora, losses = host.train_lora(model, network, config, method, progress, keep_unfinished)
        return io.NodeOutput(host.with_lora(model, lora), clip.clone(), lora, {"loss": losses})


def _encode_examples(model: Any, clip: Any, vae: Any, images: list[TrainingImage]) -> list[TrainingExample]:
    latents = host.encode_images(vae, model, [image.pixels for image in images])
    conditionings = host.HostTextEncoder(clip).encode([image.caption for image in images])
    return [
        TrainingExample(latent, conditioning, None if image.mask is None else mask_at(image.mask, latent))
        for latent, conditioning, image in zip(latents, conditionings, images)
    ]
