"""The optimizers, by name."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field, replace
from typing import Any, Callable

import torch
from torch import nn
from torch.optim import Optimizer

from .config import TrainingConfig
from .schedule import check_schedule
from .settings_text import LazyImport, UserChoice


@dataclass(frozen=True)
class OptimizerEntry(LazyImport):
    """Describes an optimizer, and imports it when it is used.

    defaults: settings, unless the user overrides them
    schedule_free: whether it replaces the learning rate schedule
    finds_rate: whether it estimates one step size for all parameters, which the learning rate only multiplies
    takes_module: whether it needs a module instead of parameters, for their names
    """

    defaults: dict[str, Any] = field(default_factory=dict)
    schedule_free: bool = False
    finds_rate: bool = False
    takes_module: bool = False


_TORCH, _MORE, _BITS = "torch.optim", "pytorch_optimizer", "bitsandbytes.optim"
# Settings that users cannot change: the training node sets the learning rate, nesterov follows from the name (bitsandbytes
# ignores it), and the rest make no sense here.
_RESERVED = ("params", "model", "lr", "nesterov", "maximize", "differentiable", "capturable")
# With a learning rate below this, optimizers with finds_rate learn nothing; the usual rates of the others are below it.
_MIN_MULTIPLIER = 1e-3

OPTIMIZERS = {
    "AdamW": OptimizerEntry(_TORCH, "AdamW", {"fused": True}),
    "Adam": OptimizerEntry(_TORCH, "Adam", {"fused": True}),
    "SGDNesterov": OptimizerEntry(_TORCH, "SGD", {"momentum": 0.9, "nesterov": True, "fused": True}),
    # With its own defaults it ignores the learning rate.
    "AdaFactor": OptimizerEntry(_MORE, "AdaFactor", {"relative_step": False, "scale_parameter": False}),
    "AdamMini": OptimizerEntry(_MORE, "AdamMini", takes_module=True),
    "CAME": OptimizerEntry(_MORE, "CAME"),
    "Lion": OptimizerEntry(_MORE, "Lion"),
    "Tiger": OptimizerEntry(_MORE, "Tiger"),
    "Prodigy": OptimizerEntry(_MORE, "Prodigy", finds_rate=True),
    "DAdaptAdam": OptimizerEntry(_MORE, "DAdaptAdam", finds_rate=True),
    "DAdaptLion": OptimizerEntry(_MORE, "DAdaptLion", finds_rate=True),
    "DAdaptAdaGrad": OptimizerEntry(_MORE, "DAdaptAdaGrad", finds_rate=True),
    "DAdaptAdan": OptimizerEntry(_MORE, "DAdaptAdan", finds_rate=True),
    "DAdaptSGD": OptimizerEntry(_MORE, "DAdaptSGD", finds_rate=True),
    "AdamWScheduleFree": OptimizerEntry(_MORE, "ScheduleFreeAdamW", schedule_free=True),
    "RAdamScheduleFree": OptimizerEntry(_MORE, "ScheduleFreeRAdam", schedule_free=True),
    "SGDScheduleFree": OptimizerEntry(_MORE, "ScheduleFreeSGD", schedule_free=True),
    "AdamW8bit": OptimizerEntry(_BITS, "AdamW8bit"),
    "Adam8bit": OptimizerEntry(_BITS, "Adam8bit"),
    "SGDNesterov8bit": OptimizerEntry(_BITS, "SGD8bit", {"momentum": 0.9}),
    "Lion8bit": OptimizerEntry(_BITS, "Lion8bit"),
    "PagedAdamW": OptimizerEntry(_BITS, "PagedAdamW"),
    "PagedAdamW8bit": OptimizerEntry(_BITS, "PagedAdamW8bit"),
    "PagedAdamW32bit": OptimizerEntry(_BITS, "PagedAdamW32bit"),
    "PagedLion8bit": OptimizerEntry(_BITS, "PagedLion8bit"),
}


def create_optimizer(config: TrainingConfig, parameters: list[torch.Tensor] | list[dict[str, Any]]) -> Optimizer:
    """Create the config's optimizer for parameters, or for groups `{"params": [...], "lr": ...}` with their own rates.

    Schedule-free optimizers have `train()` and `eval()`, which switch between the weights for training and for use.
    Raises ValueError for an unknown name or setting, and for a schedule, an EMA or learning rates that the optimizer would
    ignore.
    """
    choice = _user_choice(config)
    source = choice.look_up(OPTIMIZERS)
    kind = source.load()
    groups = parameters
    if not isinstance(parameters[0], dict):
        groups = [{"params": parameters, "lr": config.learning_rate}]
    if source.schedule_free:
        _check_no_schedule(config, kind)
        _check_no_average(config)
    if source.finds_rate:
        _check_rates(config, [group["lr"] for group in groups])
    defaults = {**source.defaults, "lr": config.learning_rate}
    if not source.takes_module:
        return choice.build(kind, groups, defaults, _RESERVED)
    module = nn.ParameterList(parameter for group in groups for parameter in group["params"])
    return _with_rates(choice.build(kind, module, defaults, _RESERVED), groups)


def settings_of(optimizer: Optimizer, group: dict[str, Any]) -> dict[str, Any]:
    """Return what the user has set for a group of an optimizer: the rest of the group is what it has found in its steps."""
    names = {"initial_lr", *inspect.signature(type(optimizer)).parameters} - {"params"}
    return {name: value for name, value in group.items() if name in names}


def resume(optimizer: Optimizer, state: dict[str, Any], device: torch.device) -> None:
    """Load what an optimizer has found in the steps before; its settings and rates stay.

    device: of the parameters, where what it has found for a whole group must be too; torch leaves that where it is
    """
    settings = [settings_of(optimizer, group) for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, settings):
        found = {name: value.to(device) for name, value in group.items() if isinstance(value, torch.Tensor)}
        group.update(found | own)


def can_go_on(optimizer: Optimizer, config: TrainingConfig, state: dict[str, Any]) -> bool:
    """Return whether an optimizer of the config can go on from a state of one with the same name.

    The state needs the same groups, which one optimizer makes of them itself, and all that the settings of now ask for: those
    such as amsgrad need one more tensor from the first step on.
    """
    sizes, saved = (
        [len(group["params"]) for group in groups] for groups in (optimizer.param_groups, state["param_groups"])
    )
    if sizes != saved:
        return False
    found = next(((index, names) for index, names in sorted(state["state"].items()) if names), None)
    if found is None:
        return True
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return _names_in_state(config, parameters[found[0]]) <= found[1].keys()


def _names_in_state(config: TrainingConfig, like: torch.Tensor) -> set[str]:
    """Return the names of what the config's optimizer has found for such a parameter after a step."""
    trial = nn.Parameter(torch.ones_like(like))
    trial.grad = torch.ones_like(trial)
    optimizer = create_optimizer(config, [trial])
    optimizer.step()
    return set(optimizer.state[trial])


