"""A training that stops and resumes is the training that never stopped."""

from __future__ import annotations

import pytest
import torch
from pack.trainer.caption_draw import CaptionConfig, CaptionDraw
from pack.trainer.config import TrainingConfig
from pack.trainer.dataset.batches import draw_batches
from pack.trainer.methods.addift import ADDifT, ExamplePair
from pack.trainer.methods.denoise import Denoise
from pack.trainer.methods.ileco import ILECO
from pack.trainer.methods.slider import Poles, Slider
from pack.trainer.run import TrainingRun
from pack.trainer.state import load_state, read_labels, save_state
from pack.trainer.training_example import TrainingExample
from tiny_training import EXAMPLES, TinyModel, make_network

STEPS = 40


class Stop(BaseException):
    """As the host's cancelling is: no Exception."""


class TinyTextEncoder:
    """Encodes a caption as a number that depends on the order of its tags."""

    def encode(self, captions):
        return [float(caption.replace(", ", "") or 0) / 1000 for caption in captions]


def draw_captions() -> CaptionDraw:
    choices = [["1, 2, 3, 4", "5, 6, 7"], ["8"], ["2, 4, 6, 8"], ["9, 7, 5", "1"]]
    return CaptionDraw(choices, "", CaptionConfig(shuffle_tags=True, dropout=0.2), seed=7)


def make_run(method="LoRA", **settings) -> TrainingRun:
    config = TrainingConfig(**{"steps": STEPS, "batch_size": 2, "learning_rate": 1e-2, "seed": 7, **settings})
    model = TinyModel()
    batches = draw_batches([0] * 4, 2, torch.Generator().manual_seed(7))
    pairs = [ExamplePair(EXAMPLES[i], TrainingExample(EXAMPLES[i].latent + 1, 0.3)) for i in range(4)]
    made = {
        "LoRA": lambda: Denoise(EXAMPLES, batches, config),
        "LoRA on drawn captions": lambda: Denoise(EXAMPLES, batches, config, TinyTextEncoder(), draw_captions()),
        "iLECO": lambda: ILECO([(0.1, 0.5), (0.2, 0.6), (0.3, 0.7)], [0.9], (2, 4, 4), 0, 0.5, config),
        "LECO": lambda: ILECO([(0.1, 0.5), (0.2, 0.6), (0.3, 0.7)], [], (2, 4, 4), 4, 0.0, config),
        "slider": lambda: Slider([Poles(0.5, 0.1, 0.2), Poles(0.6, 0.1, 0.3)], (2, 4, 4), 0, 2.0, config),
        "ADDifT": lambda: ADDifT(pairs, batches, 3, 0.5, config),
    }
    return TrainingRun(model, make_network(model), made[method](), config)


def finish(run) -> None:
    for _ in run.steps():
        pass


def stop(run, last) -> None:
    """Leave a run after a step, while the next one is under way."""
    steps = run.steps()
    assert any(step.number == last for step in steps)
    steps.close()


def trained(run) -> dict[str, torch.Tensor]:
    finish(run)
    return run.weights()


