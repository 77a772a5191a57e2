"""The start of a LoRA along the gradients of its first steps: against a gradient of the layer's own weight."""

from __future__ import annotations

import pytest
import torch
from pack.trainer.config import NetworkConfig, TrainingConfig
from pack.trainer.network import LoRANetwork
from pack.trainer.run import TrainingRun
from pack.trainer.state import load_state, save_state
from test_resume import assert_same, finish, make_run, stop
from tiny_host import TinyHost
from tiny_training import Fixed, make_training, train
from torch import nn

BATCHES = [[0, 1], [2, 3], [0, 2], [1, 3]]


def projector(rows: torch.Tensor) -> torch.Tensor:
    """Return the projection to the space of some rows (n, in): (in, in)."""
    return rows.T @ torch.linalg.pinv(rows.T)


def train_fixed(model, network, **settings) -> LoRANetwork:
    """Train for two steps that change next to nothing, after a start on the first two batches."""
    config = TrainingConfig(**{"steps": 2, "learning_rate": 1e-12, "seed": 7, "gradient_start": 2, **settings})
    train(model, network, Fixed(BATCHES), config)
    return network


def test_down_starts_in_the_row_space_of_the_sketched_gradient():
    model, network, _, _ = make_training()
    (adapter,) = network.children()
    norm = adapter.down.detach().norm(dim=1).mean()
    train_fixed(model, network)
    weight = model.blocks[0]["layer"].weight.requires_grad_()
    for batch in BATCHES[:2]:
        output = Fixed([batch]).run_step(model, network, 0, None)
        output.prediction.square().mean().backward()  # the target is zero, and at sigma 1 min-SNR weighs by 1
    up = torch.randn((4, 2), generator=torch.Generator().manual_seed(7))  # the first that the training's seed draws
    down = adapter.down.detach()
    torch.testing.assert_close(projector(down), projector(up.T @ weight.grad), atol=1e-5, rtol=0)
    torch.testing.assert_close(down @ down.T, norm**2 * torch.eye(2), atol=1e-6, rtol=1e-5)
    assert adapter.up.abs().max() < 1e-9


def test_the_gradients_of_every_step_count():
    """The same start from both batches as one step, by accumulation, and as two."""
    ones = []
    for settings in ({"gradient_start": 2}, {"gradient_start": 1, "gradient_accumulation": 2}):
        model, network, _, _ = make_training()
        ones.append(next(train_fixed(model, network, steps=1, **settings).children()).down.detach())
    torch.testing.assert_close(projector(ones[0]), projector(ones[1]), atol=1e-5, rtol=0)


def test_a_batch_whose_gradient_is_not_finite_is_left_out():
    model, network, _, _ = make_training()
    (adapter,) = network.children()
    fixed, clean = Fixed(BATCHES), make_training()
    original = fixed.run_step

    def run_step(*arguments):
        output = original(*arguments)
        if run_step.first:
            output.prediction.data[0] = torch.inf
        run_step.first = False
        return output

    run_step.first, fixed.run_step = True, run_step
    config = TrainingConfig(steps=1, learning_rate=1e-12, seed=7, gradient_start=2)
    train(model, network, fixed, config)
    train(clean[0], clean[1], Fixed(BATCHES[1:]), TrainingConfig(**{**vars(config), "gradient_start": 1}))
    torch.testing.assert_close(adapter.down, next(clean[1].children()).down, atol=1e-6, rtol=0)


def test_without_any_gradient_it_starts_as_usual():
    model, network, _, _ = make_training()
    (adapter,) = network.children()
    before = adapter.down.detach().clone()

    class Constant(Fixed):
        def run_step(self, *arguments):
            output = super().run_step(*arguments)
            if self.calls < 2:
                output.prediction.data.zero_()  # equal to the target
            self.calls += 1
            return output

    method = Constant(BATCHES)
    method.calls = 0
    train(model, network, method, TrainingConfig(steps=1, learning_rate=1e-12, seed=7, gradient_start=2))
    torch.testing.assert_close(adapter.down, before)


