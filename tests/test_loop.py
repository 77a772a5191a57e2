"""The training step: losses and weights by hand, the loop against a plain one of torch's own parts."""

from __future__ import annotations

import math

import pytest
import torch
from pack.trainer.config import NetworkConfig, TrainingConfig
from pack.trainer.data import draw_batches
from pack.trainer.denoiser import FlowPrediction, NoisePrediction, VPrediction
from pack.trainer.loop import NonFiniteLoss
from pack.trainer.loss import step_loss
from pack.trainer.methods import StepOutput
from pack.trainer.noise import draw_sigma
from tiny_training import EXAMPLES, TinyModel, make_training, train, weights


def test_training_is_a_plain_loop_of_torchs_own_parts():
    model, network, method, config = make_training(
        snr_gamma=0, max_grad_norm=0.5, lr_scheduler="linear", warmup_steps=2
    )
    start = weights(network)
    seen = []
    losses = train(model, network, method, config, lambda *figures: seen.append(figures))

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
        assert seen[step] == pytest.approx((step + 1, loss.item(), rates[step]), rel=1e-4)
    assert losses == [loss for _, loss, _ in seen]
    for ours, theirs in zip(network.parameters(), (up, down)):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_the_same_seed_gives_the_same_lora_and_another_seed_another():
    def trained(seed):
        model, network, method, config = make_training(seed=seed)
        train(model, network, method, config, lambda *_: None)
        return torch.cat([w.flatten() for w in weights(network)])

    assert torch.equal(trained(7), trained(7))
    assert not torch.allclose(trained(7), trained(8))


def test_accumulated_batches_give_the_gradient_of_one_large_batch():
    class Fixed:
        """Hands out the batches it is given, with the same noise for each example whatever its batch."""

        def __init__(self, batches):
            self.batches = iter(batches)

        def strength(self, step):
            return 1.0

        def run_step(self, model, network, step, rng):
            chosen = next(self.batches)
            x_t = torch.stack([torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(i)) for i in chosen])
            sigma = torch.ones(len(chosen))
            return StepOutput(model.predict(x_t, sigma, [0.0] * len(chosen)), torch.zeros_like(x_t), sigma)

    def trained(batches, accumulation):
        model, network, _, config = make_training(steps=2, gradient_accumulation=accumulation, max_grad_norm=0.01)
        return train(model, network, Fixed(batches), config, lambda *_: None), weights(network)

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
        train(model, network, Faint(), config, lambda *_: None)
        return [(now - then).sign() for now, then in zip(weights(network), start)][1]  # Adam's first step is the sign

    moved = gradient(torch.float16)
    assert (moved != 0).all() and torch.equal(moved, gradient(torch.float32))


def test_a_loss_that_is_no_number_stops_with_its_step_and_the_last_good_weights():
    model, network, method, config = make_training(steps=5)
    reached = []

    def train_for(steps):
        broken, fresh, denoise, _ = make_training(steps=5)
        predict = broken.predict
        calls = iter(range(100))
        broken.predict = lambda *a: predict(*a) * (float("nan") if next(calls) == steps else 1.0)
        with pytest.raises(NonFiniteLoss, match=f"step {steps + 1}"):
            train(broken, fresh, denoise, config, lambda step, *_: reached.append(step))
        return weights(fresh)

    class Enough(BaseException):
        pass

    def stop(step, *_):
        if step == 3:
            raise Enough

    broken = train_for(3)
    assert reached == [1, 2, 3]
    # Stopped in the fourth step's turn, after the third update and before the fourth.
    with pytest.raises(Enough):
        train(model, network, method, config, stop)
    for ours, good in zip(broken, weights(network)):
        assert torch.equal(ours, good)


def test_what_on_step_raises_ends_the_training_and_takes_the_hooks_off():
    class Interrupted(BaseException):
        pass

    model, network, method, config = make_training(steps=50)

    def interrupt(step, loss, rate):
        if step == 4:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(model, network, method, config, interrupt)
    assert not any(module._forward_hooks for module in model.modules())


def output(errors: list[list[float]], sigma: list[float], mask=None) -> StepOutput:
    """A step whose prediction differs from its target by the errors, one row per example, as (B, 1, 1, W)."""
    prediction = torch.tensor(errors)[:, None, None, :]
    return StepOutput(prediction, torch.zeros_like(prediction), torch.tensor(sigma), mask)


@pytest.mark.parametrize("loss, expected", [("MSE", 2.5), ("L1", 1.5), ("Smooth-L1", 1.0)])
def test_losses_are_those_of_the_book(loss, expected):
    # errors 1 and 2; smooth L1 is 0.5 at 1 and 1.5 at 2
    assert step_loss(
        output([[1.0, -2.0]], [1.0]), TinyModel(), TrainingConfig(loss=loss, snr_gamma=0)
    ).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    "parameterization, weights_by_hand",
    [
        # SNR is 1 / sigma^2: 16 and 4. Noise: min(SNR, 5) / SNR. v: min(SNR, 5) / (SNR + 1). Flow: 1.
        (NoisePrediction(), (5 / 16, 1.0)),
        (VPrediction(), (5 / 17, 4 / 5)),
        (FlowPrediction(), (1.0, 1.0)),
    ],
)
def test_min_snr_weights_each_example(parameterization, weights_by_hand):
    loss = step_loss(output([[1.0], [3.0]], [0.25, 0.5]), TinyModel(parameterization), TrainingConfig(snr_gamma=5))
    assert loss.item() == pytest.approx((1 * weights_by_hand[0] + 9 * weights_by_hand[1]) / 2)


