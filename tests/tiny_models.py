"""Tiny models of the host's families with random weights, in files that the host's own loaders read and recognise."""

from __future__ import annotations

import zlib
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Iterator, NamedTuple

import comfy.ops
import comfy.sd
import comfy.supported_models
import torch
from comfy.ldm.anima import model as anima
from comfy.ldm.wan.vae import WanVAE
from comfy.taesd.taehv import TAEHV
from comfy.taesd.taesd import TAESD
from pack.nodes import host
from safetensors.torch import save_file
from tiny_families import FAMILIES, Family
from tiny_quantized import dequantized, quantize

WIDTH, HEIGHT = 48, 32  # unequal, so that the two are not mistaken for one another


class Loaded(NamedTuple):
    """A family's parts, as they are wired into nodes, and a picture."""

    name: str
    model: Any
    vae: Any
    picture: torch.Tensor  # (1, H, W, 3)

    def draw_latents(self, count: int) -> torch.Tensor:
        shape = host.latent_shape(self.model, WIDTH, HEIGHT)
        return torch.randn(count, *shape, generator=torch.Generator().manual_seed(5))

    def read_prompts(self, *prompts: tuple[str, int]) -> list:
        """Return what the trainer makes of prompts of a text and a number of tokens each."""
        return [host.read_conditioning(make_prompt(self.name, *prompt))[0] for prompt in prompts]


def load_family(
    name: str, folder: Path, quantized: bool | str = False, rounded: torch.dtype | str | None = None, **options: Any
) -> Loaded:
    picture = torch.rand(1, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(1))
    return Loaded(name, load_model(name, folder, quantized, options, rounded), load_vae(name), picture)


def load_model(
    name: str, folder: Path, quantized: bool | str, options: dict[str, Any], rounded: torch.dtype | str | None = None
) -> Any:
    """Return a MODEL of a family, out of a file in half precision, or quantized, that is gone again.

    quantized: a format of tiny_quantized, or True for 8 bits as files had them before the host's formats
    options: of the host's loader
    rounded: a type, or a format of tiny_quantized, that the weights are rounded to first
    """
    family, path = FAMILIES[name], folder / f"{name}.safetensors"
    weights = _draw_weights(network_shapes(family, family.sizes), name)
    if isinstance(rounded, str):
        weights = dequantized(weights, rounded)
    elif rounded is not None:
        weights = {key: tensor.to(rounded).float() for key, tensor in weights.items()}
    if isinstance(quantized, str):
        weights = quantize(weights, quantized)
    else:
        weights = _quantize(weights) if quantized else {key: tensor.half() for key, tensor in weights.items()}
    save_file({**weights, **{f"{family.prefix}{key}": tensor for key, tensor in family.markers.items()}}, path)
    with set_in_host(family), torch.inference_mode():  # as the executor loads it
        if family.prefix:
            model = comfy.sd.load_checkpoint_guess_config(str(path), False, False, model_options=options)[0]
        else:
            model = comfy.sd.load_diffusion_model(str(path), model_options=options)
    path.unlink()
    return model