def assert_same(first: TrainingRun, second: TrainingRun) -> None:
    assert first.history.losses == second.history.losses
    for ours, theirs in zip(first.weights().values(), second.weights().values(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("method", ["LoRA", "LoRA on drawn captions", "iLECO", "LECO", "slider", "ADDifT"])
@pytest.mark.parametrize("optimizer", ["AdamW", "CAME", "Prodigy", "AdamWScheduleFree"])
def test_twenty_and_twenty_steps_are_forty_bit_for_bit(method, optimizer, tmp_path):
    schedule = "constant" if "ScheduleFree" in optimizer else "cosine"
    settings = {"optimizer": optimizer, "lr_scheduler": schedule, "gradient_accumulation": 2}
    straight = make_run(method, **settings)
    finish(straight)
    stopped = make_run(method, **settings)
    stop(stopped, 20)
    assert len(stopped.history.losses) == 20
    save_state(tmp_path / "a.state", stopped.state(), {"step": "20"})
    resumed = make_run(method, **settings)
    resumed.load_state(load_state(tmp_path / "a.state"))
    finish(resumed)
    assert_same(resumed, straight)
    assert read_labels(tmp_path / "a.state")["step"] == "20"


@pytest.mark.parametrize("optimizer", ["AdamW", "AdamMini", "CAME", "AdamWScheduleFree"])
def test_a_training_with_a_lora_plus_ratio_resumes_bit_for_bit(optimizer, tmp_path):
    schedule = "constant" if "ScheduleFree" in optimizer else "cosine"
    straight, stopped, resumed = (
        make_run(optimizer=optimizer, lr_scheduler=schedule, lora_plus_ratio=16) for _ in range(3)
    )
    finish(straight)
    stop(stopped, 20)
    save_state(tmp_path / "a.state", stopped.state(), {})
    resumed.load_state(load_state(tmp_path / "a.state"))
    finish(resumed)
    assert_same(resumed, straight)


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
def test_every_kind_of_schedule_resumes_where_it_was(schedule, settings):
    values = {"lr_scheduler": schedule, "lr_scheduler_settings": settings}
    straight, stopped, resumed = (make_run(**values) for _ in range(3))
    finish(straight)
    stop(stopped, 20)
    resumed.load_state(stopped.state())
    finish(resumed)
    assert_same(resumed, straight)


def test_a_finished_training_of_twenty_steps_resumes_to_forty():
    straight, first = make_run(lr_scheduler="constant"), make_run(lr_scheduler="constant", steps=20)
    finish(straight)
    finish(first)
    second = make_run(lr_scheduler="constant")
    second.load_state(first.state())
    finish(second)
    assert_same(second, straight)


def test_with_more_steps_the_schedule_is_that_of_all_of_them():
    first, second, rates = make_run(steps=20), make_run(), []
    finish(first)
    second.load_state(first.state())
    rates += [step.learning_rate for step in second.steps()]
    assert rates[0] == pytest.approx(1e-2 / 2) and rates[-1] < 1e-4  # a cosine of 40 steps, from its middle on


@pytest.mark.parametrize("optimizer", ["AdamW", "AdamWScheduleFree"])
def test_taking_the_weights_in_the_middle_changes_nothing(optimizer):
    run = make_run(optimizer=optimizer, lr_scheduler="constant")

    def look(*_):
        before = [weight.clone() for weight in run.state()["weights"]]
        run.weights()
        assert all(torch.equal(*pair) for pair in zip(before, run.state()["weights"]))

    for _ in run.steps():
        look()


def test_a_schedule_free_lora_is_the_average_and_not_what_is_trained():
    run = make_run(optimizer="AdamWScheduleFree", lr_scheduler="constant")
    averaged = trained(run)
    assert not torch.equal(averaged["blocks.0.layer.lora_up.weight"], run.state()["weights"][0])


@pytest.mark.parametrize("last", [1, 2, 7])
def test_the_weights_of_a_stop_are_those_of_the_last_step_that_was_done(last):
    run, short = make_run(lr_scheduler="constant"), make_run(lr_scheduler="constant", steps=last)
    stop(run, last)
    finish(short)
    assert len(run.history.losses) == last
    assert_same(run, short)


def test_a_stop_in_the_forward_pass_keeps_the_step_before():
    run, straight = make_run(), make_run()
    stop(straight, 5)
    predict, calls = run._model.predict, []

    def stop_in_the_sixth(*arguments):
        calls.append(1)
        if len(calls) == 6:
            raise Stop
        return predict(*arguments)

    run._model.predict = stop_in_the_sixth
    with pytest.raises(Stop):
        finish(run)
    assert_same(run, straight)
    resumed = make_run()
    resumed.load_state(run.state())
    whole = make_run()
    finish(whole)
    finish(resumed)
    assert_same(resumed, whole)


def interrupt_fourth_update(run: TrainingRun) -> None:
    """Train until an exception comes at the end of the fourth update, when the weights are changed and not yet counted."""
    update, calls = run._optimizer.step, []

    def cut() -> None:
        calls.append(1)
        update()
        if len(calls) == 4:
            raise Stop

    run._optimizer.step = cut
    with pytest.raises(Stop):
        finish(run)


def test_an_interrupted_update_leaves_the_weights_before_it_and_no_state():
    run, straight = make_run(), make_run()
    stop(straight, 3)
    interrupt_fourth_update(run)
    assert run.state() is None
    assert_same(run, straight)


def test_a_skipped_step_is_part_of_the_state(tmp_path):
    def nan_in_the_fifth(run):
        predict, calls = run._model.predict, []
        run._model.predict = lambda *a: predict(*a) * (float("nan") if calls.append(1) or len(calls) == 5 else 1.0)
        return run

    straight, stopped, resumed = nan_in_the_fifth(make_run()), nan_in_the_fifth(make_run()), make_run()
    finish(straight)
    stop(stopped, 20)
    save_state(tmp_path / "a.state", stopped.state(), {})
    resumed.load_state(load_state(tmp_path / "a.state"))
    finish(resumed)
    assert resumed.history.skipped == straight.history.skipped == [5]
    assert all(torch.equal(*pair) for pair in zip(resumed.weights().values(), straight.weights().values()))


def test_a_state_that_cannot_be_resumed_is_refused():
    done = make_run(steps=20)
    finish(done)
    with pytest.raises(ValueError, match="trained for 20 steps and steps is 20"):
        make_run(steps=20).load_state(done.state())
    with pytest.raises(ValueError, match="trained with AdamW and optimizer is Lion"):
        make_run(optimizer="Lion").load_state(done.state())
