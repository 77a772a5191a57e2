"""A training that stops and goes on is the training that never stopped."""

from __future__ import annotations

import pytest
import torch
from pack.trainer.config import TrainingConfig
from pack.trainer.data import TrainingExample, draw_batches
from pack.trainer.loop import NonFiniteLoss, TrainingRun
from pack.trainer.methods.addift import ADDifT, ExamplePair
from pack.trainer.methods.denoise import Denoise
from pack.trainer.methods.ileco import ILECO
from pack.trainer.state import load_state, read_labels, save_state
from tiny_training import EXAMPLES, TinyModel, make_network

STEPS = 40


class Stop(BaseException):
    """As the host's cancelling is: no Exception."""


def make_run(method="LoRA", **settings) -> TrainingRun:
    config = TrainingConfig(**{"steps": STEPS, "batch_size": 2, "learning_rate": 1e-2, "seed": 7, **settings})
    model = TinyModel()
    batches = draw_batches([0] * 4, 2, torch.Generator().manual_seed(7))
    pairs = [ExamplePair(EXAMPLES[i], TrainingExample(EXAMPLES[i].latent + 1, 0.3)) for i in range(4)]
    made = {
        "LoRA": lambda: Denoise(EXAMPLES, batches, config),
        "iLECO": lambda: ILECO([(0.1, 0.5), (0.2, 0.6), (0.3, 0.7)], [0.9], (2, 4, 4), 0, 0.5, config),
        "LECO": lambda: ILECO([(0.1, 0.5), (0.2, 0.6), (0.3, 0.7)], [], (2, 4, 4), 4, 0.0, config),
        "ADDifT": lambda: ADDifT(pairs, batches, 3, 0.5, config),
    }
    return TrainingRun(model, make_network(model), made[method](), config)


def stop_at(last):
    def on_step(step, *_):
        if step == last:
            raise Stop

    return on_step


def trained(run) -> dict[str, torch.Tensor]:
    run.train(lambda *_: None)
    return run.weights()


def assert_same(first: TrainingRun, second: TrainingRun) -> None:
    assert first.history.losses == second.history.losses
    for ours, theirs in zip(first.weights().values(), second.weights().values(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("method", ["LoRA", "iLECO", "LECO", "ADDifT"])
@pytest.mark.parametrize("optimizer", ["AdamW", "CAME", "Prodigy", "AdamWScheduleFree"])
def test_twenty_and_twenty_steps_are_forty_bit_for_bit(method, optimizer, tmp_path):
    schedule = "constant" if "ScheduleFree" in optimizer else "cosine"
    settings = {"optimizer": optimizer, "lr_scheduler": schedule, "gradient_accumulation": 2}
    straight = make_run(method, **settings)
    straight.train(lambda *_: None)
    stopped = make_run(method, **settings)
    with pytest.raises(Stop):
        stopped.train(stop_at(20))
    assert len(stopped.history.losses) == 20
    save_state(tmp_path / "a.state", stopped.state(), {"step": "20"})
    going_on = make_run(method, **settings)
    going_on.go_on(load_state(tmp_path / "a.state"))
    going_on.train(lambda *_: None)
    assert_same(going_on, straight)
    assert read_labels(tmp_path / "a.state")["step"] == "20"


@pytest.mark.parametrize(
    "schedule, settings",
    [
        ("cosine_annealing", ""),
        ("cosine_annealing_with_restarts", "T_0=7"),
        ("reduce_on_plateau", "patience=1"),
        ("exponential", ""),
        ("piecewise_constant", "steps=(10, 30), factors=(1, 0.5, 0.1)"),
        ("one_cycle", ""),
    ],
)
def test_every_kind_of_schedule_goes_on_where_it_was(schedule, settings):
    values = {"lr_scheduler": schedule, "lr_scheduler_settings": settings}
    straight, stopped, going_on = (make_run(**values) for _ in range(3))
    straight.train(lambda *_: None)
    with pytest.raises(Stop):
        stopped.train(stop_at(20))
    going_on.go_on(stopped.state())
    going_on.train(lambda *_: None)
    assert_same(going_on, straight)


def test_a_finished_training_of_twenty_steps_goes_on_to_forty():
    straight, first = make_run(lr_scheduler="constant"), make_run(lr_scheduler="constant", steps=20)
    straight.train(lambda *_: None)
    first.train(lambda *_: None)
    second = make_run(lr_scheduler="constant")
    second.go_on(first.state())
    second.train(lambda *_: None)
    assert_same(second, straight)


def test_with_more_steps_the_schedule_is_that_of_all_of_them():
    first, second, rates = make_run(steps=20), make_run(), []
    first.train(lambda *_: None)
    second.go_on(first.state())
    second.train(lambda step, loss, rate: rates.append(rate))
    assert rates[0] == pytest.approx(1e-2 / 2) and rates[-1] < 1e-4  # a cosine of 40 steps, from its middle on


@pytest.mark.parametrize("optimizer", ["AdamW", "AdamWScheduleFree"])
def test_taking_the_weights_in_the_middle_changes_nothing(optimizer):
    run = make_run(optimizer=optimizer, lr_scheduler="constant")

    def look(*_):
        before = [weight.clone() for weight in run.state()["weights"]]
        run.weights()
        assert all(torch.equal(*pair) for pair in zip(before, run.state()["weights"]))

    run.train(look)


def test_a_schedule_free_lora_is_the_average_and_not_what_is_trained():
    run = make_run(optimizer="AdamWScheduleFree", lr_scheduler="constant")
    averaged = trained(run)
    assert not torch.equal(averaged["blocks.0.layer.lora_up.weight"], run.state()["weights"][0])


@pytest.mark.parametrize("last", [1, 2, 7])
def test_the_weights_of_a_stop_are_those_of_the_last_step_that_was_done(last):
    run, short = make_run(lr_scheduler="constant"), make_run(lr_scheduler="constant", steps=last)
    with pytest.raises(Stop):
        run.train(stop_at(last))
    short.train(lambda *_: None)
    assert len(run.history.losses) == last
    assert_same(run, short)


def test_a_stop_in_the_forward_pass_keeps_the_step_before():
    run, straight = make_run(), make_run()
    with pytest.raises(Stop):
        straight.train(stop_at(5))
    predict, calls = run._model.predict, []

    def stop(*arguments):
        calls.append(1)
        if len(calls) == 6:
            raise Stop
        return predict(*arguments)

    run._model.predict = stop
    with pytest.raises(Stop):
        run.train(lambda *_: None)
    assert_same(run, straight)
    going_on = make_run()
    going_on.go_on(run.state())
    whole = make_run()
    whole.train(lambda *_: None)
    going_on.train(lambda *_: None)
    assert_same(going_on, whole)


def test_a_step_that_is_not_finite_leaves_no_state_to_go_on_from():
    run = make_run(learning_rate=1e30, max_grad_norm=0)
    with pytest.raises(NonFiniteLoss):
        run.train(lambda *_: None)
    assert run.state() is None and all(weight.isfinite().all() for weight in run.weights().values())


def test_what_cannot_go_on_is_refused():
    done = make_run(steps=20)
    done.train(lambda *_: None)
    with pytest.raises(ValueError, match="trained for 20 steps and steps is 20"):
        make_run(steps=20).go_on(done.state())
    with pytest.raises(ValueError, match="trained with AdamW and the settings say Lion"):
        make_run(optimizer="Lion").go_on(done.state())
