"""The node that sets which samples are shown while a training goes on."""

from __future__ import annotations

import comfy.samplers
from comfy_api.latest import io

from . import host
from .inputs import check_values, seed_input, size_inputs

Preview = io.Custom("TRAINTRAIN_PREVIEW")  # a host.Preview


class PreviewSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TrainTrain_PreviewSettings",
            display_name="Preview Settings",
            category="TrainTrain",
            description="Shows samples on the training node every so many steps, without the LoRA and with it, from the same noise.",
            search_aliases=["sample images while training", "training preview", "validation samples"],
            inputs=[
                io.Conditioning.Input("positive", tooltip="What to draw. The words the LoRA shall answer to."),
                io.Conditioning.Input("negative", tooltip="What not to draw; an empty prompt does."),
                io.Vae.Input("vae", tooltip="Decodes the samples."),
                io.Int.Input(
                    "every",
                    default=100,
                    min=1,
                    max=1_000_000,
                    tooltip="Training steps between samples. 50 to 200 suit most: a sample takes as long as several steps.",
                ),
                *size_inputs("Pixels of a sample: 512 for SD1.5, 1024 for SDXL and later. Smaller is faster."),
                io.Int.Input(
                    "steps", default=20, min=1, max=10000, tooltip="Sampling steps. 12 to 20 are enough to judge by."
                ),
                io.Float.Input(
                    "cfg",
                    default=7.0,
                    min=0,
                    max=100,
                    step=0.1,
                    tooltip="How closely the samples follow the prompt. 7 for SD1.5 and SDXL, 1 for Flux and other distilled models.",
                ),
                io.Combo.Input(
                    "sampler_name", options=comfy.samplers.SAMPLER_NAMES, default="euler", tooltip="As in the KSampler."
                ),
                io.Combo.Input(
                    "scheduler", options=comfy.samplers.SCHEDULER_NAMES, default="normal", tooltip="As in the KSampler."
                ),
                seed_input("Of the noise the samples start from: always the same one, so that they can be compared."),
            ],
            outputs=[Preview.Output("preview", tooltip="Goes into the training node.")],
        )

    @classmethod
    def execute(cls, **settings) -> io.NodeOutput:
        check_values(cls, settings)
        return io.NodeOutput(host.Preview(**settings))
