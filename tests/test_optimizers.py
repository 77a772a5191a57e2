"""Optimizers by name: that each trains, at the rates it is given, and what is refused."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from pack.nodes import NODES
from pack.trainer.config import TrainingConfig
from pack.trainer.optimizer import OPTIMIZERS, check_settings, create_optimizer
from pack.trainer.settings_text import read_settings
from torch import nn

# A learning rate, and settings, with which ten steps show something.
RATES = {
    "AdamW": (0.01, ""),
    "Adam": (0.01, ""),
    "SGDNesterov": (0.1, ""),
    "AdaFactor": (0.01, ""),
    "AdamMini": (0.01, ""),
    "CAME": (0.001, ""),
    "Lion": (0.01, ""),
    "Tiger": (0.01, ""),
    "Prodigy": (1.0, ""),
    "DAdaptAdam": (1.0, ""),
    "DAdaptLion": (1.0, "d0=1e-3"),
    "DAdaptAdaGrad": (1.0, "d0=1e-2"),
    "DAdaptAdan": (0.01, "d0=1e-2"),
    "DAdaptSGD": (1.0, "d0=1e-2"),
    "AdamWScheduleFree": (0.01, ""),
    "RAdamScheduleFree": (0.1, ""),
    "SGDScheduleFree": (0.5, ""),
    "AdamW8bit": (0.01, ""),
    "Adam8bit": (0.01, ""),
    "SGDNesterov8bit": (0.1, ""),
    "Lion8bit": (0.01, ""),
    "PagedAdamW": (0.01, ""),
    "PagedAdamW8bit": (0.01, ""),
    "PagedAdamW32bit": (0.01, ""),
    "PagedLion8bit": (0.01, ""),
}
FIND_THEIR_RATE = ["Prodigy", "DAdaptAdam", "DAdaptLion", "DAdaptAdaGrad", "DAdaptAdan", "DAdaptSGD"]
BITSANDBYTES = [name for name in RATES if name.endswith("8bit") or name.startswith("Paged")]


def make_config(optimizer: str, learning_rate: float = 1.0, settings: str = "", **others) -> TrainingConfig:
    names = {"optimizer": optimizer, "optimizer_settings": settings, "lr_scheduler": "constant"}
    return TrainingConfig(learning_rate=learning_rate, **names | others)


def make_problem() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Return two linear layers, and inputs and outputs for them to learn."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8)), torch.randn(64, 8), torch.randn(64, 8)


def descend(model, optimizer, x, y) -> list[float]:
    losses = []
    for _ in range(10):
        loss = ((model(x) - y) ** 2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_the_rows_are_the_optimizers():
    assert set(RATES) == set(OPTIMIZERS)


@pytest.mark.parametrize("name", RATES)
def test_ten_steps_of_every_optimizer_lower_the_loss(name):
    model, x, y = make_problem()
    losses = descend(model, create_optimizer(make_config(name, *RATES[name]), list(model.parameters())), x, y)
    assert losses[-1] < 0.99 * losses[0]


@pytest.mark.parametrize("name", [name for name in RATES if name not in FIND_THEIR_RATE])
def test_each_group_is_trained_at_its_own_rate(name):
    def distances(share: float) -> list[float]:
        """Return how far the two layers go if the second has this share of the learning rate."""
        model, x, y = make_problem()
        config = make_config(name, *RATES[name])
        layers, rates = (model[0], model[2]), (config.learning_rate, config.learning_rate * share)
        groups = [{"params": list(layer.parameters()), "lr": rate} for layer, rate in zip(layers, rates)]
        before = [layer.weight.detach().clone() for layer in layers]
        descend(model, create_optimizer(config, groups), x, y)
        return [(layer.weight - then).norm().item() for layer, then in zip(layers, before)]

    (first, second), (first_again, second_slow) = distances(1.0), distances(0.1)
    assert first_again == pytest.approx(first, rel=0.3)
    assert second_slow == pytest.approx(0.1 * second, rel=0.5)


@pytest.mark.parametrize(
    "name, reference",
    [
        ("AdamW", lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.9, 0.999), weight_decay=0.01)),
        ("Adam", lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.9, 0.999))),
        ("SGDNesterov", lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True)),
    ],
)
def test_optimizers_of_torch_match_torch_step_for_step(name, reference):
    (ours, x, y), (theirs, _, _) = make_problem(), make_problem()
    losses = descend(ours, create_optimizer(make_config(name, 0.01), list(ours.parameters())), x, y)
    # Ours is the fused form, which rounds elsewhere.
    assert losses == pytest.approx(descend(theirs, reference(theirs.parameters()), x, y), rel=1e-6)


def test_settings_reach_the_optimizer():
    config = make_config("Lion", 0.01, "betas=(0.5, 0.6), weight_decay=0.25")
    (group,) = create_optimizer(config, [nn.Parameter(torch.ones(1))]).param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.01, (0.5, 0.6), 0.25)


def test_schedule_free_optimizers_have_averaged_weights_for_use():
    """The average of the weights on the way, of which the last has moved furthest."""
    for name in ("AdamWScheduleFree", "RAdamScheduleFree", "SGDScheduleFree"):
        model, x, y = make_problem()
        optimizer = create_optimizer(make_config(name, *RATES[name]), list(model.parameters()))
        start = model[0].weight.detach().clone()
        descend(model, optimizer, x, y)
        trained = model[0].weight.detach().clone()
        optimizer.eval()
        assert 0 < (model[0].weight - start).norm() < (trained - start).norm()
        optimizer.train()
        torch.testing.assert_close(model[0].weight.detach(), trained)


@pytest.mark.parametrize("name", BITSANDBYTES)
def test_without_bitsandbytes_the_error_says_how_to_install_it(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(ValueError, match="needs the package bitsandbytes, which cannot be imported .*pip install"):
        check_settings(make_config(name))


def test_packages_that_take_seconds_are_imported_when_chosen():
    script = """
