"""The bridge to ComfyUI's models: the only module that knows them.

Everything the trainer needs is made here out of the host's MODEL, CLIP and VAE, and a trained LoRA goes back onto them.
"""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager, nullcontext
from typing import Any, Callable, Iterator, Sequence

import comfy.ldm.modules.attention
import comfy.model_management
import comfy.model_sampling
import comfy.sampler_helpers
import comfy.samplers
import comfy.sd
import comfy.supported_models
import comfy.utils
import torch

from ..trainer import denoiser
from ..trainer.blocks import choose_layers
from ..trainer.checkpointing import checkpointed
from ..trainer.config import NetworkConfig, TrainingConfig
from ..trainer.files import LoRAWeights, training_metadata
from ..trainer.loop import OnStep, train
from ..trainer.methods import Method
from ..trainer.network import LoRANetwork

# Parts of a CONDITIONING that steer sampling: where and when a prompt acts, and what other networks add.
SAMPLING_ONLY = {
    "area", "strength", "mask", "mask_strength", "set_area_to_bounds", "control", "control_apply_to_uncond", "hooks",
    "start_percent", "end_percent", "gligen", "default", "timestep_start", "timestep_end",
}  # fmt: skip

logger = logging.getLogger(__name__)

Patcher = Any  # comfy.model_patcher.ModelPatcher, the MODEL of a graph


class HostDenoiser:
    """A loaded MODEL as the trainer's Denoiser. Lives as long as one training."""

    def __init__(self, patcher: Patcher) -> None:
        self.device, self.dtype = patcher.load_device, patcher.model.get_dtype_inference()
        self.parameterization = _parameterization(patcher.model.model_sampling)
        self._model = patcher.model
        self._sigmas = _sigma_table(patcher.model.model_sampling).to(self.device)
        self._options = _transformer_options(patcher)
        self._model_conds: dict[tuple, dict] = {}

    def sigma_at(self, t: torch.Tensor) -> torch.Tensor:
        low = t.floor().long().clamp(max=len(self._sigmas) - 2)
        return torch.lerp(self._sigmas[low], self._sigmas[low + 1], t - low)

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return self._model.model_sampling.noise_scaling(
            sigma, noise.clone(), x0, False
        )  # adds into the noise it is given

    def predict(
        self, x_t: torch.Tensor, sigma: torch.Tensor, conditioning: Sequence[denoiser.Conditioning]
    ) -> torch.Tensor:
        conds = [self._encode(cond, x_t) for cond in conditioning]
        groups = _group_alike(conds)
        if len(groups) == 1:
            return self._predict_group(x_t, sigma, conds)
        parts = [self._predict_group(x_t[group], sigma[group], [conds[i] for i in group]) for group in groups]
        order = torch.tensor([i for group in groups for i in group], device=x_t.device)
        return torch.cat(parts)[order.argsort()]

    def _predict_group(self, x_t: torch.Tensor, sigma: torch.Tensor, conds: list[dict]) -> torch.Tensor:
        inputs = comfy.samplers.cond_cat(conds)
        x0 = self._model.apply_model(x_t, sigma, transformer_options=self._options, **inputs)
        return self.parameterization.target(x_t, x0, sigma)

    def _encode(self, conditioning: denoiser.Conditioning, x_t: torch.Tensor) -> dict:
        """Return what the network takes for a prompt at this size of latents, encoded once a run."""
        key = (id(conditioning), x_t.shape[1:])
        if key not in self._model_conds:
            x = x_t[:1].detach()
            entry = comfy.sampler_helpers.convert_cond([conditioning])
            entry = comfy.samplers.encode_model_conds(
                self._model.extra_conds,
                entry,
                x,
                self.device,
                "positive",
                latent_image=None,
                denoise_mask=None,
                seed=0,
                latent_shapes=[x.shape],
            )
            conds = entry[0]["model_conds"]
            self._model_conds[key] = {name: cond.process_cond(batch_size=1, area=None) for name, cond in conds.items()}
        return self._model_conds[key]


class HostTextEncoder:
    """A CLIP as the trainer's TextEncoder."""

    def __init__(self, clip: Any) -> None:
        self._clip = clip

    def encode(self, captions: Sequence[str]) -> list[denoiser.Conditioning]:
        with torch.inference_mode():
            encoded = {
                text: self._clip.encode_from_tokens_scheduled(self._clip.tokenize(text))[0]
                for text in dict.fromkeys(captions)
            }
        encoded = normal_tensors(encoded)
        return [encoded[text] for text in captions]


@contextmanager
def open_training(patcher: Patcher, gradient_checkpointing: bool) -> Iterator[tuple[HostDenoiser, torch.nn.Module]]:
    """Load a MODEL for training and give its Denoiser and the network inside it until the block ends.

    Whatever ends the block, the model is as it was: weights, flags, layers.
    """
    with torch.inference_mode(False), torch.enable_grad():
        if patcher.is_dynamic():  # its weights leave the device right after each layer, which autograd must not see
            patcher = _load_plain(patcher)
        # More memory than there is: every other model leaves the device.
        comfy.model_management.load_models_gpu([patcher], memory_required=1e20, force_full_load=True)
        _make_normal(patcher.model)
        patcher.pre_run()
        try:
            layers = patcher.model.diffusion_model
            with _training_flag(), checkpointed(layers) if gradient_checkpointing else nullcontext():
                yield HostDenoiser(patcher), layers
        finally:
            patcher.cleanup()


