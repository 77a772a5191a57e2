"""The moving average of the weights over the steps: against torch's and diffusers', saved, sampled, resumed."""

from __future__ import annotations

import folder_paths
import pytest
import torch
from diffusers.training_utils import EMAModel
from pack.trainer.config import TrainingConfig
from pack.trainer.lora_file import load_lora
from pack.trainer.optimizer import create_optimizer
from pack.trainer.state import load_state, save_state
from test_resume import assert_same, finish, interrupt_fourth_update, make_run, stop
from tiny_host import TinyHost
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

CONSTANT = {"lr_scheduler": "constant", "steps": 40}


def raw(run) -> list[torch.Tensor]:
    return [weight.clone() for weight in run.state()["weights"]]


def used(run) -> list[torch.Tensor]:
    """Return the weights for use, in the order of the parameters."""
    with run.eval_weights():
        return raw(run)


def assert_close(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7)


def test_the_average_by_hand():
    """Updates give 1 to the first, then 2/11 and 3/12 stay of the average before, as long as that is below the decay."""
    run = make_run(ema_decay=0.2, **CONSTANT)
    weights = [(raw(run), used(run)) for _ in run.steps()][:3]
    (first, _), (second, _), (third, _) = weights
    average = first
    assert_close(weights[0][1], average)
    average = [2 / 11 * old + 9 / 11 * new for old, new in zip(average, second)]
    assert_close(weights[1][1], average)
    average = [0.2 * old + 0.8 * new for old, new in zip(average, third)]  # 3/12 is above the decay
    assert_close(weights[2][1], average)


def test_the_average_is_that_of_torch_once_the_decay_is_reached():
    run = make_run(ema_decay=0.1, **CONSTANT)  # at once
    module = nn.ParameterList(nn.Parameter(weight) for weight in raw(run))
    theirs = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.1))
    for _ in run.steps():
        for parameter, weight in zip(module, raw(run)):
            parameter.data.copy_(weight)
        theirs.update_parameters(module)
        assert_close(used(run), [parameter.detach() for parameter in theirs.module])


def test_the_average_is_that_of_diffusers_with_its_rising_decay():
    run = make_run(ema_decay=0.75, **CONSTANT)  # reached after 27 steps
    module = nn.ParameterList(nn.Parameter(weight) for weight in raw(run))
    theirs = EMAModel(module.parameters(), decay=0.75)
    for _ in run.steps():
        for parameter, weight in zip(module, raw(run)):
            parameter.data.copy_(weight)
        theirs.step(module.parameters())
        assert_close(used(run), theirs.shadow_params)


def test_the_average_changes_nothing_in_what_is_trained():
    plain, averaged = make_run(**CONSTANT), make_run(ema_decay=0.9, **CONSTANT)
    finish(plain)
    finish(averaged)
    assert plain.history == averaged.history
    assert all(torch.equal(*pair) for pair in zip(raw(plain), raw(averaged)))
    assert not any(torch.equal(*pair) for pair in zip(plain.weights().values(), used(averaged)))


@pytest.mark.parametrize("optimizer", ["AdamW", "CAME", "Prodigy"])
def test_twenty_and_twenty_steps_with_an_average_are_forty_bit_for_bit(optimizer, tmp_path):
    settings = {"optimizer": optimizer, "ema_decay": 0.9, "learning_rate": 1e-2}
    straight, stopped, resumed = (make_run(**settings) for _ in range(3))
    finish(straight)
    stop(stopped, 20)
    save_state(tmp_path / "a.state", stopped.state(), {})
    resumed.load_state(load_state(tmp_path / "a.state"))
    assert_same(resumed, stopped)
    finish(resumed)
    assert_same(resumed, straight)


def test_a_training_without_an_average_resumes_with_one_and_the_other_way_round():
    first = make_run(**{**CONSTANT, "steps": 20})
    finish(first)
    second = make_run(ema_decay=0.99, **CONSTANT)
    second.load_state(first.state())
    step = second.steps()
    next(step)
    assert all(torch.equal(*pair) for pair in zip(raw(second), used(second)))
    next(step)
    assert not all(torch.equal(*pair) for pair in zip(raw(second), used(second)))
    step.close()
    third = make_run(**CONSTANT)
    third.load_state(second.state())
    assert all(torch.equal(*pair) for pair in zip(raw(third), used(third)))


def test_a_skipped_step_adds_nothing_to_the_average():
    run, calls = make_run(ema_decay=0.9, **CONSTANT), []
    predict = run._model.predict
    run._model.predict = lambda *a: predict(*a) * (float("nan") if calls.append(1) or len(calls) == 5 else 1.0)
    averages = [used(run) for _ in run.steps()]
    assert run.history.skipped == [5]
    assert all(torch.equal(*pair) for pair in zip(averages[3], averages[4]))
    assert all(weight.isfinite().all() for weight in averages[-1])


def test_an_interrupted_update_leaves_the_average_before_it():
    run, straight = make_run(ema_decay=0.9, **CONSTANT), make_run(ema_decay=0.9, **CONSTANT)
    stop(straight, 3)
    interrupt_fourth_update(run)
    assert run.state() is None
    assert_same(run, straight)


def test_files_and_results_have_the_average(tmp_path, output_folder, monkeypatch):
    tiny = TinyHost(tmp_path)
    settings = TrainingConfig(lr_scheduler="constant", ema_decay=0.9, save_every=3)
    prompt = {
        "2": {"class_type": "TrainTrain_TrainLoRA", "inputs": {}},
        "3": {
            "class_type": "TrainTrain_SaveLoRA",
            "inputs": {"name": "mine", "lora": ["2", 0], "save_precision": "fp32"},
        },
    }
    lora = tiny.train("LoRA", settings=settings, steps=6, prompt=prompt)[-2]
    plain = tiny.train("LoRA", settings=TrainingConfig(lr_scheduler="constant"), steps=6)[-2]
    assert not all(torch.equal(lora[key], plain[key]) for key in lora)
    (kept,) = (path for path in (output_folder / "traintrain").glob("*.safetensors") if path.stem.startswith("mine"))
    assert all(
        torch.equal(lora[key], tensor) for key, tensor in load_lora(kept).items()
    )  # The milestone after 3 steps is the result of a training of 3.
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "other"))
    (milestone,) = output_folder.rglob("mine_3steps.safetensors")
    short = tiny.train("LoRA", settings=settings, steps=3, preview=tiny.preview(every=3))[-2]
    assert all(torch.equal(short[key], tensor) for key, tensor in load_lora(milestone).items())


def test_impossible_decays_are_refused():
    for decay in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="ema_decay is .*set it to 0, which turns it off, or to a value below 1"):
            TrainingConfig(ema_decay=decay)
    config = TrainingConfig(optimizer="AdamWScheduleFree", lr_scheduler="constant", ema_decay=0.99)
    with pytest.raises(ValueError, match="AdamWScheduleFree averages the weights itself, and ema_decay is 0.99"):
        create_optimizer(config, [nn.Parameter(torch.ones(2))])
