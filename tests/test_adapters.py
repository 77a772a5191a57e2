"""LoHa and LoKr against LyCORIS, which has them first hand."""

from __future__ import annotations

import lycoris.modules
import pytest
import torch
from pack.trainer.adapters import LoHaLayer, LoKrLayer, closest_factors
from torch import nn

LAYERS = {
    "linear": lambda: nn.Linear(24, 36, bias=False),
    "conv": lambda: nn.Conv2d(24, 36, 3, stride=2, padding=1, bias=False),
    "1x1": lambda: nn.Conv2d(24, 36, 1, bias=False),
    "prime": lambda: nn.Linear(13, 7, bias=False),
}
KINDS = {"loha": (LoHaLayer, lycoris.modules.LohaModule), "lokr": (LoKrLayer, lycoris.modules.LokrModule)}


def make(kind: str, layer: nn.Module, rank: int = 2, alpha: float = 1.0):
    """Our adapter, none of its weights zero, and LyCORIS' one with the same weights."""
    ours_class, theirs_class = KINDS[kind]
    ours = ours_class(layer, rank, alpha, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(std=0.3)
    theirs = theirs_class("layer", layer, multiplier=1.0, lora_dim=rank, alpha=alpha)
    tensors = ours.tensors()
    missing, unexpected = theirs.load_state_dict(tensors, strict=False)
    assert not unexpected and set(missing) <= {"scalar"}
    return ours, theirs


def inputs(layer: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    if isinstance(layer, nn.Linear):
        return torch.randn(2, 5, layer.in_features, generator=generator)
    return torch.randn(2, layer.in_channels, 7, 9, generator=generator)


@pytest.mark.parametrize("rank", [2, 6])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_output_is_that_of_lycoris(kind, name, rank):
    torch.manual_seed(0)
    layer = LAYERS[name]()
    ours, theirs = make(kind, layer, rank)
    weight = theirs.get_weight(layer.weight.shape) * 0.7  # its get_diff_weight scales twice
    x = inputs(layer)
    changed = LAYERS[name]()
    changed.weight.data = weight
    torch.testing.assert_close(ours(torch.zeros_like(changed(x)), x, 0.7), changed(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradients_are_those_of_lycoris(kind):
    torch.manual_seed(0)
    layer = LAYERS["conv"]()
    ours, theirs = make(kind, layer)
    x = inputs(layer)
    ours(torch.zeros_like(layer(x)), x, -0.5).square().sum().backward()
    weight = theirs.get_weight(layer.weight.shape) * -0.5
    torch.nn.functional.conv2d(x, weight, stride=2, padding=1).square().sum().backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[ours.names[name]].grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_adapter_adds_nothing_and_every_weight_can_learn(kind):
    layer = LAYERS["linear"]()
    adapter = KINDS[kind][0](layer, 2, 1.0, torch.Generator().manual_seed(0))
    x = inputs(layer)
    nothing = torch.zeros_like(layer(x))
    assert not adapter(nothing.clone(), x, 1.0).any()
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.1)
    for _ in range(2):  # the first step moves only what is zero
        optimizer.zero_grad()
        (adapter(nothing.clone(), x, 1.0) - 1).square().mean().backward()
        optimizer.step()
    assert all(parameter.grad.any() for parameter in adapter.parameters())


@pytest.mark.parametrize("number", [1, 7, 64, 320, 360, 640, 768, 1280, 2560, 3072])
def test_factors_are_those_of_lycoris(number):
    from lycoris.functional.general import factorization

    assert closest_factors(number) == factorization(number)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_full_matrices_have_the_rank_that_was_asked_for_unless_it_only_says_full(dtype):
    """ai-toolkit asks for a rank of 9999999999, which is the alpha then, in fp16 an infinite one."""
    layer = nn.Linear(24, 36, bias=False)
    for asked, rank in ((64, 64), (9999999999, 6)):
        theirs = lycoris.modules.LokrModule("layer", layer, multiplier=1.0, lora_dim=asked, alpha=1.0)
        with torch.no_grad():
            theirs.lokr_w2.normal_(std=0.3)
        tensors = {key: tensor.detach().to(dtype) for key, tensor in theirs.state_dict().items() if key != "scalar"}
        ours = LoKrLayer.like(layer, tensors)
        assert (ours.rank, ours.scale) == (rank, 1.0)
        x = inputs(layer)
        added = ours(layer(x), x, 1.0) - layer(x)
        expected = x @ torch.kron(tensors["lokr_w1"].float(), tensors["lokr_w2"].float()).T
        torch.testing.assert_close(added, expected, atol=1e-5, rtol=1e-4)