def load_vae(name: str) -> Any:
    """Return a VAE that makes a family's latents: the host's tiny autoencoder, or Wan's or a tiny one for latents with frames.

    Latents of three channels are pixels.
    """
    family = FAMILIES[name]
    if family.latent == 3:
        return comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})
    with torch.device("meta"):
        if family.frames and family.latent != 16:
            network = TAEHV(latent_channels=family.latent)
        elif family.frames:
            sizes = {"dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "temperal_downsample": [False, True, True]}
            network = WanVAE(dim=8, z_dim=family.latent, attn_scales=[], dropout=0.0, **sizes)
        else:
            network = TAESD(latent_channels=family.latent)
    shapes = {key: tensor.shape for key, tensor in network.state_dict().items()}
    with torch.inference_mode():
        weights = _draw_weights(shapes, f"VAE of {name}")
        return comfy.sd.VAE(sd=weights, metadata={"tae_latent_channels": family.latent})


def make_prompt(name: str, text: str, tokens: int = 5) -> list:
    """Return a CONDITIONING as the family's text encoder makes it, of random numbers that depend on the text."""
    family, rng = FAMILIES[name], torch.Generator().manual_seed(zlib.crc32(text.encode()))
    extra: dict[str, Any] = {}
    with torch.inference_mode():
        tensor = torch.randn(1, tokens, family.text, generator=rng)
        if family.t5:
            extra["t5xxl_ids"] = torch.randint(1, 1000, (tokens,), generator=rng)
            extra["t5xxl_weights"] = torch.ones(tokens)
        if family.pooled:
            extra["pooled_output"] = torch.randn(1, family.pooled, generator=rng)
        extra |= {key: torch.randn(1, *shape, generator=rng) for key, shape in family.more.items()}
        if family.masked:
            extra["attention_mask"] = torch.tensor(
                [[1] * (tokens - 1) + [int(not family.padded)]]
            )  # the last is padding
    return [[tensor, extra]]


class TinyCLIP:
    """What a family's CLIP does in a training that leaves it alone."""

    cond_stage_model = None
    tokenizer = SimpleNamespace()

    def __init__(self, name: str) -> None:
        self._name = name

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens_scheduled(self, text: str) -> list:
        return make_prompt(self._name, text)

    def clone(self) -> TinyCLIP:
        return self


def network_shapes(family: Family, sizes: dict[str, Any]) -> dict[str, torch.Size]:
    """Return the shapes of a network's weights under their keys in a file of the family."""
    layers = comfy.ops.disable_weight_init
    with tiny_adapter(family if sizes is family.sizes else None):
        network = family.network(**sizes, device="meta", dtype=torch.float32, operations=layers)
    shapes = {}
    for key, tensor in network.state_dict().items():
        for ours, theirs in family.renamed.items():
            key = f"{key.removesuffix(ours)}{theirs}" if key.endswith(ours) else key
        shapes[f"{family.prefix}{key}"] = tensor.shape
    return shapes


@contextmanager
def set_in_host(family: Family) -> Iterator[None]:
    """Put a family's tiny sizes where the host has the real model's, until the block ends."""
    config = getattr(comfy.supported_models, family.config)
    before = config.unet_config, config.unet_extra_config
    config.unet_config, config.unet_extra_config = {**before[0], **family.matched}, {**before[1], **family.fixed}
    try:
        with tiny_adapter(family):
            yield
    finally:
        config.unet_config, config.unet_extra_config = before


@contextmanager
def tiny_adapter(family: Family | None) -> Iterator[None]:
    """Give Anima's network for prompts the family's tiny sizes, if it has such, until the block ends."""
    before = anima.LLMAdapter
    if family is not None and family.adapter:
        anima.LLMAdapter = partial(before, **family.adapter)
    try:
        yield
    finally:
        anima.LLMAdapter = before


def _quantize(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a network's weights as they are in files that hold those of its blocks in 8 bits with a scale each."""
    quantized = {"scaled_fp8": torch.zeros(1, dtype=torch.float8_e4m3fn)}  # says that the file is one of these
    for key, tensor in weights.items():
        if "blocks." in key and tensor.ndim == 2:
            scale = tensor.abs().max() / torch.finfo(torch.float8_e4m3fn).max
            quantized[key] = (tensor / scale).to(torch.float8_e4m3fn)
            quantized[f"{key.removesuffix('.weight')}.scale_weight"] = scale
        else:
            quantized[key] = tensor
    return quantized


def _draw_weights(shapes: dict[str, torch.Size], seed: str) -> dict[str, torch.Tensor]:
    """Draw weights that keep the scale of what goes through them; none is zero, so a sample depends on all."""
    rng = torch.Generator().manual_seed(zlib.crc32(seed.encode()))
    return {key: _draw_weight(key, shape, rng) for key, shape in shapes.items()}


def _draw_weight(key: str, shape: torch.Size, rng: torch.Generator) -> torch.Tensor:
    drawn = torch.randn(shape, generator=rng)
    if len(shape) > 1 and key.endswith(".weight"):
        return drawn / shape[1:].numel() ** 0.5
    if key == "vae_scale":
        return 0.1 + 0.01 * drawn  # latents of about unit variance: what leaves random layers varies less
    return 0.1 * drawn if key.endswith((".bias", "shift")) else 1 + 0.1 * drawn