def test_the_mask_leaves_out_what_it_covers_and_each_example_counts_the_same():
    mask = torch.tensor([[[1.0, 0, 0, 0]], [[1.0, 1, 0, 0]]])
    loss = step_loss(
        output([[2.0, 9, 9, 9], [1.0, 3, 9, 9]], [1.0, 1.0], mask), TinyModel(), TrainingConfig(snr_gamma=0)
    )
    assert loss.item() == pytest.approx((4 + (1 + 9) / 2) / 2)


def test_the_mask_works_on_latents_with_time():
    errors = torch.tensor([2.0, 9.0]).expand(1, 3, 5, 1, 2)  # (B, C, T, H, W)
    step = StepOutput(errors, torch.zeros_like(errors), torch.ones(1), torch.tensor([[[1.0, 0.0]]]))
    loss = step_loss(step, TinyModel(), TrainingConfig(snr_gamma=0))
    assert loss.item() == pytest.approx(4)


@pytest.mark.parametrize("parameterization", [NoisePrediction(), VPrediction()])
def test_targets_are_the_noise_and_v(parameterization):
    x0, noise, sigma = (
        torch.randn(2, 4, 3, 3).double(),
        torch.randn(2, 4, 3, 3).double(),
        torch.tensor([0.3, 7.0]).double(),
    )
    s = sigma.view(-1, 1, 1, 1)
    alpha, spread = 1 / (s**2 + 1).sqrt(), s / (s**2 + 1).sqrt()  # the variance-preserving names
    by_book = noise if isinstance(parameterization, NoisePrediction) else alpha * noise - spread * x0
    torch.testing.assert_close(parameterization.target(x0 + s * noise, x0, sigma), by_book)


def test_the_flow_target_points_from_the_picture_to_the_noise():
    x0, noise, sigma = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3), torch.tensor([0.2, 0.9])
    s = sigma.view(-1, 1, 1, 1)
    torch.testing.assert_close(
        FlowPrediction().target((1 - s) * x0 + s * noise, x0, sigma), noise - x0, rtol=1e-4, atol=1e-4
    )


def draw_t(config: TrainingConfig, parameterization, count: int) -> torch.Tensor:
    model = TinyModel(parameterization)
    model.sigma_at = lambda t: t
    return draw_sigma(model, count, config, torch.Generator().manual_seed(0))


def test_timesteps_are_even_for_noise_models_and_within_the_limits():
    t = draw_t(TrainingConfig(min_timestep=200, max_timestep=204), NoisePrediction(), 8000)
    values, counts = t.unique(return_counts=True)
    assert values.tolist() == [200, 201, 202, 203]
    assert counts.min() > 1850 and counts.max() < 2150


def test_timesteps_of_flow_models_are_the_sigmoid_of_a_normal():
    t = draw_t(TrainingConfig(), FlowPrediction(), 40_000) / 1000
    for z, share in ((-1.0, 0.1587), (0.0, 0.5), (1.0, 0.8413)):  # the normal distribution's own table
        assert (t < 1 / (1 + math.exp(-z))).float().mean().item() == pytest.approx(share, abs=0.01)


def test_timesteps_of_flow_models_keep_their_shape_within_the_limits():
    t = draw_t(TrainingConfig(min_timestep=500, max_timestep=1000), FlowPrediction(), 20_000)
    assert t.min() >= 500 and t.max() < 1000
    # The upper half of the normal: its median lies at 0.6745.
    assert t.median().item() == pytest.approx(1000 / (1 + math.exp(-0.6745)), abs=5)


def test_one_timestep_serves_the_batch_if_asked():
    assert len(draw_t(TrainingConfig(fixed_timestep_in_batch=True), NoisePrediction(), 8).unique()) == 1
    assert len(draw_t(TrainingConfig(), NoisePrediction(), 8).unique()) > 1


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: TrainingConfig(steps=0), "steps is 0: set it to 1 or more"),
        (lambda: TrainingConfig(learning_rate=float("nan")), "learning_rate is nan"),
        (lambda: TrainingConfig(min_timestep=600, max_timestep=600), "from 600 to 600"),
        (lambda: TrainingConfig(loss="L3"), "MSE, L1, Smooth-L1"),
        (lambda: TrainingConfig(steps=5, warmup_steps=5), "warmup_steps is 5 of 5"),
        (lambda: NetworkConfig(rank=0), "rank is 0"),
        (lambda: NetworkConfig(alpha=0), "alpha is 0"),
        (lambda: NetworkConfig(network_type="dora"), "lierla, c3lier"),
    ],
)
def test_wrong_settings_get_one_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()
