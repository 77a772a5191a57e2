"""The steps of a training, against a plain loop of torch's own parts: skipped, scaled, accumulated, left early."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch
from pack.trainer.dataset.batches import draw_batches
from pack.trainer.loss import step_loss
from pack.trainer.loss_scaler import LossScaler
from pack.trainer.methods import StepOutput
from pack.trainer.run import MAX_SKIPPED, NonFiniteLoss, TrainingRun
from tiny_training import EXAMPLES, Fixed, make_training, train, weights


def test_training_is_a_plain_loop_of_torchs_own_parts():
    model, network, method, config = make_training(
        snr_gamma=0, max_grad_norm=0.5, lr_scheduler="linear", warmup_steps=2
    )
    start = weights(network)
    seen = []
    losses = train(model, network, method, config, seen.append)

    up, down = (w.clone().requires_grad_() for w in start)
    optimizer = torch.optim.AdamW([up, down], lr=1e-2)
    rng, batches = torch.Generator().manual_seed(7), draw_batches([0] * 4, 2, torch.Generator().manual_seed(7))
    rates = [1e-2 / 3, 1e-2 * 2 / 3, 1e-2, 0.75e-2, 0.5e-2, 0.25e-2]
    for step in range(6):
        chosen = next(batches)
        x0, bias = torch.stack([EXAMPLES[i].latent for i in chosen]), torch.tensor([0.1 * i for i in chosen])
        sigma = 0.03 + torch.randint(0, 1000, (2,), generator=rng).float() / 100
        noise = torch.randn(x0.shape, generator=rng)
        scaled = (x0 + sigma[:, None, None, None] * noise) / (sigma[:, None, None, None] ** 2 + 1).sqrt()
        layer = model.blocks[0]["layer"]
        loss = ((scaled @ (layer.weight + up @ down).T + layer.bias + bias[:, None, None, None] - noise) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([up, down], 0.5)
        optimizer.param_groups[0]["lr"] = rates[step]
        optimizer.step()
        assert seen[step].number == step + 1 and not seen[step].skipped
        assert (seen[step].loss, seen[step].learning_rate) == pytest.approx((loss.item(), rates[step]), rel=1e-4)
    assert losses == [step.loss for step in seen]
    for ours, theirs in zip(network.parameters(), (up, down)):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_the_same_seed_gives_the_same_lora_and_another_seed_another():
    def trained(seed):
        model, network, method, config = make_training(seed=seed)
        train(model, network, method, config)
        return torch.cat([w.flatten() for w in weights(network)])

    assert torch.equal(trained(7), trained(7))
    assert not torch.allclose(trained(7), trained(8))


def test_accumulated_batches_give_the_gradient_of_one_large_batch():
    def trained(batches, accumulation):
        model, network, _, config = make_training(steps=2, gradient_accumulation=accumulation, max_grad_norm=0.01)
        return train(model, network, Fixed(batches), config), weights(network)

    (one_losses, one), (four_losses, four) = trained([[0, 1, 2, 3]] * 2, 1), trained([[0], [1], [2], [3]] * 2, 4)
    assert one_losses == pytest.approx(four_losses, rel=1e-5)
    for a, b in zip(one, four):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_gradients_too_small_for_fp16_are_not_lost():
    """A mean over many values has gradients that fp16 rounds to zero unless the loss is scaled on the way back."""

    class Faint:
        def strength(self, step):
            return 1.0

        def run_step(self, model, network, step, rng):
            x = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(0))
            prediction = model.blocks[0]["layer"](x.to(model.dtype)).float() * 1e-7
            return StepOutput(prediction, torch.zeros_like(prediction) + 1, torch.ones(1))

    def gradient(dtype):
        model, network, _, config = make_training(steps=1, max_grad_norm=0, snr_gamma=0, optimizer_settings="eps=1e-30")
        model.dtype = dtype
        model.to(dtype)
        start = weights(network)
        train(model, network, Faint(), config)
        return [(now - then).sign() for now, then in zip(weights(network), start)][1]  # Adam's first step is the sign

    moved = gradient(torch.float16)
    assert (moved != 0).all() and torch.equal(moved, gradient(torch.float32))


class WithNaN:
    """A method whose prediction is NaN in some steps; else it is another's."""

    def __init__(self, method, steps):
        self.method, self.steps, self.skip = method, set(steps), method.skip

    def strength(self, step):
        return self.method.strength(step)

    def run_step(self, model, network, step, rng):
        output = self.method.run_step(model, network, step, rng)
        factor = float("nan") if step + 1 in self.steps else 1.0
        return StepOutput(output.prediction * factor, output.target, output.sigma, output.mask)


