"""The nodes that set what is trained and how. Unwired, a training takes its method's preset."""

from __future__ import annotations

from comfy_api.latest import io

from ..trainer.config import ELEMENTS, LOSSES, NETWORK_TYPES, PRECISIONS, NetworkConfig, TrainingConfig
from ..trainer.optimizer import OPTIMIZERS, check_settings
from ..trainer.schedule import SCHEDULES
from .inputs import check_values

Network = io.Custom("TRAINTRAIN_NETWORK")
Settings = io.Custom("TRAINTRAIN_SETTINGS")


class LoRANetwork(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TrainTrain_LoRANetwork",
            display_name="LoRA Network",
            category="TrainTrain",
            description="Chooses the layers that a training adapts, and the size of the LoRA.",
            search_aliases=["lora rank", "network dim", "locon", "c3lier", "lierla", "block weights"],
            inputs=[
                io.Combo.Input(
                    "network_type",
                    options=list(NETWORK_TYPES),
                    default="lierla",
                    tooltip="lierla: the attention blocks, the usual LoRA. c3lier (LoCon): the 3x3 convolutions too, "
                    "for styles and textures; a larger file. loha, lokr: the same layers by products of matrices, which hold "
                    "more in a small file and learn slower.",
                ),
                io.Int.Input(
                    "rank",
                    default=16,
                    min=1,
                    max=1024,
                    tooltip="Size of the LoRA: how much it can hold. 4 for a slider, 8 to 32 for a person or a style.",
                ),
                io.Float.Input(
                    "alpha",
                    default=8.0,
                    min=0.01,
                    max=1024,
                    step=0.5,
                    tooltip="The LoRA works at alpha / rank of its strength. Half the rank is usual; lower learns more gently.",
                ),
                io.Int.Input(
                    "conv_rank",
                    default=0,
                    min=0,
                    max=1024,
                    advanced=True,
                    tooltip="Rank of the 3x3 convolutions (c3lier). 0 takes the rank above.",
                ),
                io.Float.Input(
                    "conv_alpha",
                    default=0.0,
                    min=0,
                    max=1024,
                    step=0.5,
                    advanced=True,
                    tooltip="Alpha of the 3x3 convolutions (c3lier). 0 takes the alpha above.",
                ),
                io.Combo.Input(
                    "element",
                    options=list(ELEMENTS),
                    default="Full",
                    advanced=True,
                    tooltip="Full: all layers of the attention blocks. CrossAttention: only where the prompt comes in. "
                    "SelfAttention: only where the picture looks at itself.",
                ),
                io.String.Input(
                    "blocks",
                    default="all",
                    advanced=True,
                    tooltip="Blocks to train: all, or ids such as IN04-IN08, M00, OUT03; a leading minus leaves a block "
                    "out, as in -M00. BASE adds the text encoder (Train LoRA): all, BASE. A wrong id is answered with the ids the model has.",
                ),
            ],
            outputs=[Network.Output("network", tooltip="Goes into the training node.")],
        )

    @classmethod
    def execute(cls, **settings) -> io.NodeOutput:
        check_values(cls, settings)
        return io.NodeOutput(NetworkConfig(**settings))


class TrainingSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TrainTrain_TrainingSettings",
            display_name="Training Settings",
            category="TrainTrain",
            description="Sets how a LoRA is trained, beyond steps, batch size, learning rate and seed.",
            search_aliases=["optimizer", "scheduler", "min snr", "gradient checkpointing", "gradient accumulation"],
            inputs=[
                io.Combo.Input(
                    "optimizer",
                    options=list(OPTIMIZERS),
                    default="AdamW",
                    tooltip="How gradients become updates. AdamW suits nearly all. Each wants a learning rate of its own, which "
                    "the help page has: CAME about a tenth of AdamW's; Prodigy and the DAdapts find their step size "
                    "themselves and want about 1; the ScheduleFrees want ten times AdamW's, and lr_scheduler constant. "
                    "8bit and Paged need the package bitsandbytes.",
                ),
                io.String.Input(
                    "optimizer_settings",
                    default="",
                    advanced=True,
                    tooltip="More for the optimizer as key=value pairs: weight_decay=0.01, betas=(0.9, 0.99). A wrong key is "
                    "answered with those it takes.",
                ),
                io.Combo.Input(
                    "lr_scheduler",
                    options=list(SCHEDULES),
                    default="cosine",
                    tooltip="How the learning rate goes over the training. cosine, linear and polynomial fall to 0 by the last step; "
                    "constant stays. The help page has them all.",
                ),
                io.String.Input(
                    "lr_scheduler_settings",
                    default="",
                    advanced=True,
                    tooltip="More for the schedule as key=value pairs: eta_min=1e-5 for cosine_annealing, power=2 for polynomial, "
                    "steps=(100, 200), factors=(1, 0.5, 0.1) for piecewise_constant. A wrong key is answered with those it takes.",
                ),
                io.Int.Input(
                    "warmup_steps",
                    default=0,
                    min=0,
                    max=100000,
                    tooltip="Steps over which the learning rate rises from 0 to where the schedule begins. 0 starts at once.",
                ),
                io.Combo.Input(
                    "loss",
                    options=list(LOSSES),
                    default="MSE",
                    advanced=True,
                    tooltip="How an error is counted. MSE is usual; L1 and Smooth-L1 forgive single large errors.",
                ),
                io.Float.Input(
                    "snr_gamma",
                    default=5.0,
                    min=0,
                    max=100,
                    step=0.5,
                    advanced=True,
                    tooltip="min-SNR: keeps nearly clean pictures from ruling the loss. 5 is usual, 0 is off. Flow models ignore it.",
                ),
                io.Int.Input(
                    "min_timestep",
                    default=0,
                    min=0,
                    max=999,
                    advanced=True,
                    tooltip="Train from this noise level, of 1000; 0 is a clean picture. 200 to 400 holds styles, 500 to 1000 shapes and poses.",
                ),
                io.Int.Input(
                    "max_timestep",
                    default=1000,
                    min=1,
                    max=1000,
                    advanced=True,
                    tooltip="Train below this noise level, of 1000; 1000 is pure noise.",
                ),
                io.Boolean.Input(
                    "fixed_timestep_in_batch",
                    default=False,
                    advanced=True,
                    tooltip="Give all pictures of a batch the same noise level.",
                ),
                io.Int.Input(
                    "gradient_accumulation",
                    default=1,
                    min=1,
                    max=1024,
                    tooltip="Batches that make one step. 4 batches of 1 learn like one batch of 4, in less memory and more time.",
                ),
                io.Float.Input(
                    "max_grad_norm",
                    default=1.0,
                    min=0,
                    max=1000,
                    step=0.1,
                    advanced=True,
                    tooltip="Longer gradients are cut to this length, so that one odd picture cannot ruin the LoRA. 0 is off.",
                ),
                io.Boolean.Input(
                    "gradient_checkpointing",
                    default=False,
                    tooltip="Needs far less memory and about a third more time. On for SDXL and larger on 12 GB.",
                ),
                io.Float.Input(
                    "text_encoder_learning_rate",
                    default=0.0,
                    min=0,
                    max=1,
                    step=1e-6,
                    round=False,
                    advanced=True,
                    tooltip="Of the text encoder, which Train LoRA trains where LoRA Network's blocks have BASE. Half the other rate "
                    "is usual; 0 takes the same.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default="as loaded",
                    tooltip="Type the network computes in. as loaded: what the MODEL is in. bf16 is fast and safe on newer cards. "
                    "The LoRA's own weights are always fp32.",
                ),
                io.Int.Input(
                    "save_every",
                    default=0,
                    min=0,
                    max=1_000_000,
                    advanced=True,
                    tooltip="Writes the LoRA as NAME_200steps and so on every so many steps, NAME being that of the wired Save LoRA; a "
                    "training that was killed goes on from the last of them. 0 writes it at the end alone.",
                ),
            ],
            outputs=[Settings.Output("settings", tooltip="Goes into the training node.")],
        )

    @classmethod
    def execute(cls, **settings) -> io.NodeOutput:
        check_values(cls, settings)
        config = TrainingConfig(steps=settings["warmup_steps"] + 1, **settings)  # the training node has the steps
        check_settings(config)
        return io.NodeOutput(config)