@pytest.mark.parametrize("method", ["LoRA", "LoRA on drawn captions", "iLECO", "LECO", "slider", "ADDifT"])
@pytest.mark.parametrize("last", [1, 20])
def test_a_training_with_it_resumes_bit_for_bit(method, last, tmp_path):
    straight, stopped, resumed = (make_run(method, gradient_start=3, gradient_accumulation=2) for _ in range(3))
    finish(straight)
    stop(stopped, last)
    save_state(tmp_path / "a.state", stopped.state(), {})
    resumed.load_state(load_state(tmp_path / "a.state"))
    finish(resumed)
    assert_same(resumed, straight)


def test_a_lora_that_has_learned_goes_on_from_its_weights():
    plain, asked = (make_run(gradient_start=count) for count in (0, 3))
    for run in (plain, asked):
        with torch.no_grad():
            next(run._network.children()).up.fill_(0.1)
        finish(run)
    assert_same(asked, plain)


def test_an_error_while_it_looks_leaves_no_random_weights():
    model, network, _, config = make_training(gradient_start=3)
    (adapter,) = network.children()
    before = adapter.down.detach().clone()
    with pytest.raises(StopIteration):  # Fixed has no more batches
        TrainingRun(model, network, Fixed([]), config)._start_along_gradients(3)
    assert not network.has_learned() and torch.equal(adapter.down, before)


@pytest.mark.parametrize("network", [NetworkConfig("lokr", 2, 2), NetworkConfig(rank=2, alpha=2, dora=True)])
def test_other_types_are_refused_in_a_sentence(network):
    model, _, method, config = make_training(gradient_start=2)
    layers = {"blocks.0.layer": model.blocks[0]["layer"]}
    made = LoRANetwork.create(layers, network, str, seed=0)
    with pytest.raises(ValueError, match="gradient_start is above 0 and LoRA Network makes no plain LoRA"):
        train(model, made, method, config)


@pytest.mark.parametrize("network", [NetworkConfig("loha", 2, 2), NetworkConfig(rank=2, alpha=2, dora=True)])
def test_a_node_refuses_other_types_before_it_encodes_anything(tmp_path, network):
    tiny = TinyHost(tmp_path)
    tiny.vae.encode = lambda pixels: pytest.fail("an image was encoded")
    with pytest.raises(ValueError, match="gradient_start is above 0"):
        tiny.train("LoRA", network=network, settings=TrainingConfig(gradient_start=2))


def test_a_rank_above_the_width_of_the_layer_keeps_the_rest_of_its_rows():
    model, _, _, _ = make_training()
    layers = {"blocks.0.layer": model.blocks[0]["layer"]}
    network = LoRANetwork.create(layers, NetworkConfig(rank=6, alpha=6), str, seed=3)
    (adapter,) = network.children()
    before = adapter.down.detach().clone()
    train_fixed(model, network)
    assert torch.equal(adapter.down[4:], before[4:]) and not torch.allclose(adapter.down[:4], before[:4])


def test_convolutions_have_it_too():
    layer = nn.Conv2d(3, 5, 3)
    network = LoRANetwork.create({"blocks.0.conv": layer}, NetworkConfig("c3lier", 2, 2), str, seed=0)
    (adapter,) = network.children()
    from pack.trainer.gradient_start import GradientStart

    start = GradientStart(network, torch.Generator().manual_seed(0))
    with network.injected():
        layer(torch.randn(1, 3, 8, 8)).square().sum().backward()
    sketch = adapter.down.grad.clone()
    assert start.add()
    start.finish()
    assert adapter.down.shape == (2, 3, 3, 3) and not adapter.up.any()
    torch.testing.assert_close(
        projector(adapter.down.detach().flatten(1)), projector(sketch.flatten(1)), atol=1e-5, rtol=0
    )
