"""What each method asks of the model: which latents, which prompts, which strength."""

from __future__ import annotations

import itertools

import comfy.model_sampling
import pytest
import torch
from pack.trainer.config import TrainingConfig
from pack.trainer.denoiser import FlowPrediction, NoisePrediction, VPrediction
from pack.trainer.methods.addift import ADDifT, ExamplePair
from pack.trainer.methods.ileco import ILECO
from pack.trainer.methods.slider import Poles, Slider
from pack.trainer.training_example import TrainingExample

SHAPE = (4, 2, 2)


class Recorder:
    """A model whose prediction names its prompt and the LoRA's strength, and a network that knows the strength."""

    device, dtype, parameterization = torch.device("cpu"), torch.float32, NoisePrediction()

    def __init__(self, strength: float = 1.0) -> None:
        self.strength, self.calls = strength, []

    def scaled(self, strength):
        recorder, before = self, self.strength

        class Scaled:
            __enter__ = lambda _: setattr(recorder, "strength", strength)  # noqa: E731
            __exit__ = lambda *_: setattr(recorder, "strength", before)  # noqa: E731

        return Scaled()

    def sigma_at(self, t):
        return t / 100 + 0.1

    def add_noise(self, x0, noise, sigma):
        return x0 + noise * sigma.view(-1, 1, 1, 1)

    def predict(self, x_t, sigma, prompts):
        self.calls.append((x_t, sigma, list(prompts), self.strength, torch.is_grad_enabled()))
        return torch.stack([torch.full(SHAPE, prompt + self.strength / 100) for prompt in prompts])


def run(method, step: int = 0, seed: int = 0):
    model = Recorder(method.strength(step))
    return method.run_step(model, model, step, torch.Generator().manual_seed(seed)), model.calls


def firsts(tensor: torch.Tensor) -> list[float]:
    return [round(value, 4) for value in tensor[:, 0, 0, 0].tolist()]


def ileco(pairs, preserved=(), denoise_steps=0, guidance=0.0, **settings):
    return ILECO(
        pairs, list(preserved), SHAPE, denoise_steps, guidance, TrainingConfig(**{"batch_size": 2, **settings})
    )


def test_ileco_predicts_the_originals_with_the_lora_towards_the_targets_without():
    output, (teacher, student) = run(ileco([(1, 5), (2, 6), (3, 7)], batch_size=3))
    assert firsts(output.prediction) == [1.01, 2.01, 3.01] and firsts(output.target) == [5, 6, 7]
    assert torch.equal(teacher[0], student[0]) and torch.equal(teacher[1], student[1]) and len(set(student[1])) == 3
    assert not teacher[4] and student[4]


def test_ileco_takes_its_prompts_in_turn():
    method = ileco([(1, 5), (2, 6), (3, 7)])
    seen = [firsts(run(method, step)[0].target) for step in range(3)]
    assert seen == [[5, 6], [7, 5], [6, 7]]


def test_preserved_prompts_are_their_own_targets():
    output, (_, student) = run(ileco([(1, 5)], preserved=[8, 9]))
    assert firsts(output.prediction) == [1.01, 1.01, 8.01, 9.01] and firsts(output.target) == [5, 5, 8, 9]
    assert len(set(student[1].tolist())) == 4


def test_guidance_leads_beyond_the_target_away_from_the_original():
    output, calls = run(ileco([(1, 5)], preserved=[8], guidance=0.5))
    assert firsts(output.target) == [7, 7, 8, 8]  # 5 + 0.5 * (5 - 1)
    assert [call[4] for call in calls] == [False, False, True]


def test_ileco_draws_new_noise_each_step_and_the_same_for_a_seed():
    method = ileco([(1, 5)])
    (first, second), again = [run(method, seed=seed)[1][0][0] for seed in (0, 1)], run(ileco([(1, 5)]), seed=0)[1][0][0]
    assert not torch.equal(first, second) and torch.equal(first, again)