import sys, types
sys.modules["pack"] = types.ModuleType("pack")
sys.modules["pack"].__path__ = [sys.argv[1]]
import pack.trainer.optimizer
print(*{name.partition(".")[0] for name in sys.modules})
"""
    shown = subprocess.run([sys.executable, "-c", script, str(ROOT)], capture_output=True, text=True)
    imported = shown.stdout.split()
    assert "torch" in imported, shown.stderr
    assert not {"pytorch_optimizer", "bitsandbytes", "transformers"} & set(imported)


@pytest.mark.parametrize("name", RATES)
def test_every_optimizer_works_without_settings(name):
    check_settings(make_config(name, 1e-4))  # the training node's rate is not known to the settings node


def test_the_presets_are_valid():
    presets = [node.preset for node in NODES if hasattr(node, "preset")]
    assert len(presets) >= 5
    for preset in presets:
        check_settings(preset.training)


def test_settings_are_parsed_as_written():
    assert read_settings("x", "betas=(0.9, 0.99), weight_decay=0.01\nname=word, flag=True, off=false") == {
        "betas": (0.9, 0.99),
        "weight_decay": 0.01,
        "name": "word",
        "flag": True,
        "off": False,
    }
    assert read_settings("x", "  ") == {}


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: read_settings("optimizer_settings", "betas"), "optimizer_settings has 'betas': write key=value"),
        (lambda: read_settings("optimizer_settings", "eps=1, eps=2"), "eps twice"),
        (lambda: check_settings(make_config("Adan9")), "no optimizer 'Adan9': choose one of AdamW, "),
        (
            lambda: check_settings(make_config("AdamW", settings="beta=0.9")),
            "optimizer_settings has beta, which AdamW does not accept: it accepts betas, eps, weight_decay",
        ),
        # What only **kwargs takes would vanish, what the node sets would be set twice.
        (lambda: check_settings(make_config("Lion", settings="beta=0.9")), "beta, which Lion does not accept.*betas"),
        (lambda: check_settings(make_config("Lion", settings="kwargs=1")), "kwargs, which Lion does not accept"),
        (lambda: check_settings(make_config("AdamW", settings="lr=0.9")), "lr, which AdamW does not accept"),
        (
            lambda: check_settings(make_config("AdamW", lr_scheduler_settings="a=1")),
            "a, which constant does not accept",
        ),
        # The first is refused by the constructor, the second by the first step.
        (
            lambda: check_settings(make_config("AdamW", settings="betas=0.9")),
            "'betas=0.9' are not valid for AdamW: .*float",
        ),
        (
            lambda: check_settings(make_config("CAME", settings="betas=(0.9, 0.99)")),
            r"are not valid for CAME: .*expected 3",
        ),
    ],
)
def test_invalid_settings_get_one_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "name, own",
    [
        ("AdamWScheduleFree", ", and warmup_steps=3 in optimizer_settings."),
        ("SGDScheduleFree", ", and warmup_steps=3 in optimizer_settings."),
        ("RAdamScheduleFree", "."),
    ],
)
def test_schedule_free_optimizers_refuse_a_schedule_and_warmup(name, own):
    for scheduler in ("cosine", "constant_with_warmup"):
        with pytest.raises(
            ValueError, match=f"{name} needs no learning rate schedule.* is {scheduler}: set it to constant"
        ):
            check_settings(make_config(name, lr_scheduler=scheduler))
    with pytest.raises(ValueError, match=f"{name} has its own warmup: set the warmup_steps of the node to 0{own}$"):
        check_settings(make_config(name, warmup_steps=3))


@pytest.mark.parametrize("name", FIND_THEIR_RATE)
def test_an_optimizer_that_estimates_its_step_size_refuses_learning_rates_that_it_would_ignore(name):
    """Measured: below a thousandth it learns nothing in hundreds of steps, and a second group moves as the first does."""
    groups = [{"params": [nn.Parameter(torch.ones(1))], "lr": rate} for rate in (1.0, 0.5)]
    with pytest.raises(ValueError, match=f"{name} .* would ignore a text_encoder_learning_rate of 0.5: set it to 0"):
        create_optimizer(make_config(name), groups)
    with pytest.raises(
        ValueError, match=f"learning_rate is 0.0005, but {name} estimates the step size itself.* about 1"
    ):
        create_optimizer(make_config(name, 0.0005), groups[:1])
