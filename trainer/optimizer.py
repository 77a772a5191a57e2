"""Optimizers by name."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field, replace
from typing import Any, Callable

import torch
from torch import nn
from torch.optim import Optimizer

from .config import TrainingConfig
from .schedule import check_schedule
from .settings_text import Choice, Source


@dataclass(frozen=True)
class OptimizerSource(Source):
    """Where an optimizer comes from.

    defaults: its settings unless the user says otherwise
    schedule_free: whether it is its own schedule
    finds_rate: whether it finds its step size itself, one for all parameters, and the learning rate only multiplies that
    takes_module: whether it asks for a module, for the names of its parameters
    """

    defaults: dict[str, Any] = field(default_factory=dict)
    schedule_free: bool = False
    finds_rate: bool = False
    takes_module: bool = False


_TORCH, _MORE, _BITS = "torch.optim", "pytorch_optimizer", "bitsandbytes.optim"
# Not the user's to set: the training node has the learning rate, the name says nesterov (which bitsandbytes ignores), and
# the others are not for a training like ours.
_RESERVED = ("params", "model", "lr", "nesterov", "maximize", "differentiable", "capturable")
# Below it those that find their own step size learn nothing, and the rates that suit all others are below it.
_LEAST_FACTOR = 1e-3

OPTIMIZERS = {
    "AdamW": OptimizerSource(_TORCH, "AdamW", {"fused": True}),
    "Adam": OptimizerSource(_TORCH, "Adam", {"fused": True}),
    "SGDNesterov": OptimizerSource(_TORCH, "SGD", {"momentum": 0.9, "nesterov": True, "fused": True}),
    # Its own defaults ignore the learning rate.
    "AdaFactor": OptimizerSource(_MORE, "AdaFactor", {"relative_step": False, "scale_parameter": False}),
    "AdamMini": OptimizerSource(_MORE, "AdamMini", takes_module=True),
    "CAME": OptimizerSource(_MORE, "CAME"),
    "Lion": OptimizerSource(_MORE, "Lion"),
    "Tiger": OptimizerSource(_MORE, "Tiger"),
    "Prodigy": OptimizerSource(_MORE, "Prodigy", finds_rate=True),
    "DAdaptAdam": OptimizerSource(_MORE, "DAdaptAdam", finds_rate=True),
    "DAdaptLion": OptimizerSource(_MORE, "DAdaptLion", finds_rate=True),
    "DAdaptAdaGrad": OptimizerSource(_MORE, "DAdaptAdaGrad", finds_rate=True),
    "DAdaptAdan": OptimizerSource(_MORE, "DAdaptAdan", finds_rate=True),
    "DAdaptSGD": OptimizerSource(_MORE, "DAdaptSGD", finds_rate=True),
    "AdamWScheduleFree": OptimizerSource(_MORE, "ScheduleFreeAdamW", schedule_free=True),
    "RAdamScheduleFree": OptimizerSource(_MORE, "ScheduleFreeRAdam", schedule_free=True),
    "SGDScheduleFree": OptimizerSource(_MORE, "ScheduleFreeSGD", schedule_free=True),
    "AdamW8bit": OptimizerSource(_BITS, "AdamW8bit"),
    "Adam8bit": OptimizerSource(_BITS, "Adam8bit"),
    "SGDNesterov8bit": OptimizerSource(_BITS, "SGD8bit", {"momentum": 0.9}),
    "Lion8bit": OptimizerSource(_BITS, "Lion8bit"),
    "PagedAdamW": OptimizerSource(_BITS, "PagedAdamW"),
    "PagedAdamW8bit": OptimizerSource(_BITS, "PagedAdamW8bit"),
    "PagedAdamW32bit": OptimizerSource(_BITS, "PagedAdamW32bit"),
    "PagedLion8bit": OptimizerSource(_BITS, "PagedLion8bit"),
}


def create_optimizer(config: TrainingConfig, parameters: list[torch.Tensor] | list[dict[str, Any]]) -> Optimizer:
    """Create the config's optimizer of parameters, or of groups `{"params": [...], "lr": ...}` with rates of their own.

    Schedule-free ones have `train()` and `eval()`, which put the weights to train, and those to use, in place.
    Raises ValueError for an unknown name or setting, and for a schedule or rates that the optimizer would not follow.
    """
    choice = _choice(config)
    source = choice.of(OPTIMIZERS)
    kind = source.load()
    groups = parameters
    if not isinstance(parameters[0], dict):
        groups = [{"params": parameters, "lr": config.learning_rate}]
    if source.schedule_free:
        _check_no_schedule(config, kind)
    if source.finds_rate:
        _check_rates(config, [group["lr"] for group in groups])
    defaults = {**source.defaults, "lr": config.learning_rate}
    if not source.takes_module:
        return choice.make(kind, groups, defaults, _RESERVED)
    module = nn.ParameterList(p for group in groups for p in group["params"])
    return _with_rates(choice.make(kind, module, defaults, _RESERVED), groups)


def check_settings(config: TrainingConfig) -> None:
    """Raise ValueError if the optimizer or the schedule does not take its settings, whatever the learning rate."""
    config = replace(config, learning_rate=1.0)  # the training node has it
    weight = nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.ones(2, 2)
    optimizer = create_optimizer(config, [weight])
    if OPTIMIZERS[config.optimizer].module != _BITS:  # these may need a GPU
        with _choice(config).refusals():  # some settings are only looked at here
            optimizer.step()
    check_schedule(config)


def _choice(config: TrainingConfig) -> Choice:
    return Choice("optimizer", config.optimizer, config.optimizer_settings)


def _with_rates(optimizer: Optimizer, groups: list[dict[str, Any]]) -> Optimizer:
    """Give an optimizer that made its own groups, one for each parameter, the learning rates of ours."""
    rates = {parameter: group["lr"] for group in groups for parameter in group["params"]}
    for group in optimizer.param_groups:
        group["lr"] = rates[group["params"][0]]
    return optimizer


def _check_no_schedule(config: TrainingConfig, kind: Callable) -> None:
    if config.lr_scheduler != "constant":
        raise ValueError(
            f"{config.optimizer} is its own schedule, and lr_scheduler is {config.lr_scheduler}: set it to constant."
        )
    if config.warmup_steps:
        own = "warmup_steps" in inspect.signature(kind).parameters
        instead = f", and warmup_steps={config.warmup_steps} in optimizer_settings" if own else ""
        raise ValueError(f"{config.optimizer} warms up by itself: set the warmup_steps of the node to 0{instead}.")


def _check_rates(config: TrainingConfig, rates: list[float]) -> None:
    if config.learning_rate < _LEAST_FACTOR:
        raise ValueError(
            f"learning_rate is {config.learning_rate}, and {config.optimizer} finds its step size itself and multiplies it "
            "by that: set it to about 1, or nothing is learned."
        )
    if len(set(rates)) > 1:
        raise ValueError(
            f"{config.optimizer} finds one step size for all layers, and would not follow a text_encoder_learning_rate of "
            f"{rates[-1]}: set it to 0, or choose another optimizer."
        )
