"""The settings of a training, checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass

NETWORK_TYPES = ("lierla", "c3lier", "loha", "lokr")
ELEMENTS = ("Full", "CrossAttention", "SelfAttention")
LOSSES = ("MSE", "L1", "Smooth-L1")
USUAL, UNIFORM, LOGIT_NORMAL, RESOLUTION_SHIFT = "usual", "uniform", "logit-normal", "resolution shift"
TIMESTEP_DISTRIBUTIONS = (USUAL, UNIFORM, LOGIT_NORMAL, RESOLUTION_SHIFT)
PRECISIONS = ("as loaded", "bf16", "fp16", "fp32")
OFFLOADS = ("none", "blocks", "all")


@dataclass(frozen=True)
class NetworkConfig:
    """Selects the layers that a LoRA adapts, and its size. Raises ValueError for invalid values.

    network_type: "lierla" (LoRA) adapts the linear and 1x1 layers of the attention blocks; "c3lier" (LoCon) also the 3x3
        convolutions of the residual, down- and up-sampling blocks; "loha" and "lokr" are Hadamard and Kronecker
        products on the layers of c3lier
    rank: columns of each pair of matrices, 1 or more
    alpha: the adapter's output is scaled by alpha / rank; above 0
    conv_rank, conv_alpha: the same for the 3x3 convolutions; 0 means rank and alpha
    element: "Full", or only "CrossAttention" or "SelfAttention" of each attention block
    blocks: ids of the blocks to adapt, as `choose_blocks` parses them
    dora: also trains the norm of each input's weights (DoRA); only with lierla and c3lier
    rs_lora: scales by alpha / sqrt(rank) instead (rsLoRA; Kalajdzievski 2023, arXiv 2312.03732)
    """

    network_type: str = "lierla"
    rank: int = 16
    alpha: float = 8.0
    conv_rank: int = 0
    conv_alpha: float = 0.0
    element: str = "Full"
    blocks: str = "all"
    rs_lora: bool = False
    dora: bool = False

    def __post_init__(self) -> None:
        _check_choice("network_type", self.network_type, NETWORK_TYPES)
        _check_choice("element", self.element, ELEMENTS)
        _check_least("rank", self.rank, 1)
        _check_above("alpha", self.alpha, 0)
        _check_least("conv_rank", self.conv_rank, 0)
        _check_least("conv_alpha", self.conv_alpha, 0)
        if self.dora and self.network_type not in ("lierla", "c3lier"):
            raise ValueError(
                f"dora is on and network_type is {self.network_type}: use lierla (LoRA) or c3lier (LoCon), or turn dora off."
            )
        if self.network_type == "lierla" and (self.conv_rank or self.conv_alpha):
            raise ValueError(
                "conv_rank and conv_alpha have no effect with network_type lierla (LoRA), which does not train the 3x3 "
                "convolutions: set them to 0, or use c3lier (LoCon), loha or lokr."
            )
        if self.element != "Full" and self.network_type == "c3lier":
            raise ValueError(
                f"element {self.element} excludes the convolutions, which are what network_type c3lier (LoCon) adds: use "
                "lierla (LoRA), or set element to Full."
            )

    def alpha_in_file(self, is_convolution: bool) -> float:
        """Return the alpha of a layer, 3x3 convolution or not, by which any program that divides it by the rank scales right."""
        rank, alpha = self.rank, self.alpha
        if is_convolution:
            rank, alpha = self.conv_rank or rank, self.conv_alpha or alpha
        return alpha * rank**0.5 if self.rs_lora else alpha


@dataclass(frozen=True)
class TrainingConfig:
    """Sets how a LoRA is trained. Raises ValueError for invalid values.

    steps: updates of the LoRA; 0 only for a method that starts from a closed form
    batch_size: examples per forward pass, 1 or more
    learning_rate: above 0
    seed: for all random numbers of the training, 0 or more
    optimizer, optimizer_settings: name, and `key=value` pairs for its constructor
    lr_scheduler, lr_scheduler_settings: name, and `key=value` pairs for its constructor
    warmup_steps: updates over which the learning rate rises from 0
    loss: "MSE", "L1" or "Smooth-L1", in the model's own prediction space
    snr_gamma: gamma of min-SNR weighting; 0 turns it off
    min_timestep, max_timestep: t is drawn from [min, max) of 1000
    fixed_timestep_in_batch: whether all examples of a batch share one t
    gradient_accumulation: batches per update, 1 or more
    max_grad_norm: gradients are clipped to this norm; 0 turns clipping off
    gradient_checkpointing: whether activations are recomputed in the backward pass to save memory
    text_encoder_learning_rate: for the layers of the text encoder; 0 means learning_rate
    precision: dtype that the model computes in, or "as loaded"; the LoRA's own weights are always float32
    save_every: the LoRA is saved to disk every so many steps; 0 saves it only at the end
    keep_gb: disk space in GB (10^9 bytes) that kept trainings may need
    ema_decay: decay of the average over the steps (EMA) that the LoRA then is, 0 to below 1; 0 turns it off
    offload: which frozen weights wait outside the device until their layer computes: "none", those of the "blocks", or "all";
        the last two need gradient_checkpointing
    lora_plus_ratio: learning rate of the weights that start at zero, as a multiple of that of the others; 1 turns LoRA+ off
    timesteps: distribution of t: "usual" is "logit-normal" for flow models and "uniform" for all others;
        "resolution shift" is logit-normal, shifted up for images larger than 1024x1024 and down for smaller ones
    noise_offset: standard deviation of what is added to each channel of the noise, for methods that learn images; 0 is off
    gradient_start: steps whose gradients a new LoRA's down weights start along, see GradientStart; 0 starts them at random
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
    keep_gb: float = 10.0
    ema_decay: float = 0.0
    offload: str = "none"
    lora_plus_ratio: float = 1.0
    timesteps: str = USUAL
    noise_offset: float = 0.0
    gradient_start: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "gradient_accumulation"):
            _check_least(name, getattr(self, name), 1)
        for name in (
            "steps",
            "warmup_steps",
            "snr_gamma",
            "max_grad_norm",
            "seed",
            "text_encoder_learning_rate",
            "save_every",
            "keep_gb",
            "noise_offset",
            "gradient_start",
        ):
            _check_least(name, getattr(self, name), 0)
        _check_above("learning_rate", self.learning_rate, 0)
        _check_above("lora_plus_ratio", self.lora_plus_ratio, 0)
        _check_choice("loss", self.loss, LOSSES)
        _check_choice("timesteps", self.timesteps, TIMESTEP_DISTRIBUTIONS)
        _check_choice("precision", self.precision, PRECISIONS)
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}: set it to 0, which turns it off, or to a value below 1.")
        _check_choice("offload", self.offload, OFFLOADS)
        if self.offload != "none" and not self.gradient_checkpointing:
            raise ValueError(
                f"offload is {self.offload}, but without gradient_checkpointing the backward pass keeps all weights on the "
                "device: turn on gradient_checkpointing, or set offload to none."
            )
        if not 0 <= self.min_timestep < self.max_timestep <= 1000:
            raise ValueError(
                f"The timesteps go from {self.min_timestep} to {self.max_timestep}: set min_timestep lower than "
                "max_timestep, and both between 0 and 1000."
            )
        if self.warmup_steps >= self.steps > 0:
            raise ValueError(
                f"warmup_steps is {self.warmup_steps} of {self.steps} steps, so the learning rate would never reach its "
                "value: lower warmup_steps."
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
