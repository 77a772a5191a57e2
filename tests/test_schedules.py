"""Learning-rate schedules by name: their rates by formula, and what is refused."""

from __future__ import annotations

from math import cos, pi

import pytest
import torch
from pack.trainer.config import TrainingConfig
from pack.trainer.optimizer import create_optimizer
from pack.trainer.schedule import SCHEDULES, check_schedule, create_schedule
from torch import nn

UPDATES, RATE = 12, 2.0  # of every row; not 1, or a factor would pass for a rate


def make_config(scheduler: str, settings: str = "", warmup: int = 0, steps: int = UPDATES, **others) -> TrainingConfig:
    return TrainingConfig(
        steps=steps + warmup,
        learning_rate=RATE,
        lr_scheduler=scheduler,
        lr_scheduler_settings=settings,
        warmup_steps=warmup,
        **others,
    )


def rates(config: TrainingConfig, losses=None) -> tuple[list[float], list[float]]:
    """Return the rates of the updates of two groups, of which the second begins at a quarter of the first's."""
    groups = [{"params": [nn.Parameter(torch.ones(1))], "lr": rate} for rate in (RATE, RATE / 4)]
    optimizer = create_optimizer(config, groups)
    schedule = create_schedule(config, optimizer)
    seen = []
    for step in range(config.steps):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step(losses[step] if losses else 1.0)
    return tuple(zip(*seen))


def half_wave(part: float) -> float:
    """Return the cosine from 1 at 0 to 0 at 1."""
    return (1 + cos(pi * part)) / 2


def one_cycle(n: int) -> float:
    """Rise from 1/25 to 1 until 30 % of the updates, fall to 1/25/10000 at the last."""
    top, last, low = 0.3 * 12 - 1, 11, 1 / 25
    if n <= top:
        return 1 + (low - 1) * half_wave(n / top)
    return low / 1e4 + (1 - low / 1e4) * half_wave((n - top) / (last - top))


