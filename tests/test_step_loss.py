"""The loss of a step, its target and its timesteps, by hand; and settings that are refused."""

from __future__ import annotations

import math

import pytest
import torch
from pack.trainer.config import NetworkConfig, TrainingConfig
from pack.trainer.denoiser import FlowPrediction, NoisePrediction, VPrediction
from pack.trainer.loss import step_loss
from pack.trainer.methods import StepOutput
from pack.trainer.noise import draw_noise, draw_sigma
from tiny_training import TinyModel, make_training


def output(errors: list[list[float]], sigma: list[float], mask=None) -> StepOutput:
    """A step whose prediction differs from its target by the errors, one row per example, as (B, 1, 1, W)."""
    prediction = torch.tensor(errors)[:, None, None, :]
    return StepOutput(prediction, torch.zeros_like(prediction), torch.tensor(sigma), mask)


@pytest.mark.parametrize("loss, expected", [("MSE", 2.5), ("L1", 1.5), ("Smooth-L1", 1.0)])
def test_losses_match_their_formulas(loss, expected):
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


def test_the_mask_excludes_what_it_covers_and_each_example_counts_the_same():
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


def test_the_flow_target_points_from_the_image_to_the_noise():
    x0, noise, sigma = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3), torch.tensor([0.2, 0.9])
    s = sigma.view(-1, 1, 1, 1)
    torch.testing.assert_close(
        FlowPrediction().target((1 - s) * x0 + s * noise, x0, sigma), noise - x0, rtol=1e-4, atol=1e-4
    )


def draw_t(config: TrainingConfig, parameterization, count: int) -> torch.Tensor:
    model = TinyModel(parameterization)
    model.sigma_at = lambda t: t
    return draw_sigma(model, count, config, torch.Generator().manual_seed(0))


def test_timesteps_of_noise_models_are_uniform_within_the_limits():
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


@pytest.mark.parametrize("parameterization", [NoisePrediction(), VPrediction(), FlowPrediction()])
def test_uniform_timesteps_are_all_alike_whatever_the_model(parameterization):
    t = draw_t(TrainingConfig(timesteps="uniform", min_timestep=200, max_timestep=600), parameterization, 40_000)
    assert t.min() >= 200 and t.max() < 600
    for limit, share in ((250, 0.125), (400, 0.5), (500, 0.75)):
        assert (t < limit).float().mean().item() == pytest.approx(share, abs=0.01)


def test_a_flow_model_gets_no_timestep_at_which_it_divides_by_zero():
    t = draw_t(TrainingConfig(timesteps="uniform", max_timestep=1), FlowPrediction(), 10_000)
    assert 0 < t.min() and t.max() < 1 and len(t.unique()) > 9000


@pytest.mark.parametrize("parameterization", [NoisePrediction(), VPrediction(), FlowPrediction()])
def test_logit_normal_timesteps_are_the_sigmoid_of_a_normal_whatever_the_model(parameterization):
    t = draw_t(TrainingConfig(timesteps="logit-normal"), parameterization, 40_000) / 1000
    for z, share in ((-1.0, 0.1587), (0.0, 0.5), (1.0, 0.8413)):
        assert (t < 1 / (1 + math.exp(-z))).float().mean().item() == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize("side, ratio", [(1024, 1.0), (512, 0.5), (2048, 2.0)])