def train_lora(
    patcher: Patcher,
    network_config: NetworkConfig,
    config: TrainingConfig,
    method: Method,
    on_step: OnStep,
    keep: Callable[[LoRAWeights], object],
    labels: dict[str, str],
) -> tuple[LoRAWeights, list[float]]:
    """Train a new LoRA for a MODEL by a method; return its weights and the loss of each step.

    Where the training ends early, `keep` is given the LoRA so far. `labels` are added to its metadata.
    """
    started = time.time()
    with open_training(patcher, config.gradient_checkpointing) as (model, layers):
        network = LoRANetwork(layers, network_config, lora_key_of(patcher), config.seed)

        def trained() -> LoRAWeights:
            metadata = training_metadata(network_config, config, _base_model(patcher), started)
            return LoRAWeights(network.weights(), {**metadata, **labels})

        try:
            losses = train(model, network, method, config, on_step)
        except BaseException:  # cancelling is one, too
            keep(trained())
            raise
    return trained(), losses


def check_network(patcher: Patcher, config: NetworkConfig) -> None:
    """Raise ValueError if a network cannot be made for a MODEL, before anything is encoded for it."""
    choose_layers(patcher.model.diffusion_model, config)


def is_large(patcher: Patcher) -> bool:
    """Tell whether a MODEL is of SDXL's size or larger, for presets."""
    return not isinstance(patcher.model.model_config, (comfy.supported_models.SD15, comfy.supported_models.SD20))


def latent_shape(patcher: Patcher, width: int, height: int) -> tuple[int, ...]:
    """Return the shape of one picture's latent, (C, h, w) or (C, 1, h, w). Raises ValueError where the size does not fit."""
    layout = patcher.model.latent_format
    multiple = layout.spacial_downscale_ratio
    _check_multiple([(width, height)], multiple)
    frames = [1] * (layout.latent_dimensions - 2)
    return layout.latent_channels, *frames, height // multiple, width // multiple


def read_conditioning(conditioning: list) -> list[denoiser.Conditioning]:
    """Return the prompts in a CONDITIONING for the trainer. Warns of what training leaves out. Raises ValueError if empty."""
    if not conditioning:
        raise ValueError("A CONDITIONING without a prompt was given: wire a CLIP Text Encode.")
    left_out = sorted(set().union(*(extra for _, extra in conditioning)) & SAMPLING_ONLY)
    if left_out:
        logger.warning("Training reads the prompt alone and leaves out of a CONDITIONING: %s", ", ".join(left_out))
    return normal_tensors(
        [[tensor, {k: v for k, v in extra.items() if k not in SAMPLING_ONLY}] for tensor, extra in conditioning]
    )