def check_settings(config: TrainingConfig) -> None:
    """Raise ValueError if the settings of the optimizer or the schedule are invalid, whatever the learning rate."""
    config = replace(config, learning_rate=1.0)  # the training node sets it
    weight = nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.ones(2, 2)
    optimizer = create_optimizer(config, [weight])
    if OPTIMIZERS[config.optimizer].module != _BITS:  # may need a GPU
        with _user_choice(config).explain_errors():  # some settings are only checked here
            optimizer.step()
    check_schedule(config)


def _user_choice(config: TrainingConfig) -> UserChoice:
    return UserChoice("optimizer", config.optimizer, config.optimizer_settings)


def _with_rates(optimizer: Optimizer, groups: list[dict[str, Any]]) -> Optimizer:
    """Set the learning rates of an optimizer that makes its own groups, one per parameter."""
    rates = {parameter: group["lr"] for group in groups for parameter in group["params"]}
    for group in optimizer.param_groups:
        group["lr"] = rates[group["params"][0]]
    return optimizer


def _check_no_schedule(config: TrainingConfig, kind: Callable) -> None:
    if config.lr_scheduler != "constant":
        raise ValueError(
            f"{config.optimizer} needs no learning rate schedule, and lr_scheduler is {config.lr_scheduler}: set it to "
            "constant."
        )
    if config.warmup_steps:
        own = "warmup_steps" in inspect.signature(kind).parameters
        instead = f", and warmup_steps={config.warmup_steps} in optimizer_settings" if own else ""
        raise ValueError(f"{config.optimizer} has its own warmup: set the warmup_steps of the node to 0{instead}.")


def _check_no_average(config: TrainingConfig) -> None:
    if config.ema_decay:
        raise ValueError(
            f"{config.optimizer} averages the weights itself, and ema_decay is {config.ema_decay}: set it to 0."
        )


def _check_rates(config: TrainingConfig, rates: list[float]) -> None:
    if config.learning_rate < _MIN_MULTIPLIER:
        raise ValueError(
            f"learning_rate is {config.learning_rate}, but {config.optimizer} estimates the step size itself and only "
            "multiplies it by learning_rate: set it to about 1, or nothing is learned."
        )
    if config.lora_plus_ratio != 1:
        raise ValueError(
            f"{config.optimizer} estimates one step size for all weights and would ignore a lora_plus_ratio of "
            f"{config.lora_plus_ratio:g}: set it to 1, or choose another optimizer."
        )
    if len(set(rates)) > 1:
        raise ValueError(
            f"{config.optimizer} estimates one step size for all layers and would ignore a text_encoder_learning_rate of "
            f"{rates[-1]}: set it to 0, or choose another optimizer."
        )
