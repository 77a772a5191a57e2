"""DoRA against the host's patch, LyCORIS and autograd, in training, in files and resumed."""

from __future__ import annotations

import comfy.lora
import lycoris.modules
import pytest
import torch
import torch.nn.functional as F
from pack.nodes import host
from pack.trainer.adapter_types import adapter_from_weights, create_adapter
from pack.trainer.blocks import choose_layers
from pack.trainer.config import NetworkConfig, TrainingConfig
from pack.trainer.dora import DoRALayer
from pack.trainer.lora_file import LoRAWeights, save_lora
from pack.trainer.network import LoRANetwork
from safetensors.torch import load_file
from test_network import TinyUNet
from tiny_host import TinyHost
from torch import nn

LAYERS = {
    "linear": lambda: nn.Linear(12, 18),
    "square": lambda: nn.Linear(12, 12),
    "conv": lambda: nn.Conv2d(12, 18, 3, stride=2, padding=1),
    "1x1": lambda: nn.Conv2d(12, 18, 1),
}
DORA = NetworkConfig(rank=3, alpha=2.0, dora=True)
SETTINGS = TrainingConfig(lr_scheduler="constant")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> TinyHost:
    return TinyHost(tmp_path_factory.mktemp("models"))


def make(name: str) -> tuple[nn.Module, DoRALayer, torch.Tensor]:
    """Return a layer, its DoRA of which no weight is as initialized, and an input."""
    torch.manual_seed(3)
    layer = LAYERS[name]().requires_grad_(False)
    adapter = DoRALayer(layer, 3, 2.0, torch.Generator().manual_seed(0))
    adapter.up.data.normal_(std=0.3)
    adapter.magnitude.data *= 1 + 0.2 * torch.randn(adapter.magnitude.shape)
    x = torch.randn(2, 5, 12) if isinstance(layer, nn.Linear) else torch.randn(2, 12, 7, 9)
    return layer, adapter, x


def run(layer: nn.Module, adapter: DoRALayer, x: torch.Tensor, strength: float = 1.0) -> torch.Tensor:
    x = adapter.scale_input(layer, x, strength)
    return adapter(layer(x), x, strength)


def apply_weight(layer: nn.Module, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, layer.bias)
    return F.conv2d(x, weight, layer.bias, layer.stride, layer.padding)


def patched(layer: nn.Module, tensors: dict[str, torch.Tensor], strength: float = 1.0) -> torch.Tensor:
    """Return the weight that the host makes of a layer and what a LoRA file has for it."""
    lora = {f"layer.{name}": tensor for name, tensor in tensors.items()}
    patch = comfy.lora.load_lora(lora, {"layer": "layer.weight"})["layer.weight"]
    patches = [(strength, patch, 1.0, None, None)]
    return comfy.lora.calculate_weight(patches, layer.weight.detach().clone(), "layer.weight")


