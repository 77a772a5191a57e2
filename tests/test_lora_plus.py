"""LoRA+: the weights that start at zero learn faster than the others, by a ratio."""

from __future__ import annotations

import pytest
import torch
from pack.trainer.config import NetworkConfig, TrainingConfig
from pack.trainer.network import LoRANetwork
from pack.trainer.optimizer import check_settings
from pack.trainer.run import TrainingRun
from peft import LoraConfig, inject_adapter_in_model
from peft.optimizers import create_loraplus_optimizer
from tiny_training import make_training, train
from torch import nn


def make_network(kind: str) -> LoRANetwork:
    layers = {"blocks.0.attn1": nn.Linear(64, 96), "blocks.0.conv": nn.Conv2d(32, 64, 3)}
    return LoRANetwork.create(layers, NetworkConfig(kind, rank=2, alpha=2), str, seed=0)


@pytest.mark.parametrize("kind", ["c3lier", "loha", "lokr"])
def test_the_weights_that_start_at_zero_get_a_multiple_of_the_learning_rate(kind):
    network = make_network(kind)
    plain, plus = network.parameter_groups(TrainingConfig(learning_rate=1e-3, lora_plus_ratio=16))
    assert (plain["lr"], plus["lr"]) == (1e-3, 16e-3)
    assert not any(weight.any() for weight in plus["params"]) and all(weight.any() for weight in plain["params"])
    assert len(plain["params"]) + len(plus["params"]) == len(list(network.parameters()))


def test_a_ratio_of_1_is_one_group_in_the_old_order():
    network = make_network("c3lier")
    (group,) = network.parameter_groups(TrainingConfig(learning_rate=1e-3))
    assert group["lr"] == 1e-3
    assert [id(weight) for weight in group["params"]] == [id(weight) for weight in network.parameters()]


def test_model_and_text_encoder_each_have_two_rates():
    """By hand: 1e-3 and 4 times that; half of it for the text encoder, and 4 times that."""
    layers = {"blocks.0.layer": nn.Linear(4, 4), "BASE.layer": nn.Linear(4, 4)}
    config = NetworkConfig(rank=2, alpha=2)
    network = LoRANetwork.create(layers, config, str, seed=0)
    groups = network.parameter_groups(
        TrainingConfig(learning_rate=1e-3, text_encoder_learning_rate=5e-4, lora_plus_ratio=4)
    )
    assert [group["lr"] for group in groups] == pytest.approx([1e-3, 4e-3, 5e-4, 2e-3])
    assert [[bool(weight.any()) for weight in group["params"]] for group in groups] == [[True], [False]] * 2


def test_the_rates_are_those_of_pefts_loraplus():
    """PEFT's lora_A is our down, its lora_B our up."""
    model = nn.ModuleDict({"layer": nn.Linear(4, 4)})
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["layer"]), model)
    theirs = create_loraplus_optimizer(model, torch.optim.AdamW, lr=2e-3, loraplus_lr_ratio=8)
    of_theirs = {id(weight): group["lr"] for group in theirs.param_groups for weight in group["params"]}
    expected = [of_theirs[id(weight)] for name, weight in model.named_parameters() if "lora_" in name]
    network = make_training()[1]
    groups = network.parameter_groups(TrainingConfig(learning_rate=2e-3, lora_plus_ratio=8))
    of_ours = {id(weight): group["lr"] for group in groups for weight in group["params"]}
    (adapter,) = network.children()
    assert [of_ours[id(adapter.down)], of_ours[id(adapter.up)]] == pytest.approx(expected) == [2e-3, 16e-3]


def test_training_is_torchs_own_adamw_with_two_rates():
    """The gradients of one step, by a loop of torch's parts, with both rates falling along one schedule."""
    settings = {"lora_plus_ratio": 4, "lr_scheduler": "linear", "snr_gamma": 0, "max_grad_norm": 0}
    model, network, method, config = make_training(steps=3, **settings)
    (adapter,) = network.children()
    up, down = (weight.detach().clone().requires_grad_() for weight in (adapter.up, adapter.down))
    twin_model, twin, twin_method, _ = make_training(steps=3, **settings)
    (twin_adapter,) = twin.children()
    optimizer = torch.optim.AdamW([{"params": [down], "lr": 1e-2}, {"params": [up], "lr": 4e-2}])
    rng = torch.Generator().manual_seed(config.seed)
    for step, share in enumerate((1, 2 / 3, 1 / 3)):
        twin_adapter.up.data, twin_adapter.down.data = up.detach().clone(), down.detach().clone()
        with twin.injected():
            output = twin_method.run_step(twin_model, twin, step, rng)
        ((output.prediction - output.target) ** 2).mean().backward()
        up.grad, down.grad = twin_adapter.up.grad, twin_adapter.down.grad
        for group, rate in zip(optimizer.param_groups, (1e-2, 4e-2)):
            group["lr"] = rate * share
        optimizer.step()
        twin_adapter.up.grad = twin_adapter.down.grad = None
    train(model, network, method, config)
    torch.testing.assert_close((adapter.up.detach(), adapter.down.detach()), (up.detach(), down.detach()))


def test_the_learning_rate_that_is_shown_is_that_of_the_slower_weights():
    run = TrainingRun(*make_training(steps=2, lora_plus_ratio=16, lr_scheduler="constant"))
    assert [step.learning_rate for step in run.steps()] == [1e-2, 1e-2]


@pytest.mark.parametrize("optimizer", ["Prodigy", "DAdaptAdam"])
def test_an_optimizer_with_one_step_size_refuses_a_ratio(optimizer):
    config = TrainingConfig(learning_rate=1.0, optimizer=optimizer, lora_plus_ratio=16)
    with pytest.raises(ValueError, match=f"{optimizer} .* would ignore a lora_plus_ratio of 16: set it to 1"):
        check_settings(config)


@pytest.mark.parametrize("ratio", [0.0, -1.0, float("nan")])
def test_a_ratio_that_is_not_above_0_is_refused(ratio):
    with pytest.raises(ValueError, match="lora_plus_ratio is .*: set it above 0"):
        TrainingConfig(lora_plus_ratio=ratio)
