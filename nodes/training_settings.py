"""Training Settings: sets how a LoRA is trained, beyond the inputs of the training nodes."""

from __future__ import annotations

from comfy_api.latest import io

from ..trainer.config import LOSSES, OFFLOADS, PRECISIONS, TIMESTEP_DISTRIBUTIONS, USUAL, TrainingConfig
from ..trainer.optimizer import OPTIMIZERS, check_settings
from ..trainer.schedule import SCHEDULES
from .input_checks import check_values

Settings = io.Custom("TRAINTRAIN_SETTINGS")  # a TrainingConfig


class TrainingSettings(io.ComfyNode):
    """Sets how a LoRA is trained, beyond the inputs of the training nodes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs, outputs and texts."""
        return io.Schema(
            node_id="TrainTrain_TrainingSettings",
            display_name="Training Settings",
            category="TrainTrain",
            description="Sets how a LoRA is trained, beyond the steps, batch size, learning rate and seed on the training node.",
            search_aliases=["optimizer", "scheduler", "min snr", "gradient checkpointing", "gradient accumulation"],
            inputs=[
                io.Combo.Input(
                    "optimizer",
                    options=list(OPTIMIZERS),
                    default="AdamW",
                    tooltip="How gradients become updates. AdamW suits nearly everything. Each optimizer needs its own learning "
                    "rate, see the help page: CAME about a tenth of AdamW's; Prodigy and DAdapt estimate the step size "
                    "themselves and need about 1; ScheduleFree needs ten times AdamW's, and lr_scheduler constant. "
                    "8bit and Paged need the package bitsandbytes."
                    " 8bit stores its state in 8 bits only for tensors of 4096 values or more: at rank 4 most of a LoRA, at rank 1 little.",
                ),
                io.String.Input(
                    "optimizer_settings",
                    default="",
                    advanced=True,
                    tooltip="More settings of the optimizer as key=value pairs: weight_decay=0.01, betas=(0.9, 0.99). May be "
                    "empty. A wrong key gives an error that lists the valid ones.",
                ),
                io.Combo.Input(
                    "lr_scheduler",
                    options=list(SCHEDULES),
                    default="cosine",
                    tooltip="How the learning rate changes during training. cosine, linear and polynomial fall to 0 by the last "
                    "step; constant does not change. cosine suits nearly everything. The help page describes all of them.",
                ),
                io.String.Input(
                    "lr_scheduler_settings",
                    default="",
                    advanced=True,
                    tooltip="More settings of the schedule as key=value pairs: eta_min=1e-5 for cosine_annealing, power=2 for "
                    "polynomial, steps=(100, 200), factors=(1, 0.5, 0.1) for piecewise_constant. May be empty. A wrong key "
                    "gives an error that lists the valid ones.",
                ),
                io.Int.Input(
                    "warmup_steps",
                    default=0,
                    min=0,
                    max=100000,
                    tooltip="Steps over which the learning rate rises from 0 to the start of the schedule. 0 = no warmup.",
                ),
                io.Combo.Input(
                    "loss",
                    options=list(LOSSES),
                    default="MSE",
                    advanced=True,
                    tooltip="How the error is measured. MSE is usual; L1 and Smooth-L1 are less sensitive to single large errors.",
                ),
                io.Float.Input(
                    "snr_gamma",
                    default=5.0,
                    min=0,
                    max=100,
                    step=0.5,
                    advanced=True,
                    tooltip="Min-SNR gamma: keeps nearly clean images from dominating the loss. 5 is usual, 0 = off. Flow models ignore it.",
                ),
                io.Int.Input(
                    "min_timestep",
                    default=0,
                    min=0,
                    max=999,
                    advanced=True,
                    tooltip="Train from this noise level (timestep): 0 is a clean image, 1000 pure noise. 200 to 400 is for style, 500 to 1000 for shapes and poses. 0 is usual.",
                ),
                io.Int.Input(
                    "max_timestep",
                    default=1000,
                    min=1,
                    max=1000,
                    advanced=True,
                    tooltip="Train below this noise level (timestep): 0 is a clean image, 1000 pure noise. 1000 is usual.",
                ),
                io.Boolean.Input(
                    "fixed_timestep_in_batch",
                    default=False,
                    advanced=True,
                    tooltip="On: all images of a batch get the same noise level (timestep). Off is usual.",
                ),
                io.Int.Input(
                    "gradient_accumulation",
                    default=1,
                    min=1,
                    max=1024,
                    tooltip="Batches per step. 4 batches of 1 train like one batch of 4, with less VRAM but more time. 1 = off.",
                ),
                io.Float.Input(
                    "max_grad_norm",
                    default=1.0,
                    min=0,
                    max=1000,
                    step=0.1,
                    advanced=True,
                    tooltip="Gradient clipping: larger gradients are scaled down to this norm, so that one odd image cannot ruin the LoRA. 1 is usual, 0 = off.",
                ),
                io.Boolean.Input(
                    "gradient_checkpointing",
                    default=False,
                    tooltip="On: needs far less VRAM, but about a third more time. Turn it on for SDXL and larger models on 12 GB.",
                ),
                io.Float.Input(
                    "text_encoder_learning_rate",
                    default=0.0,
                    min=0,
                    max=1,
                    step=1e-6,
                    round=False,
                    advanced=True,
                    tooltip="Learning rate of the text encoder, which Train LoRA trains if blocks in LoRA Network has BASE. Half of "
                    "learning_rate is usual; 0 = same as learning_rate.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default="as loaded",
                    tooltip="Type that the model computes in during training. as loaded: that of the MODEL, the usual choice. "
                    "bf16: fast on newer GPUs, needs no loss scale. fp16: has an adaptive loss scale and skips steps that "
                    "overflow. fp32: really computes in fp32, slower and with more VRAM. The LoRA's own weights are always "
                    "fp32.",
                ),
                io.Int.Input(
                    "save_every",
                    default=0,
                    min=0,
                    max=1_000_000,
                    advanced=True,
                    tooltip="Steps between saved checkpoints of the LoRA: NAME_200steps and so on, with the NAME in the connected "
                    "Save LoRA. If ComfyUI is killed, training resumes from the last one. 0 = save only at the end.",
                ),
                io.Float.Input(
                    "keep_gb",
                    default=10.0,
                    min=0,
                    max=1_000_000,
                    step=1,
                    optional=True,
                    advanced=True,
                    tooltip="Disk space in GB for the trainings kept in output/traintrain. When a training is saved and they need "
                    "more, the oldest are deleted. 0 keeps only the newest. Files of Save LoRA and save_every do not count.",
                ),
                io.Float.Input(
                    "ema_decay",
                    default=0.0,
                    min=0,
                    max=0.9999,
                    step=0.001,
                    round=False,
                    optional=True,
                    advanced=True,
                    tooltip="EMA: the LoRA becomes a moving average of its weights over the steps, which is steadier than those of "
                    "the last step; samples show it too. 0.99 averages about the last 100 steps, 0.999 the last 1000, but never "
                    "more than about a tenth of the training so far. 0 = off.",
                ),
                io.Combo.Input(
                    "offload",
                    options=list(OFFLOADS),
                    default="none",
                    optional=True,
                    advanced=True,
                    tooltip="Keeps frozen weights away from the device until their layer computes, so that larger models fit. "
                    "none: all are on the device. blocks: those of the blocks wait. all: those of all layers. On a GPU they "
                    "wait in main memory, on a CPU in a temporary file as large as the model. The LoRA is the same. Needs "
                    "gradient_checkpointing.",
                ),
                io.Float.Input(
                    "lora_plus_ratio",
                    default=1.0,
                    min=0.01,
                    max=1000,
                    step=0.5,
                    round=False,
                    optional=True,
                    advanced=True,
                    tooltip="LoRA+: learning rate of the weights that start at zero (a LoRA's up), as a multiple of learning_rate. "
                    "1 = off. With 4 to 16, set learning_rate to half or less. Not for Prodigy and DAdapt.",
                ),
                io.Combo.Input(
                    "timesteps",
                    options=list(TIMESTEP_DISTRIBUTIONS),
                    default=USUAL,
                    optional=True,
                    advanced=True,
                    tooltip="How noise levels (timesteps) are drawn. usual: logit-normal for flow models, uniform for "
                    "all others. uniform: all alike. logit-normal: mostly the middle. resolution shift: logit-normal, with more "
                    "noise for images larger than 1024x1024 and less for smaller ones.",
                ),
                io.Float.Input(
                    "noise_offset",
                    default=0.0,
                    min=0,
                    max=1,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="Adds a random brightness to the noise, so that very dark and very bright images can be learned. Only for "
                    "methods that learn images. 0.05 is usual, 0 = off.",
                ),
                io.Int.Input(
                    "gradient_start",
                    default=0,
                    min=0,
                    max=1000,
                    optional=True,
                    advanced=True,
                    tooltip="A new LoRA starts along the gradients of so many steps, instead of in random directions; its loss "
                    "then falls a little faster. Each takes the time of a step. 8 is a good value, 0 = off. Only for lierla "
                    "and c3lier.",
                ),
            ],
            outputs=[Settings.Output("settings", tooltip="Goes into the training node.")],
        )

    @classmethod
    def execute(cls, **settings) -> io.NodeOutput:
        """Return the inputs as a TrainingConfig. Raises ValueError if they are invalid."""
        check_values(cls, settings)
        config = TrainingConfig(steps=settings["warmup_steps"] + 1, **settings)  # the training node sets the steps
        check_settings(config)
        return io.NodeOutput(config)
