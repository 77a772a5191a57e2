"""Layers without a gradient: those that matter are named, in the first steps of a training."""

from __future__ import annotations

import pytest
import torch
from pack.trainer.methods import StepOutput
from pack.trainer.run import TrainingRun
from tiny_training import Fixed, TinyModel, make_network, make_training
from torch import nn


class TwoLayers(TinyModel):
    """A Denoiser whose second layer does something to the prediction that depends on the test."""

    def __init__(self, combine) -> None:
        super().__init__()
        self.blocks.append(nn.ModuleDict({"layer": nn.Linear(4, 4)}).requires_grad_(False))
        self.combine = combine

    def predict(self, x_t, sigma, conditioning):
        return self.combine(self.blocks[0]["layer"](x_t), self.blocks[1]["layer"](x_t))


def run_two_layers(combine, **settings) -> None:
    _, _, method, config = make_training(steps=2, **settings)
    model = TwoLayers(combine)
    list(TrainingRun(model, make_network(model), method, config).steps())


@pytest.mark.parametrize("combine", [lambda a, b: a + b.detach(), lambda a, b: a + 0 * b + b.detach()])
def test_a_layer_that_changes_the_prediction_but_gets_no_gradient_is_named(combine):
    """As where a kernel has no backward pass."""
    with pytest.raises(RuntimeError, match="1 layers change the prediction but get no gradient.*blocks.1.layer"):
        run_two_layers(combine)


def test_a_layer_that_does_nothing_to_the_prediction_is_logged(caplog):
    """As the text's half of the last block in some families."""
    caplog.set_level("INFO")
    run_two_layers(lambda a, b: a)
    assert (
        "1 layers have no effect on the prediction for these examples and are not trained: blocks.1.layer"
        in caplog.text
    )


def test_a_layer_that_the_forward_pass_bypasses_is_named():
    class Bypassing(TwoLayers):
        def predict(self, x_t, sigma, conditioning):
            second = self.blocks[1]["layer"]
            return self.blocks[0]["layer"](x_t) + torch.nn.functional.linear(x_t, second.weight)

    _, _, method, config = make_training(steps=2)
    model = Bypassing(None)
    with pytest.raises(RuntimeError, match="1 of 2 layers are not used in .* forward pass.*: blocks.1.layer"):
        list(TrainingRun(model, make_network(model), method, config).steps())


def test_a_loss_of_zero_is_an_error():
    class Satisfied(Fixed):
        def run_step(self, model, network, step, rng):
            output = super().run_step(model, network, step, rng)
            return StepOutput(output.prediction, output.prediction.detach(), output.sigma)

    model, network, _, config = make_training(steps=3)
    with pytest.raises(ValueError, match="loss is exactly 0, so there is nothing to learn"):
        list(TrainingRun(model, network, Satisfied([[0, 1]] * 3), config).steps())


def test_a_batch_without_a_loss_says_nothing_about_the_next_ones():
    """As one of regularization images with a weight of 0, or of a prompt that already is its own target."""

    class SatisfiedAtFirst(Fixed):
        def run_step(self, model, network, step, rng):
            output = super().run_step(model, network, step, rng)
            target = output.prediction.detach() if step < 2 else output.target
            return StepOutput(output.prediction, target, output.sigma)

    model, network, _, config = make_training(steps=4)
    run = TrainingRun(model, network, SatisfiedAtFirst([[0, 1]] * 4), config)
    losses = [step.loss for step in run.steps()]
    assert losses[:2] == [0, 0] and min(losses[2:]) > 0 and run.has_learned()


def test_a_layer_without_a_gradient_is_named_after_batches_without_a_loss_too():
    model = TwoLayers(lambda a, b: a + b.detach())

    class Satisfied(Fixed):
        def run_step(self, model, network, step, rng):
            output = super().run_step(model, network, step, rng)
            return StepOutput(output.prediction, output.prediction.detach() + (step > 1), output.sigma)

    _, _, _, config = make_training(steps=4)
    with pytest.raises(RuntimeError, match="1 layers change the prediction but get no gradient"):
        list(TrainingRun(model, make_network(model), Satisfied([[0, 1]] * 4), config).steps())
