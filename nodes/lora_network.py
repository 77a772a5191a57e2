"""LoRA Network: selects the layers to train and the size of the LoRA."""

from __future__ import annotations

from comfy_api.latest import io

from ..trainer.config import ELEMENTS, NETWORK_TYPES, NetworkConfig
from .input_checks import check_values

Network = io.Custom("TRAINTRAIN_NETWORK")  # a NetworkConfig


class LoRANetwork(io.ComfyNode):
    """Selects the layers to train and the size of the LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs, outputs and texts."""
        return io.Schema(
            node_id="TrainTrain_LoRANetwork",
            display_name="LoRA Network",
            category="TrainTrain",
            description="Selects the layers to train and the size of the LoRA.",
            search_aliases=["lora rank", "network dim", "locon", "c3lier", "lierla", "block weights"],
            inputs=[
                io.Combo.Input(
                    "network_type",
                    options=list(NETWORK_TYPES),
                    default="lierla",
                    tooltip="lierla (LoRA): the attention blocks, the usual choice. c3lier (LoCon): the 3x3 convolutions too, "
                    "for styles and textures; a larger file. loha, lokr (LyCORIS): the layers of c3lier as matrix products, "
                    "which hold more in a small file but train more slowly.",
                ),
                io.Int.Input(
                    "rank",
                    default=16,
                    min=1,
                    max=1024,
                    tooltip="Size of the LoRA (network dim): how much it can learn. 4 for a slider, 8 to 32 for a person or a style.",
                ),
                io.Float.Input(
                    "alpha",
                    default=8.0,
                    min=0.01,
                    max=1024,
                    step=0.5,
                    tooltip="Scales the LoRA by alpha / rank. Half the rank is usual; lower trains more gently.",
                ),
                io.Int.Input(
                    "conv_rank",
                    default=0,
                    min=0,
                    max=1024,
                    advanced=True,
                    tooltip="Rank of the 3x3 convolutions (c3lier, loha, lokr). 0 = same as rank.",
                ),
                io.Float.Input(
                    "conv_alpha",
                    default=0.0,
                    min=0,
                    max=1024,
                    step=0.5,
                    advanced=True,
                    tooltip="Alpha of the 3x3 convolutions (c3lier, loha, lokr). 0 = same as alpha.",
                ),
                io.Combo.Input(
                    "element",
                    options=list(ELEMENTS),
                    default="Full",
                    advanced=True,
                    tooltip="Full: all layers of the attention blocks, the usual choice. CrossAttention: only those that read the "
                    "prompt. SelfAttention: only those where the image attends to itself.",
                ),
                io.String.Input(
                    "blocks",
                    default="all",
                    advanced=True,
                    tooltip="Blocks to train: all, or ids such as IN04-IN08, M00, OUT03. A leading minus excludes a block: "
                    "-M00. BASE adds the text encoder (only in Train LoRA): all, BASE. A wrong id gives an error that lists "
                    "the model's ids.",
                ),
                io.Boolean.Input(
                    "rs_lora",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="rsLoRA. On: scales by alpha / sqrt(rank) instead of alpha / rank, so that a higher rank does not train "
                    "more gently. At rank 16 that is 4 times as much: lower alpha or the learning rate. Files hold an alpha with "
                    "which every program has the same effect.",
                ),
                io.Boolean.Input(
                    "dora",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="DoRA. On: also trains how strong the weights of each input of a layer are, which learns closer to full "
                    "fine-tuning at low rank. Slower, and needs more VRAM. For lierla and c3lier.",
                ),
            ],
            outputs=[Network.Output("network", tooltip="Goes into the training node.")],
        )

    @classmethod
    def execute(cls, **settings) -> io.NodeOutput:
        """Return the inputs as a NetworkConfig. Raises ValueError if they are invalid."""
        check_values(cls, settings)
        return io.NodeOutput(NetworkConfig(**settings))