def encode_images(vae: Any, patcher: Patcher, images: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Encode pictures (H, W, 3) in [0, 1] to latents (C, h, w) in the model's scale, on its device.

    Raises ValueError for a size that the VAE cannot take whole.
    """
    multiple = vae.spacial_compression_encode()
    _check_multiple([(image.shape[1], image.shape[0]) for image in images], multiple)
    with torch.inference_mode():
        latents = [vae.encode(image[None]) for image in images]
        channels, expected = latents[0].shape[1], patcher.model.latent_format.latent_channels
        if channels != expected:
            raise ValueError(
                f"The VAE makes latents of {channels} channels and the model takes {expected}: wire the VAE that "
                "belongs to the model."
            )
        latents = [patcher.model.process_latent_in(latent)[0] for latent in latents]
    return normal_tensors([latent.to(patcher.load_device, torch.float32) for latent in latents])


def lora_key_of(patcher: Patcher) -> Callable[[str], str]:
    """Return the function that names a layer of the network as kohya's files do, which every program reads."""
    renamed = {}
    if isinstance(patcher.model.model_config, (comfy.supported_models.SD15, comfy.supported_models.SD20)):
        names = comfy.utils.unet_to_diffusers(patcher.model.model_config.unet_config)
        renamed = {ours: theirs for theirs, ours in names.items()}
    return lambda layer: (
        "lora_unet_" + renamed.get(f"{layer}.weight", f"{layer}.weight").removesuffix(".weight").replace(".", "_")
    )


def with_lora(patcher: Patcher, lora: dict[str, torch.Tensor]) -> Patcher:
    """Return the MODEL with the LoRA on it at strength 1, as the host's own loader does.

    Raises RuntimeError if a layer of the LoRA has no place on the model.
    """
    patched, _ = comfy.sd.load_lora_for_models(patcher, None, lora, 1.0, 0.0)
    layers = sum(key.endswith(".alpha") for key in lora)
    placed = sum(len(patches) - len(patcher.patches.get(key, ())) for key, patches in patched.patches.items())
    if placed != layers:
        raise RuntimeError(
            f"The host put {placed} of the LoRA's {layers} layers on the model: the LoRA is of another model, or "
            "this ComfyUI names the model's layers differently."
        )
    return patched


def normal_tensors(value: Any) -> Any:
    """Copy every tensor in a value so that autograd takes it: the executor runs nodes in inference mode."""
    if isinstance(value, torch.Tensor):
        with torch.inference_mode(False):
            return value.clone()
    if isinstance(value, dict):
        return {key: normal_tensors(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(normal_tensors(item) for item in value)
    return value


def _check_multiple(sizes: Sequence[tuple[int, int]], multiple: int) -> None:
    odd = sorted({f"{width}x{height}" for width, height in sizes if width % multiple or height % multiple})
    if odd:
        raise ValueError(
            f"Pictures of {', '.join(odd)} do not fit this model, whose latents stand for {multiple}x{multiple} pixels: "
            f"make width and height multiples of {multiple} (for a folder, the frame and buckets_step in Bucket Images)."
        )


def _base_model(patcher: Patcher) -> str:
    """Name the model's family as kohya's files do where they have a name, else as the host does."""
    family = type(patcher.model.model_config).__name__
    return {"SD15": "sd_v1", "SD20": "sd_v2", "SDXL": "sdxl_base_v1-0"}.get(family, family.lower())


def _parameterization(sampling: Any) -> denoiser.Parameterization:
    kinds = {
        comfy.model_sampling.CONST: denoiser.FlowPrediction,
        comfy.model_sampling.V_PREDICTION: denoiser.VPrediction,
        comfy.model_sampling.EPS: denoiser.NoisePrediction,
    }
    odd = (comfy.model_sampling.EDM, comfy.model_sampling.X0, comfy.model_sampling.IMG_TO_IMG_FLOW)
    for kind, ours in kinds.items():
        if isinstance(sampling, kind) and not isinstance(sampling, odd):
            return ours()
    raise ValueError(
        f"This model's prediction ({type(sampling).__mro__[1].__name__} and {type(sampling).__mro__[2].__name__}) is "
        "none that can be trained: take a model that predicts noise, v, or a flow's velocity."
    )


def _sigma_table(sampling: Any) -> torch.Tensor:
    """Return the noise levels of the timesteps 0 to 1000."""
    if isinstance(sampling, comfy.model_sampling.CONST):
        return torch.tensor(
            [sampling.percent_to_sigma(1 - t / denoiser.TIMESTEPS) for t in range(denoiser.TIMESTEPS + 1)]
        )
    t = torch.arange(denoiser.TIMESTEPS + 1, dtype=torch.float32)
    return sampling.sigma(t.clamp(max=denoiser.TIMESTEPS - 1)).float().cpu().clone()


def _transformer_options(patcher: Patcher) -> dict:
    """Copy the options that other nodes left on the MODEL, and take attention that autograd is fast with."""
    options = patcher.model_options.get("transformer_options", {}).copy()
    options["optimized_attention_override"] = _attention
    return options


def _attention(
    _: Callable, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *args: Any, **options: Any
) -> torch.Tensor:
    # On the CPU the backward pass of torch's fused attention is several times slower than that of plain products.
    plain = q.device.type == "cpu"
    attend = comfy.ldm.modules.attention.attention_basic if plain else comfy.ldm.modules.attention.attention_pytorch
    return attend(q, k, v, *args, **options)


def _group_alike(conds: Sequence[dict]) -> list[list[int]]:
    """Sort examples into groups whose conditions the host can concatenate."""
    groups: list[list[int]] = []
    for i, cond in enumerate(conds):
        for group in groups:
            if comfy.samplers.cond_equal_size(conds[group[0]], cond):
                group.append(i)
                break
        else:
            groups.append([i])
    return groups


def _load_plain(patcher: Patcher) -> Patcher:
    """Load the model's file again without the host's dynamic memory, the LoRAs of the MODEL on it."""
    if patcher.cached_patcher_init is None:
        raise ValueError(
            "This MODEL comes from a node that cannot load it again, as training needs with ComfyUI's dynamic memory: "
            "load it with Load Checkpoint or Load Diffusion Model, or start ComfyUI with --disable-dynamic-vram."
        )
    return patcher.clone(disable_dynamic=True)


@torch.no_grad()
def _make_normal(model: torch.nn.Module) -> None:
    """Exchange the parameters and buffers that were made in inference mode for copies, one at a time.

    Autograd refuses inference tensors. The values stay the same, and no more than one tensor is held twice.
    """
    copies: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and tensor.is_inference():
                    if id(tensor) not in copies:
                        copy = tensor.clone()
                        copies[id(tensor)] = torch.nn.Parameter(copy, False) if tensors is module._parameters else copy
                    tensors[name] = copies[id(tensor)]


@contextmanager
def _training_flag() -> Iterator[None]:
    """Keep the host from fused kernels that go past the layers, and with them past the adapters."""
    before = comfy.model_management.in_training
    comfy.model_management.in_training = True
    try:
        yield
    finally:
        comfy.model_management.in_training = before
