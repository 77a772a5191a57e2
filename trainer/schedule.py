"""The learning rate schedules, by name."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Callable

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from .config import TrainingConfig
from .settings_text import LazyImport, UserChoice


@dataclass(frozen=True)
class ScheduleEntry(LazyImport):
    """Describes a schedule, and imports it when it is used.

    defaults: settings, unless the user overrides them, computed from the number of updates after warmup and the learning rate
    warmup: whether warmup steps before it are "allowed", "needed" or "refused"
    """

    defaults: Callable[[int, float], dict[str, Any]] = lambda updates, rate: {}
    warmup: str = "allowed"


_TORCH, _TRANSFORMERS = "torch.optim.lr_scheduler", "transformers.optimization"
# Settings that users cannot change: the training node sets them, or they are for parts of an optimizer that stay as they are.
_RESERVED = ("optimizer", "last_epoch", "num_warmup_steps", "num_training_steps", "total_steps", "epochs")
_RESERVED += ("steps_per_epoch", "scale_fn", "cycle_momentum", "base_momentum", "max_momentum")

SCHEDULES = {
    "cosine": ScheduleEntry(
        _TRANSFORMERS, "get_cosine_schedule_with_warmup", lambda updates, _: _transformers_settings(updates)
    ),
    "cosine_with_restarts": ScheduleEntry(
        _TRANSFORMERS,
        "get_cosine_with_hard_restarts_schedule_with_warmup",
        lambda updates, _: _transformers_settings(updates, num_cycles=2),
    ),
    "cosine_annealing": ScheduleEntry(_TORCH, "CosineAnnealingLR", lambda updates, _: {"T_max": updates}),
    "cosine_annealing_with_restarts": ScheduleEntry(
        _TORCH, "CosineAnnealingWarmRestarts", lambda updates, _: {"T_0": math.ceil(updates / 2)}
    ),
    "linear": ScheduleEntry(
        _TRANSFORMERS, "get_linear_schedule_with_warmup", lambda updates, _: _transformers_settings(updates)
    ),
    "polynomial": ScheduleEntry(
        _TRANSFORMERS,
        "get_polynomial_decay_schedule_with_warmup",
        lambda updates, _: _transformers_settings(updates, power=2.0, lr_end=0.0),
    ),
    "constant": ScheduleEntry(__name__, "constant"),
    "constant_with_warmup": ScheduleEntry(__name__, "constant", warmup="needed"),
    "piecewise_constant": ScheduleEntry(__name__, "piecewise_constant"),
    "exponential": ScheduleEntry(_TORCH, "ExponentialLR", lambda updates, _: {"gamma": 0.01 ** (1 / updates)}),
    "step": ScheduleEntry(_TORCH, "StepLR", lambda updates, _: {"step_size": math.ceil(updates / 3)}),
    "multi_step": ScheduleEntry(
        _TORCH, "MultiStepLR", lambda updates, _: {"milestones": [math.ceil(updates / 2), math.ceil(updates * 3 / 4)]}
    ),
    "reduce_on_plateau": ScheduleEntry(
        _TORCH, "ReduceLROnPlateau", lambda updates, _: {"patience": math.ceil(updates / 10)}, warmup="refused"
    ),
    "cyclic": ScheduleEntry(
        _TORCH,
        "CyclicLR",
        lambda updates, rate: {
            "base_lr": rate / 10,
            "max_lr": rate,
            "step_size_up": math.ceil(updates / 8),
            "cycle_momentum": False,
        },
        warmup="refused",
    ),
    "one_cycle": ScheduleEntry(
        _TORCH,
        "OneCycleLR",
        lambda updates, rate: {"max_lr": rate, "total_steps": updates, "cycle_momentum": False},
        warmup="refused",
    ),
}


class Schedule:
    """Sets the learning rates of an optimizer's groups before each update.

    The given schedule runs on a dummy optimizer with the config's learning rate, and all groups follow it in proportion. On
    the groups themselves, a setting that is a rate, such as eta_min, would make their rates converge.
    """

    def __init__(self, schedule: LRScheduler, optimizer: Optimizer, warmup_steps: int) -> None:
        self._schedule, self._stand_in, self._optimizer = schedule, schedule.optimizer, optimizer
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]  # torch's own name for it
        self._warmup_steps, self._updates = warmup_steps, 0
        self._set_rates()

    def step(self, loss: float | None = None) -> None:
        """Set the learning rates of the next update. loss: the latest one, which only reduce_on_plateau uses"""
        self._updates += 1
        if self._updates > self._warmup_steps:
            self._stand_in.step()  # changes nothing, but without it torch warns about the order of the steps
            if not isinstance(self._schedule, ReduceLROnPlateau):
                self._schedule.step()
            elif loss is not None:
                self._schedule.step(loss)
        self._set_rates()

    def _set_rates(self) -> None:
        warmth = min(1.0, (self._updates + 1) / (self._warmup_steps + 1))
        factor = self._stand_in.param_groups[0]["lr"] / self._stand_in.defaults["lr"] * warmth
        for group in self._optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor


def create_schedule(config: TrainingConfig, optimizer: Optimizer) -> Schedule:
    """Create the config's schedule, to be stepped after each update. Raises ValueError for invalid settings."""
    choice = _user_choice(config)
    source = choice.look_up(SCHEDULES)
    if source.warmup == "needed" and not config.warmup_steps:
        raise ValueError(f"{choice.name} needs warmup_steps: set it to 1 or more, or lr_scheduler to constant.")
    if source.warmup == "refused" and config.warmup_steps:
        raise ValueError(
            f"{choice.name} does not support warmup: set warmup_steps to 0, or choose another lr_scheduler."
        )
    stand_in = torch.optim.SGD([torch.zeros(1)], lr=config.learning_rate)
    schedule = choice.build(source.load(), stand_in, default_settings(config), _RESERVED)
    return Schedule(schedule, optimizer, config.warmup_steps)