@pytest.mark.parametrize(
    "kind, sampling, prediction",
    [
        (comfy.model_sampling.EPS, comfy.model_sampling.ModelSamplingDiscrete, NoisePrediction()),
        (comfy.model_sampling.V_PREDICTION, comfy.model_sampling.ModelSamplingDiscrete, VPrediction()),
        (comfy.model_sampling.CONST, comfy.model_sampling.ModelSamplingDiscreteFlow, FlowPrediction()),
    ],
)
def test_scaled_noise_and_derivative_agree_with_the_hosts_model_sampling(kind, sampling, prediction):
    theirs = type("Sampling", (sampling, kind), {})()
    sigma = torch.tensor([0.05, 0.3, 0.9]) if kind is comfy.model_sampling.CONST else torch.tensor([0.05, 1.0, 12.0])
    noise, output = torch.randn(3, 4, 100, 100), torch.randn(3, 4, 100, 100)
    x_t = prediction.scale_noise(noise, sigma)
    torch.testing.assert_close(theirs.calculate_input(sigma, x_t), noise, rtol=1e-5, atol=1e-5)

    x0 = theirs.calculate_denoised(sigma, output, x_t)
    torch.testing.assert_close(prediction.target(x_t, x0, sigma), output, rtol=1e-3, atol=1e-3)
    derivative = (x_t - x0) / sigma.view(-1, 1, 1, 1)  # the ODE of Karras et al., and what the host's Euler takes
    torch.testing.assert_close(prediction.derivative(x_t, output, sigma), derivative, rtol=1e-3, atol=1e-3)


def test_leco_denoises_the_original_prompt_with_the_lora_before_the_step():
    output, calls = run(ileco([(1, 5)], denoise_steps=10, min_timestep=490, max_timestep=491))
    *path, teacher, student = calls
    assert len(path) == 5 and all(call[2:] == ([1, 1], 1.0, False) for call in path)
    assert teacher[2:] == ([5, 5], 0.0, False) and student[2:] == ([1, 1], 1.0, True)
    levels = [call[1][0].item() for call in path] + [student[1][0].item()]
    assert levels[0] == pytest.approx(10.1) and 5.0 <= levels[-1] <= 5.011
    assert all(a - b == pytest.approx((levels[0] - levels[-1]) / 5, abs=1e-3) for a, b in itertools.pairwise(levels))
    # The recorder predicts 1.01 everywhere, so Euler's way is a straight line.
    torch.testing.assert_close(student[0], path[0][0] + 1.01 * (levels[-1] - levels[0]), rtol=1e-4, atol=1e-4)


def addift(pairs=None, bands=10, alternation=1.0, full_at=0.25, learns_images=False, **settings):
    pairs = pairs or [ExamplePair(example(0.0, 1), example(50.0, 2))]
    config = TrainingConfig(**{"batch_size": 1, **settings})
    return ADDifT(pairs, itertools.cycle([[0]]), bands, alternation, config, full_at, learns_images)


def example(value: float, prompt: int, mask=None) -> TrainingExample:
    return TrainingExample(torch.full(SHAPE, value), prompt, mask)


def test_addift_leads_there_and_back_in_turn():
    method = addift(alternation=0.4)
    there, (teacher, student) = run(method, 0)
    assert firsts(there.target) == [1.0] and firsts(there.prediction) == [2.0025]
    torch.testing.assert_close(student[0] - 50, teacher[0])  # the same noise at the same level on both pictures
    back, (teacher, student) = run(method, 1)
    assert firsts(back.target) == [2.0] and firsts(back.prediction) == [0.999]
    torch.testing.assert_close(student[0] + 50, teacher[0])
    assert not teacher[4] and student[4] and teacher[3] == 0.0


def test_without_alternation_every_turn_leads_there():
    method = addift(alternation=0.0)
    assert [method.strength(step) for step in range(4)] == [0.25] * 4
    assert firsts(run(method, 1)[0].target) == [1.0]