@pytest.mark.parametrize("limits", [(0, 1000), (300, 800)])
def test_the_resolution_shift_is_that_of_the_sd3_paper(side, ratio, limits):
    """t becomes r t / (1 + (r - 1) t), where r is the square root of the ratio of the pixels; compared by quantiles."""
    model = TinyModel(FlowPrediction())
    model.sigma_at, model.pixels_per_latent = lambda t: t, 8
    config = TrainingConfig(timesteps="resolution shift", min_timestep=limits[0], max_timestep=limits[1])
    rng = torch.Generator().manual_seed(0)
    drawn = draw_sigma(model, 40_000, config, rng, (4, side // 8, side // 8)) / 1000
    plain = torch.sigmoid(torch.randn(400_000, generator=rng))
    shifted = ratio * plain / (1 + (ratio - 1) * plain)
    shifted = shifted[(shifted >= limits[0] / 1000) & (shifted < limits[1] / 1000)]
    at = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
    torch.testing.assert_close(drawn.quantile(at), shifted[:200_000].quantile(at), rtol=0, atol=0.01)


def test_the_usual_timesteps_are_the_same_numbers_by_their_own_names():
    for parameterization, name in ((NoisePrediction(), "uniform"), (FlowPrediction(), "logit-normal")):
        usual = draw_t(TrainingConfig(min_timestep=100), parameterization, 50)
        assert torch.equal(usual, draw_t(TrainingConfig(min_timestep=100, timesteps=name), parameterization, 50))


def test_the_noise_offset_moves_each_channel_of_each_example_by_its_own_number():
    rng = lambda: torch.Generator().manual_seed(1)  # noqa: E731
    plain, moved = draw_noise((500, 4, 8, 8), "cpu", rng()), draw_noise((500, 4, 8, 8), "cpu", rng(), 0.1)
    offset = moved - plain
    torch.testing.assert_close(offset, offset[..., :1, :1].expand_as(offset), rtol=0, atol=1e-5)
    assert offset[..., 0, 0].std().item() == pytest.approx(0.1, rel=0.05) and abs(offset.mean()) < 0.01
    assert len(offset[..., 0, 0].flatten().round(decimals=5).unique()) > 1900
    assert draw_noise((2, 4, 3, 8, 8), "cpu", rng(), 0.1).shape == (2, 4, 3, 8, 8)  # latents with time
    assert torch.equal(draw_noise((2, 4), "cpu", rng(), 0.0), draw_noise((2, 4), "cpu", rng()))


def test_the_noise_offset_is_part_of_the_target():
    """A model that predicts noise must predict the offset too, or it could not learn brightness."""
    seen = []

    def x_ts(**settings) -> torch.Tensor:
        model, network, method, config = make_training(steps=3, snr_gamma=0, **settings)
        model.add_noise = lambda x0, noise, sigma: seen.append(noise) or x0 + sigma.view(-1, 1, 1, 1) * noise
        output = method.run_step(model, network, 0, torch.Generator().manual_seed(1))
        torch.testing.assert_close(output.target, seen[-1], rtol=1e-3, atol=1e-3)
        return output.target

    assert (x_ts(noise_offset=0.5) - x_ts()).abs().max() > 0.1


def test_a_batch_can_share_one_timestep():
    assert len(draw_t(TrainingConfig(fixed_timestep_in_batch=True), NoisePrediction(), 8).unique()) == 1
    assert len(draw_t(TrainingConfig(), NoisePrediction(), 8).unique()) > 1


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: TrainingConfig(steps=-1), "steps is -1: set it to 0 or more"),
        (lambda: TrainingConfig(learning_rate=float("nan")), "learning_rate is nan"),
        (lambda: TrainingConfig(min_timestep=600, max_timestep=600), "from 600 to 600"),
        (lambda: TrainingConfig(loss="L3"), "MSE, L1, Smooth-L1"),
        (
            lambda: TrainingConfig(timesteps="cosine"),
            "timesteps is 'cosine': choose one of usual, uniform",
        ),
        (lambda: TrainingConfig(noise_offset=-0.1), "noise_offset is -0.1: set it to 0 or more"),
        (lambda: TrainingConfig(steps=5, warmup_steps=5), "warmup_steps is 5 of 5"),
        (lambda: NetworkConfig(rank=0), "rank is 0"),
        (lambda: NetworkConfig(alpha=0), "alpha is 0"),
        (lambda: NetworkConfig(network_type="dora"), "lierla, c3lier"),
    ],
)
def test_invalid_settings_get_one_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()
