"""What the trainer gets from a model of every family: noise levels, predictions and their gradients."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import Any, Callable, Iterator

import comfy.model_detection
import pytest
import torch
from pack.nodes import host
from pack.trainer.blocks import choose_layers
from pack.trainer.config import NetworkConfig, TrainingConfig
from pack.trainer.network import LoRANetwork
from tiny_families import FAMILIES, Family
from tiny_models import HEIGHT, WIDTH, Loaded, load_family, make_prompt, network_shapes, set_in_host

pytestmark = pytest.mark.usefixtures("one_thread")

T = torch.tensor([50.0, 500.0, 950.0])
# The shift of a flow's noise levels, and the network's time at sigma 1.
FLOW = {
    "SD3": (3.0, 1000),
    "Flux": (math.exp(1.15), 1),
    "Flux2": (math.exp(2.02), 1),
    "Chroma": (math.exp(1.15), 1),
    "Lumina2": (6.0, 1),
    "Z-Image": (3.0, 1),
    "Qwen-Image": (math.exp(1.15), 1),
    "Wan": (8.0, 1000),
    "Anima": (3.0, 1),
    "Krea 2": (math.exp(1.15), 1),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory) -> Loaded:
    return load_family(request.param, tmp_path_factory.mktemp("model"))


def published_sigmas(name: str) -> torch.Tensor:
    """Return the noise levels at T as the family's makers have them."""
    if name in FLOW:
        shift, t = FLOW[name][0], T.double() / 1000
        return shift * t / (1 + (shift - 1) * t)
    kept = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
    return ((1 - kept) / kept).sqrt()[T.long()]


def network_output(family: Loaded, x_t: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Return what the network itself says, given what its makers feed it, out of training."""
    network, ((tensor, extra),) = family.model.model.diffusion_model, make_prompt(family.name, "red")
    context = tensor.clone().expand(len(T), -1, -1)
    if family.name == "Flux2":  # padded in front to the length that it was trained with
        context = torch.cat([torch.zeros(len(T), 512 - context.shape[1], context.shape[2]), context], 1)
    inputs = network_inputs(family.name, {name: value.clone() for name, value in extra.items()})
    wide = sigma.view(-1, *[1] * (x_t.ndim - 1))
    x, time = (x_t, sigma * FLOW[family.name][1]) if family.name in FLOW else (x_t / (wide**2 + 1).sqrt(), T)
    return network(x, time, context=context, transformer_options={}, **inputs)


def network_inputs(name: str, extra: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Return what a network takes beside latents, time and tokens."""
    inputs: dict[str, Any] = {}
    if name in ("SD3", "Flux"):
        inputs["y"] = extra["pooled_output"].expand(len(T), -1)
    if name == "SDXL":
        sizes = torch.tensor([HEIGHT, WIDTH, 0, 0, HEIGHT, WIDTH]).float()  # of the picture, its corner, its target
        angles = sizes[:, None] * torch.exp(-math.log(10000) * torch.arange(128) / 128)
        embedded = torch.cat([angles.cos(), angles.sin()], 1).flatten()[None]
        inputs["y"] = torch.cat([extra["pooled_output"], embedded], 1).expand(len(T), -1)
    if name in ("Flux", "Flux2", "Chroma"):
        inputs["guidance"] = torch.full((len(T),), 0.0 if name == "Chroma" else 3.5)
    if name in ("Lumina2", "Z-Image"):
        inputs["num_tokens"] = int(extra["attention_mask"].sum())
    if "t5xxl_ids" in extra:
        inputs["t5xxl_ids"] = extra["t5xxl_ids"][None].expand(len(T), -1)
        inputs["t5xxl_weights"] = extra["t5xxl_weights"][None, :, None].expand(len(T), -1, 1)
    if "attention_mask" in extra:
        inputs["attention_mask"] = extra["attention_mask"].expand(len(T), -1)
    return inputs


def test_noise_levels_are_the_published_ones(family):
    with host.open_model(family.model) as (denoiser, _):
        sigma, noise, x0 = denoiser.sigma_at(T), family.draw_latents(3), family.draw_latents(3).flip(0)
        torch.testing.assert_close(sigma.double(), published_sigmas(family.name), rtol=1e-4, atol=1e-5)
        wide = sigma.view(-1, *[1] * (x0.ndim - 1))
        kept = 1 - wide if family.name in FLOW else 1
        torch.testing.assert_close(denoiser.add_noise(x0, noise, sigma), kept * x0 + wide * noise)


def test_a_prediction_is_the_networks_own_output(family):
    with host.open_model(family.model) as (denoiser, _), torch.no_grad():
        sigma = denoiser.sigma_at(T)
        x_t = denoiser.parameterization.scale_noise(family.draw_latents(3), sigma)
        ours = denoiser.predict(x_t, sigma, family.read_prompts(*[("red", 5)] * 3))
    with torch.no_grad():
        theirs = network_output(family, x_t, sigma)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * theirs.abs().max().item())


