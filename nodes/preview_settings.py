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
                *_more_prompts(),
            ],
            outputs=[Preview.Output("preview", tooltip="Goes into the training node.")],
        )

    @classmethod
    def execute(cls, clip=None, more_prompts="", **settings) -> io.NodeOutput:
        """Return the inputs as a host.Preview. Raises ValueError if they are invalid."""
        check_values(cls, {**settings, "clip": clip, "more_prompts": more_prompts})
        texts = [line.strip() for line in more_prompts.splitlines() if line.strip()]
        if texts and clip is None:
            raise ValueError(
                f"more_prompts has {len(texts)} prompts and clip is not connected: connect the CLIP that encodes "
                "positive, or empty more_prompts."
            )
        more = tuple((text, host.encode_prompt(clip, text, settings["positive"])) for text in texts)
        return io.NodeOutput(host.Preview(**settings, more_prompts=more))


def _more_prompts() -> list[io.Input]:
    """Return the inputs on prompts that are sampled besides the connected one."""
    return [
        io.Clip.Input("clip", optional=True, tooltip="Encodes more_prompts. Unconnected: only positive is sampled."),
        io.String.Input(
            "more_prompts",
            default="",
            multiline=True,
            optional=True,
            tooltip="More prompts, one per line, that are sampled besides positive at each preview, with all other settings the "
            "same: with and without the trigger word, for example. Each takes as long as positive. Needs clip. Empty: none.",
        ),
    ]