def default_settings(config: TrainingConfig) -> dict[str, Any]:
    """Return the settings of the config's schedule as they are unless the user overrides them."""
    updates = max(1, config.steps - config.warmup_steps)  # a training of 0 steps has a schedule, too
    return SCHEDULES[config.lr_scheduler].defaults(updates, config.learning_rate)


def check_schedule(config: TrainingConfig) -> None:
    """Raise ValueError if the config's schedule cannot be created, or fails in its first updates."""
    schedule = create_schedule(config, torch.optim.SGD([torch.zeros(1)], lr=config.learning_rate))
    with _user_choice(config).explain_errors():
        for _ in range(config.warmup_steps + 1):
            schedule.step(0.0)


def constant(optimizer: Optimizer) -> LRScheduler:
    """Return a schedule that keeps the learning rate."""
    return LambdaLR(optimizer, lambda update: 1.0)


def piecewise_constant(optimizer: Optimizer, steps: Sequence[int] = (), factors: Sequence[float] = ()) -> LRScheduler:
    """Return a schedule that multiplies the learning rate by factors[0] before steps[0], factors[1] before steps[1], ..."""
    steps, factors = (tuple(value) if isinstance(value, (tuple, list)) else (value,) for value in (steps, factors))
    if not steps or len(factors) != len(steps) + 1:
        raise ValueError("give steps, and one more factor than steps, as in steps=(100, 200), factors=(1, 0.5, 0.1)")
    if sorted({0, *steps}) != [0, *steps] or min(factors) < 0:
        raise ValueError("steps must be above 0 and increase, and factors must be 0 or more")
    return LambdaLR(optimizer, lambda update: factors[bisect_right(steps, update)])


def _user_choice(config: TrainingConfig) -> UserChoice:
    return UserChoice("lr_scheduler", config.lr_scheduler, config.lr_scheduler_settings)


def _transformers_settings(updates: int, **defaults: float) -> dict[str, Any]:
    return {"num_warmup_steps": 0, "num_training_steps": updates, **defaults}
