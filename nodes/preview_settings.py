"""Preview Settings: sets which samples are shown during training."""

from __future__ import annotations

from comfy_api.latest import io

from . import host
from .input_checks import check_values, sampling_inputs, seed_input, size_inputs

Preview = io.Custom("TRAINTRAIN_PREVIEW")  # a host.Preview


class PreviewSettings(io.ComfyNode):
    """Sets which samples are shown during training."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs, outputs and texts."""
        return io.Schema(
            node_id="TrainTrain_PreviewSettings",
            display_name="Preview Settings",
            category="TrainTrain",
            description="Shows sample images on the training node during training, without and with the LoRA, from the same noise.",
            search_aliases=["sample images while training", "training preview", "validation samples"],
            inputs=[
                io.Conditioning.Input(
                    "positive", tooltip="Prompt of the samples. Use the words that the LoRA should respond to."
                ),
                io.Conditioning.Input("negative", tooltip="Negative prompt of the samples. An empty prompt is enough."),
                io.Vae.Input("vae", tooltip="Decodes the samples."),
                io.Int.Input(
                    "every",
                    default=100,
                    min=1,
                    max=1_000_000,
                    tooltip="Training steps between samples. 50 to 200 is usual: a sample takes as long as several steps.",
                ),
                *size_inputs("Pixels. Size of a sample: 512 for SD 1.5, 1024 for SDXL and later. Smaller is faster."),
                *sampling_inputs(),
                seed_input("Seed of the noise that all samples start from, so that they can be compared."),
            ],
            outputs=[Preview.Output("preview", tooltip="Goes into the training node.")],
        )

    @classmethod
    def execute(cls, **settings) -> io.NodeOutput:
        """Return the inputs as a host.Preview. Raises ValueError if they are invalid."""
        check_values(cls, settings)
        return io.NodeOutput(host.Preview(**settings))