def test_a_step_with_nan_or_inf_is_skipped_and_the_others_count():
    """As a loop that leaves the step out: neither the weights nor the optimizer know of it."""
    model, network, method, config = make_training(steps=10, lr_scheduler="constant")
    run = TrainingRun(model, network, WithNaN(method, [3]), config)
    seen = list(run.steps())
    assert [step.number for step in seen if step.skipped] == run.history.skipped == [3] and len(run.history) == 10

    model, plain, method, config = make_training(steps=10, lr_scheduler="constant")
    up, down = plain.parameters()
    optimizer, rng = torch.optim.AdamW([up, down], lr=1e-2), torch.Generator().manual_seed(7)
    for step in range(10):
        with plain.injected():
            loss = step_loss(method.run_step(model, plain, step, rng), model, config)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([up, down], 1.0)
        if step != 2:
            optimizer.step()
            assert seen[step].loss == pytest.approx(loss.item(), rel=1e-5)
        optimizer.zero_grad()
    for ours, theirs in zip(network.parameters(), plain.parameters()):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_ten_skipped_steps_in_a_row_end_the_training_and_the_next_try_meets_other_batches():
    model, network, method, config = make_training(steps=50)
    run, reached = TrainingRun(model, network, WithNaN(method, range(4, 99)), config), []
    with pytest.raises(NonFiniteLoss, match="NaN or Inf in 10 steps in a row, up to step 13 .*up to step 3 is saved"):
        for step in run.steps():
            reached.append(step.number)
    assert reached == list(range(1, 13)) and run.history.skipped == list(range(4, 14))
    short_model, short, short_method, _ = make_training(steps=50)
    for step in TrainingRun(short_model, short, short_method, config).steps():
        if step.number == 3:
            break
    assert all(torch.equal(*pair) for pair in zip(weights(network), weights(short)))
    fresh_model, fresh_network, fresh_method, _ = make_training(steps=50)
    again = TrainingRun(fresh_model, fresh_network, WithNaN(fresh_method, range(4, 14)), config)
    again.load_state(run.state())
    assert [step.number for step in again.steps()] == list(range(14, 51))


def test_nine_skipped_steps_do_not_end_a_training():
    model, network, method, config = make_training(steps=20)
    run = TrainingRun(model, network, WithNaN(method, range(2, MAX_SKIPPED + 1)), config)
    assert len(list(run.steps())) == 20 and len(run.history.skipped) == MAX_SKIPPED - 1


def test_a_training_of_skipped_steps_alone_is_an_error():
    model, network, method, config = make_training(steps=3)
    with pytest.raises(NonFiniteLoss, match="Nothing was learned"):
        list(TrainingRun(model, network, WithNaN(method, [1, 2, 3]), config).steps())


def test_the_loss_scale_is_that_of_torchs_scaler():
    rng, ours = random.Random(1), LossScaler(torch.float16)
    weight = torch.ones(1, requires_grad=True)
    optimizer, theirs = torch.optim.SGD([weight], lr=0.0), torch.amp.GradScaler("cpu", growth_interval=2000)
    for _ in range(6000):
        overflows = rng.random() < 0.0005
        assert ours.scale == theirs.get_scale()
        weight.grad = torch.tensor([float("inf") if overflows else 1.0])
        theirs.scale(torch.ones(()))
        theirs.unscale_(optimizer)
        theirs.step(optimizer)
        theirs.update()
        ours.update(overflows)
    assert ours.scale != 2.0**16
    assert LossScaler(torch.bfloat16).scale == LossScaler(torch.float32).scale == 1


def test_an_fp16_gradient_that_overflows_is_skipped_and_tried_with_half_the_scale():
    class Steep:
        """Has a gradient in fp16 that no scale above 2^13 leaves finite."""

        def strength(self, step):
            return 1.0

        def run_step(self, model, network, step, rng):
            x = torch.ones(1, 4, 4)
            prediction = model.blocks[0]["layer"](x.half()) * 4.0
            return StepOutput(prediction, torch.zeros_like(prediction), torch.ones(1))

    model, network, _, config = make_training(steps=8, snr_gamma=0)
    model.dtype = torch.float16
    model.to(torch.float16)
    run = TrainingRun(model, network, Steep(), config)
    steps = list(run.steps())
    skipped = [step.skipped for step in steps]
    assert skipped[0] and not skipped[-1] and skipped == sorted(skipped, reverse=True)
    assert all(math.isfinite(step.loss) for step in steps)


def test_a_small_last_batch_counts_by_its_size_in_an_accumulated_gradient():
    """Of batches of 4 and of 1 the gradient is the mean over five examples."""
    model, network, _, config = make_training(steps=1, gradient_accumulation=2, snr_gamma=0, optimizer="SGDNesterov")
    config = replace(config, max_grad_norm=0, learning_rate=1.0, lr_scheduler="constant")
    up, down = weights(network)
    layer = model.blocks[0]["layer"]
    x = torch.stack([torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(i)) for i in range(5)])
    outer = up.clone().requires_grad_()
    scaled = x / 2**0.5  # what the model makes of it at sigma 1
    (scaled @ (layer.weight + outer @ down).T + layer.bias).pow(2).mean().backward()
    list(TrainingRun(model, network, Fixed([[0, 1, 2, 3], [4]]), config).steps())  # SGD with Nesterov's momentum 0.9
    torch.testing.assert_close(weights(network)[0], up - 1.9 * outer.grad, rtol=1e-4, atol=1e-6)


def test_closing_the_steps_leaves_no_hook_behind():
    class Interrupted(BaseException):
        pass

    model, network, method, config = make_training(steps=50)
    run = TrainingRun(model, network, method, config)
    steps = run.steps()
    for step in steps:
        if step.number == 4:
            break
    steps.close()
    assert len(run.history) == 4
    assert not any(module._forward_hooks for module in model.modules()) and all(
        p.grad is None for p in network.parameters()
    )
    with pytest.raises(Interrupted):
        model.predict = lambda *_: (_ for _ in ()).throw(Interrupted)
        list(run.steps())
    assert not any(module._forward_hooks for module in model.modules())