def test_prompts_of_several_lengths_in_a_batch_are_as_many_single_predictions(family):
    prompts = family.read_prompts(("red", 6), ("blue", 12), ("green", 7), ("gray", 6))
    with host.open_model(family.model) as (denoiser, _), torch.no_grad():
        sigma = denoiser.sigma_at(torch.tensor([100.0, 300.0, 600.0, 900.0]))
        x_t = denoiser.parameterization.scale_noise(family.draw_latents(4), sigma)
        together = denoiser.predict(x_t, sigma, prompts)
        single = [denoiser.predict(x_t[i : i + 1], sigma[i : i + 1], prompts[i : i + 1]) for i in range(4)]
        swapped = denoiser.predict(x_t, sigma, prompts[::-1])
    torch.testing.assert_close(together, torch.cat(single), rtol=1e-4, atol=1e-4)
    assert (swapped - together).abs().flatten(1).amax(1).min() > 1e-3  # each prompt matters


@contextmanager
def adapted(family: Loaded, strength: float, checkpointing: bool) -> Iterator[tuple[LoRANetwork, Callable]]:
    """Give a LoRA that works on the model, and a function that boils a prediction down to one number."""
    config, rng = NetworkConfig(rank=2), torch.Generator().manual_seed(2)
    with host.open_model(family.model, TrainingConfig(gradient_checkpointing=checkpointing)) as (denoiser, layers):
        network = LoRANetwork.create(choose_layers(layers, config), config, host.lora_key_of(family.model), seed=1)
        for parameter in network.parameters():
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=rng)
        x_t, sigma = family.draw_latents(2), denoiser.sigma_at(T[:2])
        prompts = family.read_prompts(("red", 5), ("blue", 5))
        with network.injected(), network.scaled(strength):
            yield network, lambda: (denoiser.predict(x_t, sigma, prompts) * x_t.flip(0)).sum()


def gradients(family: Loaded, strength: float, checkpointing: bool) -> list[torch.Tensor | None]:
    with adapted(family, strength, checkpointing) as (network, number):
        number().backward()
        return [parameter.grad for parameter in network.parameters()]


@pytest.mark.parametrize("strength", [1.0, -0.5])
def test_checkpointing_changes_no_gradient(family, strength):
    kept, recomputed = (gradients(family, strength, checkpointing) for checkpointing in (False, True))
    assert sum(gradient is not None and gradient.any() for gradient in kept) > len(kept) / 2
    for one, other in zip(kept, recomputed, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5 * one.abs().max().item())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_at_strength_zero_there_is_no_gradient(family, checkpointing):
    with adapted(family, 0.0, checkpointing) as (_, number):
        assert not number().requires_grad


def test_a_step_along_the_gradient_gains_what_the_gradient_says(family):
    with adapted(family, 1.0, False) as (network, number):
        number().backward()
        moved = [parameter for parameter in network.parameters() if parameter.grad is not None]
        length = torch.nn.utils.get_total_norm([parameter.grad for parameter in moved])
        values = []
        with torch.no_grad():
            for step in (2e-4, -4e-4):  # to either side
                for parameter in moved:
                    parameter += step * parameter.grad / length
                values.append(number())
    torch.testing.assert_close((values[0] - values[1]) / 4e-4, length, rtol=1e-2, atol=0)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.real])
def test_of_the_real_sizes_the_host_makes_the_same_but_for_these_sizes(name):
    family = FAMILIES[name]
    real = detect(family, family.sizes | family.real)
    with set_in_host(family):
        tiny = detect(family, family.sizes)
    assert type(tiny).__name__ == type(real).__name__ == family.config
    settings = tiny.unet_config, real.unet_config
    differing = {key for key in settings[0] | settings[1] if settings[0].get(key) != settings[1].get(key)}
    assert differing <= family.fixed.keys() | family.real.keys()
    assert all(real.unet_config.get(key, size) == size for key, size in family.real.items())


def detect(family: Family, sizes: dict[str, Any]) -> Any:
    """Return what the host makes of a file with a network of these sizes."""
    shapes = network_shapes(family, sizes)
    weights = {key.removeprefix(family.prefix): torch.empty(shape, device="meta") for key, shape in shapes.items()}
    return comfy.model_detection.model_config_from_unet(weights, "")
