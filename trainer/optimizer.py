"""Optimizers and learning-rate schedules by name."""

from __future__ import annotations

import ast
import inspect
from importlib import import_module
from typing import Any, Callable, TypeVar

import torch
from torch.optim import Optimizer, lr_scheduler

from .config import TrainingConfig

# name -> module and class; imported when chosen, for pytorch_optimizer takes seconds
OPTIMIZERS = {
    "AdamW": ("torch.optim", "AdamW"),
    "Adam": ("torch.optim", "Adam"),
    "CAME": ("pytorch_optimizer", "CAME"),
}

T = TypeVar("T")

# Each takes the optimizer, the updates after warm-up and the user's settings.
SCHEDULES: dict[str, Callable[..., lr_scheduler.LRScheduler]] = {
    "cosine": lambda o, steps, **s: lr_scheduler.CosineAnnealingLR(o, **{"T_max": steps, **s}),
    "cosine_with_restarts": lambda o, steps, **s: lr_scheduler.CosineAnnealingWarmRestarts(
        o, **{"T_0": max(1, steps // 2), **s}
    ),
    "linear": lambda o, steps, **s: lr_scheduler.LinearLR(
        o, **{"start_factor": 1.0, "end_factor": 0.0, "total_iters": steps, **s}
    ),
    "polynomial": lambda o, steps, **s: lr_scheduler.PolynomialLR(o, **{"total_iters": steps, "power": 2.0, **s}),
    "constant": lambda o, steps, **s: lr_scheduler.ConstantLR(o, **{"factor": 1.0, **s}),
}


def create_optimizer(config: TrainingConfig, parameters: list[torch.Tensor]) -> Optimizer:
    """Create the config's optimizer. Raises ValueError for an unknown name or setting."""
    module, name = _named("optimizer", config.optimizer, OPTIMIZERS)
    kind = getattr(import_module(module), name)
    settings = read_settings("optimizer_settings", config.optimizer_settings)
    _check_known("optimizer_settings", settings, kind, leave_out=("params", "lr"))
    return kind(parameters, lr=config.learning_rate, **settings)


def create_schedule(config: TrainingConfig, optimizer: Optimizer) -> lr_scheduler.LRScheduler:
    """Create the config's schedule, stepped once an update. Raises ValueError for an unknown name or setting."""
    create = _named("lr_scheduler", config.lr_scheduler, SCHEDULES)
    settings = read_settings("lr_scheduler_settings", config.lr_scheduler_settings)
    kind = type(create(torch.optim.SGD([torch.zeros(1)], lr=1.0), 1))
    _check_known("lr_scheduler_settings", settings, kind, leave_out=("optimizer", "last_epoch"))
    schedule = create(optimizer, config.steps - config.warmup_steps, **settings)
    if not config.warmup_steps:
        return schedule
    warmup = lr_scheduler.LinearLR(optimizer, 1 / (config.warmup_steps + 1), total_iters=config.warmup_steps)
    return lr_scheduler.SequentialLR(optimizer, [warmup, schedule], [config.warmup_steps])


def check_settings(config: TrainingConfig) -> None:
    """Raise ValueError if the optimizer or the schedule does not take its settings."""
    create_schedule(config, create_optimizer(config, [torch.zeros(1, requires_grad=True)]))


def read_settings(name: str, text: str) -> dict[str, Any]:
    """Read `key=value` pairs, separated by commas outside brackets or by new lines; values are Python literals or words."""
    settings = {}
    for pair in _split_pairs(text):
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not (key and equals and value):
            raise ValueError(f"{name} has {pair!r}: write key=value pairs, as in betas=(0.9, 0.99), weight_decay=0.01.")
        try:
            settings[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            settings[key] = value
    return settings


def _split_pairs(text: str) -> list[str]:
    pairs, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "\n" or (character == "," and depth == 0):
            pairs.append("")
        else:
            pairs[-1] += character
    return [pair.strip() for pair in pairs if pair.strip()]


def _named(what: str, name: str, known: dict[str, T]) -> T:
    if name not in known:
        raise ValueError(f"There is no {what} {name!r}: choose one of {', '.join(known)}.")
    return known[name]


def _check_known(what: str, settings: dict[str, Any], kind: Callable, leave_out: tuple[str, ...]) -> None:
    known = [key for key in inspect.signature(kind).parameters if key not in leave_out]
    unknown = [key for key in settings if key not in known]
    if unknown:
        raise ValueError(
            f"{what} has {', '.join(unknown)}, which {kind.__name__} does not take: it takes {', '.join(known)}."
        )