# name, settings, rate of update n
ROWS = [
    ("cosine", "", lambda n: RATE * half_wave(n / 12)),
    ("cosine", "num_cycles=1", lambda n: RATE * half_wave(n / 6)),
    ("cosine_with_restarts", "", lambda n: RATE * half_wave(n % 6 / 6)),
    ("cosine_with_restarts", "num_cycles=3", lambda n: RATE * half_wave(n % 4 / 4)),
    ("cosine_annealing", "", lambda n: RATE * half_wave(n / 12)),
    ("cosine_annealing", "eta_min=0.2", lambda n: 0.2 + (RATE - 0.2) * half_wave(n / 12)),
    ("cosine_annealing", "T_max=6", lambda n: RATE * half_wave(n / 6)),
    ("cosine_annealing_with_restarts", "", lambda n: RATE * half_wave(n % 6 / 6)),
    (
        "cosine_annealing_with_restarts",
        "T_0=2, T_mult=2",
        lambda n: RATE * half_wave([0, 1 / 2, 0, 1 / 4, 2 / 4, 3 / 4, 0, 1 / 8, 2 / 8, 3 / 8, 4 / 8, 5 / 8][n]),
    ),
    ("linear", "", lambda n: RATE * (1 - n / 12)),
    ("polynomial", "", lambda n: RATE * (1 - n / 12) ** 2),
    ("polynomial", "power=3, lr_end=0.5", lambda n: 0.5 + (RATE - 0.5) * (1 - n / 12) ** 3),
    ("constant", "", lambda n: RATE),
    ("constant_with_warmup", "", lambda n: RATE),
    (
        "piecewise_constant",
        "steps=(4, 9), factors=(1, 0.5, 0.1)",
        lambda n: RATE * (1 if n < 4 else 0.5 if n < 9 else 0.1),
    ),
    ("piecewise_constant", "steps=3, factors=(0.5, 1)", lambda n: RATE * (0.5 if n < 3 else 1)),
    ("exponential", "", lambda n: RATE * 0.01 ** (n / 12)),
    ("exponential", "gamma=0.9", lambda n: RATE * 0.9**n),
    ("step", "", lambda n: RATE * 0.1 ** (n // 4)),
    ("step", "step_size=5, gamma=0.5", lambda n: RATE * 0.5 ** (n // 5)),
    ("multi_step", "", lambda n: RATE * (1 if n < 6 else 0.1 if n < 9 else 0.01)),
    ("multi_step", "milestones=[2, 3], gamma=0.5", lambda n: RATE * (1 if n < 2 else 0.5 if n < 3 else 0.25)),
    # Up over 2 updates, down over 2; then 3 and 1.
    ("cyclic", "", lambda n: RATE * [0.1, 0.55, 1, 0.55][n % 4]),
    ("cyclic", "base_lr=0.5, step_size_up=3, step_size_down=1", lambda n: 0.5 + 1.5 * [0, 1 / 3, 2 / 3, 1][n % 4]),
    ("one_cycle", "", lambda n: RATE * one_cycle(n)),
    # Up over the first 5 updates, as 0.5 * 12 - 1, from half the top; down to a quarter of that.
    (
        "one_cycle",
        "pct_start=0.5, anneal_strategy=linear, div_factor=2, final_div_factor=4",
        lambda n: 1 + n / 5 if n <= 5 else 2 - 1.75 * (n - 5) / 6,
    ),
    # The losses do not fall: lower at once after the third that is no better, then after three more each.
    ("reduce_on_plateau", "", lambda n: RATE * 0.1 ** ((n - 1) // 3 if n else 0)),
    ("reduce_on_plateau", "patience=4, factor=0.5", lambda n: RATE * 0.5 ** ((n - 1) // 5 if n else 0)),
]
WARM = [row for row in ROWS if row[0] not in ("cyclic", "one_cycle", "reduce_on_plateau")]


def test_the_rows_are_the_schedules():
    assert {name for name, _, _ in ROWS} == set(SCHEDULES)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name, settings, rate", [row for row in ROWS if row[0] != "constant_with_warmup"])
def test_schedules_follow_their_formulas(name, settings, rate):
    first, second = rates(make_config(name, settings))
    assert first == pytest.approx([rate(n) for n in range(UPDATES)], abs=1e-7)
    assert second == pytest.approx([r / 4 for r in first])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name, settings, rate", WARM)
def test_warmup_rises_to_the_start_of_the_schedule(name, settings, rate):
    first, second = rates(make_config(name, settings, warmup=2))
    assert first[:2] == pytest.approx([rate(0) / 3, rate(0) * 2 / 3])
    assert first[2:] == pytest.approx([rate(n) for n in range(UPDATES)], abs=1e-7)
    assert second == pytest.approx([r / 4 for r in first])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_can_last_one_update(name):
    settings = "steps=(4, 8), factors=(1, 0.5, 0.1)" if name == "piecewise_constant" else ""
    check_schedule(make_config(name, settings, warmup=2 if name == "constant_with_warmup" else 0, steps=1))


def test_restarts_and_steps_divide_an_odd_number_of_updates():
    """Shared out the other way, one update would be left over: a last one at the full rate, or one step lower still."""
    assert rates(make_config("cosine_annealing_with_restarts", steps=13))[0][-1] < 0.2 * RATE
    assert rates(make_config("cyclic", steps=17))[0][-1] < RATE
    assert rates(make_config("step", steps=13))[0][-1] == pytest.approx(RATE * 0.01)
    assert rates(make_config("multi_step", steps=13))[0] == pytest.approx(
        [RATE] * 7 + [RATE * 0.1] * 3 + [RATE * 0.01] * 3
    )


def test_reduce_on_plateau_follows_the_losses():
    falling = [1 / (n + 1) for n in range(UPDATES)]
    assert rates(make_config("reduce_on_plateau"), falling)[0] == (RATE,) * UPDATES
    # The first step's loss is known after the second step: nothing is concluded from none.
    assert rates(make_config("reduce_on_plateau"), [None] * UPDATES)[0] == (RATE,) * UPDATES


def test_parameter_groups_keep_the_ratio_of_their_learning_rates():
    first, second = rates(make_config("linear", optimizer="AdamMini"))
    assert first == pytest.approx([RATE * (1 - n / 12) for n in range(UPDATES)])
    assert second == pytest.approx([r / 4 for r in first])


@pytest.mark.parametrize(
    "scheduler, settings, warmup, message",
    [
        ("cosines", "", 0, "no lr_scheduler 'cosines': choose one of cosine, "),
        ("cosine", "eta_min=0", 0, "has eta_min, which cosine does not accept: it accepts num_cycles.$"),
        (
            "cosine_annealing",
            "power=2",
            0,
            "power, which cosine_annealing does not accept: it accepts T_max, eta_min.$",
        ),
        ("constant", "factor=0.5", 0, "factor, which constant does not accept: it accepts none"),
        # What the training node sets, and the momentum, which is the optimizer's alone.
        ("one_cycle", "total_steps=5", 0, "total_steps, which one_cycle does not accept"),
        ("cyclic", "cycle_momentum=True", 0, "cycle_momentum, which cyclic does not accept"),
        ("polynomial", "lr_end=3", 0, "'lr_end=3' are not valid for polynomial: .*smaller than initial lr"),
        ("step", "step_size=0", 0, "'step_size=0' are not valid for step"),  # only the second update divides by it
        ("constant_with_warmup", "", 0, "constant_with_warmup needs warmup_steps: set it to 1 or more"),
        ("reduce_on_plateau", "", 2, "reduce_on_plateau does not support warmup: set warmup_steps to 0"),
        ("cyclic", "", 2, "cyclic does not support warmup"),
        ("one_cycle", "", 2, "one_cycle does not support warmup"),
        ("piecewise_constant", "", 0, r"give steps, and one more factor than steps, as in steps=\(100, 200\), factors"),
        ("piecewise_constant", "steps=(2, 4), factors=(1, 2)", 0, "one more factor"),
        ("piecewise_constant", "steps=(4, 2), factors=(1, 2, 3)", 0, "steps must be above 0 and increase"),
        ("piecewise_constant", "steps=(0, 2), factors=(1, 2, 3)", 0, "steps must be above 0 and increase"),
        ("piecewise_constant", "steps=2, factors=(1, -1)", 0, "factors must be 0 or more"),
    ],
)
def test_invalid_schedule_settings_get_one_sentence(scheduler, settings, warmup, message):
    with pytest.raises(ValueError, match=message):
        check_schedule(make_config(scheduler, settings, warmup))
