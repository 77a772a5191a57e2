"""What can be set in a training, checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass

NETWORK_TYPES = ("lierla", "c3lier", "loha", "lokr")
ELEMENTS = ("Full", "CrossAttention", "SelfAttention")
LOSSES = ("MSE", "L1", "Smooth-L1")
PRECISIONS = ("as loaded", "bf16", "fp16", "fp32")


@dataclass(frozen=True)
class NetworkConfig:
    """Which layers a LoRA adapts, and how large it is.

    network_type: "lierla" adapts the linear and 1x1 layers of the attention blocks, "c3lier" (LoCon) also the 3x3
        convolutions of the residual, down- and up-sampling blocks; "loha" and "lokr" are Hadamard and Kronecker
        products on the layers of c3lier
    rank: columns of each pair of matrices, 1 or more
    alpha: the adapter's output is scaled by alpha / rank; above 0
    conv_rank, conv_alpha: the same for the 3x3 convolutions; 0 takes rank and alpha
    element: "Full", or only "CrossAttention" or "SelfAttention" of each attention block
    blocks: ids of the blocks to adapt, as `blocks.choose` reads them
    """

    network_type: str = "lierla"
    rank: int = 16
    alpha: float = 8.0
    conv_rank: int = 0
    conv_alpha: float = 0.0
    element: str = "Full"
    blocks: str = "all"

    def __post_init__(self) -> None:
        _check_choice("network_type", self.network_type, NETWORK_TYPES)
        _check_choice("element", self.element, ELEMENTS)
        _check_least("rank", self.rank, 1)
        _check_above("alpha", self.alpha, 0)
        _check_least("conv_rank", self.conv_rank, 0)
        _check_least("conv_alpha", self.conv_alpha, 0)
        if self.network_type == "lierla" and (self.conv_rank or self.conv_alpha):
            raise ValueError(
                "conv_rank and conv_alpha are of the 3x3 convolutions, which network type lierla leaves alone: set them "
                "to 0, or take c3lier, loha or lokr."
            )
        if self.element != "Full" and self.network_type == "c3lier":
            raise ValueError(
                f"element {self.element} leaves only attention layers, and network type c3lier is there for the "
                "convolutions: set the network type to lierla, or element to Full."
            )


@dataclass(frozen=True)
class TrainingConfig:
    """How a LoRA is trained.

    steps: updates of the LoRA, 1 or more
    batch_size: examples a forward pass, 1 or more
    learning_rate: above 0
    seed: of everything random in the training
    optimizer, optimizer_settings: name, and `key=value` pairs for its constructor
    lr_scheduler, lr_scheduler_settings: name, and `key=value` pairs for its constructor
    warmup_steps: updates over which the learning rate rises from 0
    loss: "MSE", "L1" or "Smooth-L1", in the model's own prediction space
    snr_gamma: gamma of min-SNR weighting; 0 switches it off
    min_timestep, max_timestep: t is drawn from [min, max) of 1000
    fixed_timestep_in_batch: whether all examples of a batch share one t
    gradient_accumulation: batches an update, 1 or more
    max_grad_norm: gradients longer than this are scaled down to it; 0 switches it off
    gradient_checkpointing: whether activations are computed again in the backward pass, for less memory
    text_encoder_learning_rate: of the text encoder's part of the LoRA; 0 takes learning_rate
    precision: type of the network's activations, or "as loaded"; the LoRA's own weights are always float32
    save_every: steps after which the LoRA is written to disk, again and again; 0 writes it at the end alone
    """

    steps: int = 1000
    batch_size: int = 2
    learning_rate: float = 1e-4
    seed: int = 0
    optimizer: str = "AdamW"
    optimizer_settings: str = ""
    lr_scheduler: str = "cosine"
    lr_scheduler_settings: str = ""
    warmup_steps: int = 0
    loss: str = "MSE"
    snr_gamma: float = 5.0
    min_timestep: int = 0
    max_timestep: int = 1000
    fixed_timestep_in_batch: bool = False
    gradient_accumulation: int = 1
    max_grad_norm: float = 1.0
    gradient_checkpointing: bool = False
    text_encoder_learning_rate: float = 0.0
    precision: str = "as loaded"
    save_every: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "gradient_accumulation"):
            _check_least(name, getattr(self, name), 1)
        for name in ("warmup_steps", "snr_gamma", "max_grad_norm", "seed", "text_encoder_learning_rate", "save_every"):
            _check_least(name, getattr(self, name), 0)
        _check_above("learning_rate", self.learning_rate, 0)
        _check_choice("loss", self.loss, LOSSES)
        _check_choice("precision", self.precision, PRECISIONS)
        if not 0 <= self.min_timestep < self.max_timestep <= 1000:
            raise ValueError(
                f"The timesteps go from {self.min_timestep} to {self.max_timestep}: set min_timestep below "
                "max_timestep, both within 0 and 1000."
            )
        if self.warmup_steps >= self.steps:
            raise ValueError(
                f"warmup_steps is {self.warmup_steps} of {self.steps} steps: the learning rate would never "
                "reach its value. Set fewer warm-up steps."
            )


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}: choose one of {', '.join(choices)}.")


def _check_least(name: str, value: float, least: float) -> None:
    if not value >= least:  # not (<): NaN must fail too
        raise ValueError(f"{name} is {value}: set it to {least} or more.")


def _check_above(name: str, value: float, bound: float) -> None:
    if not value > bound:
        raise ValueError(f"{name} is {value}: set it above {bound}.")
