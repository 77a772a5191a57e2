"""Learning-rate schedules by name."""

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
from .settings_text import Choice, Source


@dataclass(frozen=True)
class ScheduleSource(Source):
    """Where a schedule comes from.

    defaults: its settings unless the user says otherwise, from the updates after the warm-up and the learning rate
    warmup: whether warm-up steps before it are "allowed", "needed" or "refused"
    """

    defaults: Callable[[int, float], dict[str, Any]] = lambda updates, rate: {}
    warmup: str = "allowed"


_TORCH, _TRANSFORMERS = "torch.optim.lr_scheduler", "transformers.optimization"
# Not the user's to set: the training node has them, or they are of an optimizer that our schedules do not touch.
_RESERVED = ("optimizer", "last_epoch", "num_warmup_steps", "num_training_steps", "total_steps", "epochs")
_RESERVED += ("steps_per_epoch", "scale_fn", "cycle_momentum", "base_momentum", "max_momentum")

SCHEDULES = {
    "cosine": ScheduleSource(_TRANSFORMERS, "get_cosine_schedule_with_warmup", lambda n, _: _transformers(n)),
    "cosine_with_restarts": ScheduleSource(
        _TRANSFORMERS,
        "get_cosine_with_hard_restarts_schedule_with_warmup",
        lambda n, _: _transformers(n, num_cycles=2),
    ),
    "cosine_annealing": ScheduleSource(_TORCH, "CosineAnnealingLR", lambda n, _: {"T_max": n}),
    "cosine_annealing_with_restarts": ScheduleSource(
        _TORCH, "CosineAnnealingWarmRestarts", lambda n, _: {"T_0": math.ceil(n / 2)}
    ),
    "linear": ScheduleSource(_TRANSFORMERS, "get_linear_schedule_with_warmup", lambda n, _: _transformers(n)),
    "polynomial": ScheduleSource(
        _TRANSFORMERS,
        "get_polynomial_decay_schedule_with_warmup",
        lambda n, _: _transformers(n, power=2.0, lr_end=0.0),
    ),
    "constant": ScheduleSource(__name__, "constant"),
    "constant_with_warmup": ScheduleSource(__name__, "constant", warmup="needed"),
    "piecewise_constant": ScheduleSource(__name__, "piecewise_constant"),
    "exponential": ScheduleSource(_TORCH, "ExponentialLR", lambda n, _: {"gamma": 0.01 ** (1 / n)}),
    "step": ScheduleSource(_TORCH, "StepLR", lambda n, _: {"step_size": math.ceil(n / 3)}),
    "multi_step": ScheduleSource(
        _TORCH, "MultiStepLR", lambda n, _: {"milestones": [math.ceil(n / 2), math.ceil(n * 3 / 4)]}
    ),
    "reduce_on_plateau": ScheduleSource(
        _TORCH, "ReduceLROnPlateau", lambda n, _: {"patience": math.ceil(n / 10)}, warmup="refused"
    ),
    "cyclic": ScheduleSource(
        _TORCH,
        "CyclicLR",
        lambda n, rate: {
            "base_lr": rate / 10,
            "max_lr": rate,
            "step_size_up": math.ceil(n / 8),
            "cycle_momentum": False,
        },
        warmup="refused",
    ),
    "one_cycle": ScheduleSource(
        _TORCH,
        "OneCycleLR",
        lambda n, rate: {"max_lr": rate, "total_steps": n, "cycle_momentum": False},
        warmup="refused",
    ),
}


class Schedule:
    """Sets the learning rates of an optimizer's groups before each update.

    The given schedule runs on a stand-in with the learning rate of the config, and all groups follow it in proportion:
    on the groups themselves, a setting that is a rate, such as eta_min, would draw their rates together.
    """

    def __init__(self, schedule: LRScheduler, optimizer: Optimizer, warmup_steps: int) -> None:
        self._schedule, self._stand_in, self._optimizer = schedule, schedule.optimizer, optimizer
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]  # under torch's own name for it
        self._warmup_steps, self._updates = warmup_steps, 0
        self._set_rates()

    def step(self, loss: float | None = None) -> None:
        """Set the rates of the next update; the last loss that is known, if one is, serves reduce_on_plateau alone."""
        self._updates += 1
        if self._updates > self._warmup_steps:
            self._stand_in.step()  # changes nothing, but torch warns of a schedule that runs ahead of its optimizer
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
    """Create the config's schedule, to be stepped after each update. Raises ValueError for what it cannot do."""
    choice = _choice(config)
    source = choice.of(SCHEDULES)
    if source.warmup == "needed" and not config.warmup_steps:
        raise ValueError(f"{choice.name} needs warmup_steps: set them to 1 or more, or lr_scheduler to constant.")
    if source.warmup == "refused" and config.warmup_steps:
        raise ValueError(f"{choice.name} takes no warm-up: set warmup_steps to 0, or choose another lr_scheduler.")
    stand_in = torch.optim.SGD([torch.zeros(1)], lr=config.learning_rate)
    defaults = source.defaults(config.steps - config.warmup_steps, config.learning_rate)
    return Schedule(choice.make(source.load(), stand_in, defaults, _RESERVED), optimizer, config.warmup_steps)


def check_schedule(config: TrainingConfig) -> None:
    """Raise ValueError if the config's schedule cannot be made, or fails on its first updates."""
    schedule = create_schedule(config, torch.optim.SGD([torch.zeros(1)], lr=config.learning_rate))
    with _choice(config).refusals():
        for _ in range(config.warmup_steps + 1):
            schedule.step(0.0)


def constant(optimizer: Optimizer) -> LRScheduler:
    """Keep the learning rate."""
    return LambdaLR(optimizer, lambda update: 1.0)


def piecewise_constant(optimizer: Optimizer, steps: Sequence[int] = (), factors: Sequence[float] = ()) -> LRScheduler:
    """Multiply the learning rate by the first factor until the first step, by the second until the second, and so on."""
    steps, factors = (tuple(v) if isinstance(v, (tuple, list)) else (v,) for v in (steps, factors))
    if not steps or len(factors) != len(steps) + 1:
        raise ValueError("write some steps and one factor more, as in steps=(100, 200), factors=(1, 0.5, 0.1)")
    if sorted({0, *steps}) != [0, *steps] or min(factors) < 0:
        raise ValueError("the steps must rise from above 0, and the factors must be 0 or more")
    return LambdaLR(optimizer, lambda update: factors[bisect_right(steps, update)])


def _choice(config: TrainingConfig) -> Choice:
    return Choice("lr_scheduler", config.lr_scheduler, config.lr_scheduler_settings)


def _transformers(updates: int, **defaults: float) -> dict[str, Any]:
    return {"num_warmup_steps": 0, "num_training_steps": updates, **defaults}