def test_full_at_is_the_strength_of_both_directions():
    method = addift(full_at=1.0, alternation=0.4)
    assert [method.strength(step) for step in range(2)] == [1.0, -0.4]


def test_learned_from_images_each_direction_denoises_its_own_image():
    method = addift(full_at=1.0, learns_images=True)
    for step, value, prompt in ((0, 50.0, 2), (1, 0.0, 1)):
        output, calls = run(method, step)
        (student,) = calls  # no teacher
        assert student[2] == [prompt] and student[4] and student[3] == method.strength(step)
        x_t, sigma = student[0], student[1].view(-1, 1, 1, 1)
        torch.testing.assert_close(output.target, (x_t - value) / sigma, rtol=1e-4, atol=1e-4)  # the noise


def test_the_timesteps_sweep_their_range_in_bands_of_two_turns():
    method = addift(bands=5, min_timestep=500, max_timestep=1000)
    for step in range(24):
        t = (run(method, step, seed=step)[1][0][1].item() - 0.1) * 100
        low = 500 + 100 * (step // 2 % 5)
        assert low - 0.01 <= t < low + 100


def test_a_range_narrower_than_its_bands_is_swept_timestep_by_timestep():
    method = addift(bands=10, min_timestep=300, max_timestep=303)
    drawn = [round((run(method, step)[1][0][1].item() - 0.1) * 100) for step in range(0, 8, 2)]
    assert drawn == [300, 301, 302, 300]


def test_the_mask_of_the_pair_goes_with_the_loss():
    mask = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    pair = ExamplePair(example(0.0, 1, mask), example(50.0, 2, mask))
    for step in (0, 1):
        assert torch.equal(run(addift([pair]), step)[0].mask, mask[None])


def slider(poles, denoise_steps=0, guidance=2.0, **settings):
    return Slider(poles, SHAPE, denoise_steps, guidance, TrainingConfig(**{"batch_size": 1, **settings}))


def test_a_slider_moves_what_it_acts_on_by_the_difference_of_its_poles():
    """By hand: 4 + 2 * (7 - 1) at strength 1, and 4 - 2 * (7 - 1) at strength -1, all without the LoRA."""
    for step, strength, target in ((0, 1.0, 16.0), (1, -1.0, -8.0), (2, 1.0, 16.0)):
        method = slider([Poles(7, 1, 4)])
        output, calls = run(method, step)
        assert method.strength(step) == strength
        assert firsts(output.target) == [target] and firsts(output.prediction) == [4 + strength / 100]
        *teachers, student = calls
        assert [(prompts, lora, grad) for _, _, prompts, lora, grad in teachers] == [
            ([4], 0.0, False),
            ([7], 0.0, False),
            ([1], 0.0, False),
        ]
        assert student[2:] == ([4], strength, True)
        assert all(torch.equal(x_t, student[0]) and torch.equal(sigma, student[1]) for x_t, sigma, *_ in teachers)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_every_pole_is_trained_in_both_directions(count, accumulation):
    method = slider([Poles(0, 0, number) for number in range(count)], gradient_accumulation=accumulation)
    seen = [
        (method.strength(step), run(method, step)[1][-1][2][0])
        for step in range(2 * count)
        for _ in range(accumulation)
    ]
    assert sorted(seen) == sorted([(strength, n) for strength in (-1.0, 1.0) for n in range(count)] * accumulation)


def test_a_resumed_slider_draws_the_poles_that_come_next():
    poles = [Poles(0, 0, number) for number in range(3)]
    resumed = slider(poles, batch_size=2)
    resumed.skip(2)
    assert run(resumed, 2)[1][-1][2] == [2, 0]


def test_a_slider_denoises_what_it_acts_on_with_the_lora():
    _, calls = run(slider([Poles(7, 1, 4)], denoise_steps=2, min_timestep=490, max_timestep=491), step=1)
    assert calls[0][2:] == ([4], -1.0, False) and len(calls) == 1 + 3 + 1