@pytest.mark.parametrize("strength", [1.0, 0.25, -0.25, -1.0, 2.0])
@pytest.mark.parametrize("name", LAYERS)
def test_the_output_in_training_is_that_of_the_host_s_patch(name, strength):
    layer, adapter, x = make(name)
    expected = apply_weight(layer, patched(layer, adapter.tensors(), strength), x)
    torch.testing.assert_close(run(layer, adapter, x, strength), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_the_output_is_that_of_lycoris_at_strength_1(name):
    """At others the two differ: LyCORIS multiplies the product before it takes the norm, the host what has changed."""
    layer, adapter, x = make(name)
    theirs = lycoris.modules.LoConModule(
        "layer", layer, multiplier=1.0, lora_dim=3, alpha=2.0, weight_decompose=True, wd_on_out=False
    )
    missing, unexpected = theirs.load_state_dict(adapter.tensors(), strict=False)
    assert not unexpected and set(missing) <= {"scalar"} and theirs.dora_scale.shape == adapter.magnitude.shape
    ours = run(layer, adapter, x)
    theirs.apply_to()
    torch.testing.assert_close(ours, layer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strength", [1.0, -0.5])
@pytest.mark.parametrize("name", LAYERS)
def test_the_gradients_are_those_of_autograd_on_the_formula(name, strength):
    layer, adapter, x = make(name)
    x.requires_grad_()
    run(layer, adapter, x, strength).square().sum().backward()
    up, down, magnitude, twin = (
        tensor.detach().clone().requires_grad_() for tensor in (adapter.up, adapter.down, adapter.magnitude, x)
    )
    merged = layer.weight + (up.flatten(1) @ down.flatten(1) * 2 / 3).view(layer.weight.shape)
    others = [dimension for dimension in range(merged.ndim) if dimension != 1]
    merged = merged * magnitude / merged.square().sum(others, keepdim=True).sqrt()
    weight = layer.weight + strength * (merged - layer.weight)
    apply_weight(layer, weight, twin).square().sum().backward()
    for ours, theirs in ((adapter.up, up), (adapter.down, down), (adapter.magnitude, magnitude), (x, twin)):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", LAYERS)
def test_a_new_dora_changes_nothing_bit_for_bit(name):
    layer, _, x = make(name)
    adapter = DoRALayer(layer, 3, 2.0, torch.Generator().manual_seed(0))
    assert torch.equal(run(layer, adapter, x), layer(x)) and not adapter.has_learned()


def test_an_input_whose_weights_are_all_zero_stays_finite():
    layer, _, x = make("linear")
    layer.weight.data[:, 2] = 0
    adapter = DoRALayer(layer, 3, 2.0, torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        run(layer, adapter, x).square().mean().backward()
        assert all(parameter.grad.isfinite().all() for parameter in adapter.parameters())
        optimizer.step()


def test_positive_and_negative_strengths_are_exact_opposites():
    """So the methods that train both signs can train a DoRA."""
    layer, adapter, x = make("linear")
    up, down = (run(layer, adapter, x, strength) - layer(x) for strength in (0.25, -0.25))
    torch.testing.assert_close(up, -down, rtol=1e-4, atol=1e-5)


def test_the_hooks_of_a_network_run_it_and_leave_nothing_behind():
    unet, x = TinyUNet().requires_grad_(False), torch.randn(2, 4, 8, 8)
    bare = unet(x)
    config = NetworkConfig("c3lier", rank=2, alpha=2.0, dora=True)
    network = LoRANetwork.create(choose_layers(unet, config), config, str, seed=1)
    with network.injected():
        assert torch.equal(unet(x), bare)
        for parameter in network.parameters():
            parameter.data += 0.2 * torch.rand(parameter.shape)
        full = unet(x)
        with network.scaled(0.0):
            assert torch.equal(unet(x), bare)
    assert torch.equal(unet(x), bare) and not torch.allclose(full, bare, atol=1e-2)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in unet.modules())
    copy = TinyUNet().requires_grad_(False)
    weights = {name: adapter.tensors() for name, adapter in network._adapters.items()}
    for name, module in copy.named_modules():
        if name in weights:
            module.weight.data = patched(module, weights[name])
    torch.testing.assert_close(copy(x), full, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", ["LoRA", "iLECO", "ADDifT", "copy machine"])
def test_a_training_gives_a_file_that_the_host_applies_as_it_was_trained(tiny, tmp_path, method):
    model, *_, lora, loss = tiny.train(method, network=DORA, steps=4, settings=SETTINGS)
    scales = {key: tensor for key, tensor in lora.items() if key.endswith(".dora_scale")}
    assert scales and len(scales) == sum(key.endswith("lora_up.weight") for key in lora)
    assert all(tensor.shape[0] == 1 for tensor in scales.values())
    save_lora(tmp_path / "a.safetensors", lora, "bf16", 1.0, lora.metadata)
    saved = load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(saved[key], tensor) for key, tensor in scales.items())  # not rounded
    x_t, sigma = tiny.family.draw_latents(1), torch.tensor([0.7])
    prompts = host.read_conditioning(tiny.prompt)
    job = tiny.job(method, network=None, lora=LoRAWeights(dict(lora)))
    with host.open_session(job, lambda session: None) as session, torch.no_grad():
        with session._network.injected(), session._run.eval_weights():
            trained = session._model.predict(x_t, sigma, prompts).clone()
    with host.open_model(host.with_lora(job.model, lora)) as (denoiser, _), torch.no_grad():
        applied = denoiser.predict(x_t, sigma, prompts)
    with host.open_model(job.model) as (denoiser, _), torch.no_grad():
        bare = denoiser.predict(x_t, sigma, prompts)
    assert (trained - applied).abs().max() < 0.1 * (trained - bare).abs().max()  # the weights of the host are fp16


def test_four_and_four_steps_are_eight(tiny):
    straight, first = (tiny.train("LoRA", network=DORA, settings=SETTINGS, steps=steps)[2] for steps in (8, 4))
    second = tiny.train("LoRA", network=None, lora=first, settings=SETTINGS, steps=8)[2]
    assert straight.keys() == second.keys() and all(torch.equal(straight[key], second[key]) for key in straight)
    other = tiny.train("LoRA", network=DORA, lora=first, settings=SETTINGS, steps=8, resume="weights only")[2]
    assert other.keys() == first.keys() and any(not torch.equal(other[key], first[key]) for key in first)


def test_only_the_form_with_a_norm_per_output_is_refused(tiny):
    lora = dict(tiny.train("LoRA", network=DORA, steps=2)[2])
    key = next(key for key in lora if key.endswith("dora_scale"))
    lora[key] = torch.ones(len(lora[key.replace("dora_scale", "lora_up.weight")]), 1)
    with pytest.raises(ValueError, match=r"because it is a DoRA \(.*dora_scale\): put it on the model"):
        tiny.train("LoRA", network=None, lora=LoRAWeights(lora))
    plain = tiny.train("LoRA", steps=2)[2]
    with pytest.raises(ValueError, match="instead of .*dora_scale"):
        tiny.train("LoRA", network=NetworkConfig(rank=4, alpha=4, dora=True), lora=plain, seed=9)


def test_a_difference_is_no_dora(tiny):
    """Its norms would be those of the model with the copy machine on it, and the file is for the model without."""
    with pytest.raises(ValueError, match="Train Difference cannot train a DoRA.*turn off dora"):
        tiny.train("difference", network=DORA)
    dora = tiny.train("LoRA", network=DORA, settings=SETTINGS, steps=2)[2]
    with pytest.raises(ValueError, match="connect no DoRA to lora"):
        tiny.train("difference", network=None, lora=dora)


def test_settings_that_do_not_go_together_are_refused():
    for network_type in ("loha", "lokr"):
        with pytest.raises(ValueError, match=f"dora is on and network_type is {network_type}"):
            NetworkConfig(network_type, dora=True)


def test_rs_lora_and_dora_go_together():
    layer = LAYERS["linear"]()
    config = NetworkConfig(rank=4, alpha=2.0, dora=True, rs_lora=True)
    adapter = create_adapter(layer, config, torch.Generator().manual_seed(0))
    assert isinstance(adapter, DoRALayer) and adapter.alpha == 4.0
    adapter.up.data.normal_()
    again = adapter_from_weights(layer, adapter.tensors())
    x = torch.randn(2, 12)
    torch.testing.assert_close(run(layer, again, x), run(layer, adapter, x))


@pytest.mark.parametrize("name", ["float8_e4m3fn", "convrot_w4a4"])
def test_a_quantized_layer_has_the_norms_of_its_dequantized_weight(tmp_path, name):
    settings = {"network": DORA, "settings": SETTINGS, "steps": 2}
    quantized, exact = TinyHost(tmp_path, "Flux", quantized=name), TinyHost(tmp_path, "Flux", rounded=name)
    ours, theirs = quantized.train("LoRA", **settings)[2], exact.train("LoRA", **settings)[2]
    scales = [key for key in ours if key.endswith(".dora_scale")]
    assert scales and ours.keys() == theirs.keys()
    for key in scales:  # two steps move them by twice the learning rate at most
        torch.testing.assert_close(ours[key], theirs[key], rtol=0.01, atol=0.045)
    assert quantized.sample().isfinite().all()
