"""The loss on held-out images: by hand, the same each time, in the table, the chart and on the page; and without effect."""

from __future__ import annotations

import csv
import logging

import pytest
import torch
from pack.nodes import progress
from pack.nodes.loss_table import read_table, write_table
from pack.trainer.config import NetworkConfig, TrainingConfig
from pack.trainer.dataset.training_image import TrainingImage
from pack.trainer.history import History
from pack.trainer.training_example import TrainingExample
from pack.trainer.validation import BANDS, Validation
from test_loss import plot
from test_text_encoder import train  # noqa: F401
from tiny_host import TinyHost
from tiny_models import HEIGHT, WIDTH
from tiny_training import TinyModel

SETTINGS = TrainingConfig(lr_scheduler="constant")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> TinyHost:
    return TinyHost(tmp_path_factory.mktemp("models"))


def image(tiny: TinyHost, shift: int) -> TrainingImage:
    return TrainingImage(tiny.picture[0].roll(shift, 1), "red", None, "a", (WIDTH, HEIGHT))


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


class Recorder(TinyModel):
    """Predicts zeros, and remembers what it was asked."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def predict(self, x_t, sigma, conditioning):
        self.asked.append((x_t.clone(), sigma.item(), conditioning))
        return torch.zeros_like(x_t)


def test_the_loss_by_hand_is_the_mean_square_of_the_noise_in_each_band():
    config = TrainingConfig(min_timestep=200, max_timestep=600, snr_gamma=0, steps=10)
    examples = [TrainingExample(torch.full((2, 4, 4), float(value)), 0.1 * value) for value in (1, 2)]
    model = Recorder()
    loss = Validation(examples, 5, config).measure(model)
    noises = [(x_t - examples[i // BANDS].latent) / sigma for i, (x_t, sigma, _) in enumerate(model.asked)]
    assert loss == pytest.approx(torch.cat(noises).square().mean().item(), rel=1e-4)
    t = [(sigma - 0.03) * 100 for _, sigma, _ in model.asked]
    assert len(t) == 2 * BANDS
    assert all(200 + 100 * (i % BANDS) <= each + 1e-3 < 300.01 + 100 * (i % BANDS) for i, each in enumerate(t))
    assert [conditioning for *_, conditioning in model.asked] == [[0.1]] * BANDS + [[0.2]] * BANDS


def test_the_noise_is_the_same_each_time_and_for_each_seed():
    examples, losses, model = [TrainingExample(torch.zeros(2, 4, 4), 0.0)], [], TinyModel()
    for seed in (1, 1, 2):
        losses.append(Validation(examples, 5, TrainingConfig(seed=seed, steps=10)).measure(model))
    assert losses[0] == losses[1] == losses[2] > 0


def test_the_masked_part_does_not_count():
    mask = torch.zeros(4, 4)
    mask[0] = 1
    examples = [TrainingExample(torch.zeros(2, 4, 4), 0.0, mask)]
    model = Recorder()
    loss = Validation(examples, 5, TrainingConfig(snr_gamma=0)).measure(model)
    noises = [x_t[0, :, 0] / sigma for x_t, sigma, _ in model.asked]
    assert loss == pytest.approx(torch.stack(noises).square().mean().item(), rel=1e-4)


def test_it_is_measured_every_so_many_steps_and_after_the_last():
    validation = Validation([], 4, TrainingConfig(steps=10))
    assert [step for step in range(1, 11) if validation.is_due(step)] == [4, 8, 10]


def test_a_training_is_the_same_with_and_without_it_and_tells_the_best_step(tiny, output_folder, caplog):
    pictures = {"training_images": [image(tiny, 0)], "settings": SETTINGS, "steps": 6}
    plain = tiny.train("LoRA", **pictures)
    with caplog.at_level(logging.INFO):
        validated = tiny.train("LoRA", validation_images=[image(tiny, 8)], validate_every=2, **pictures)
    assert same(plain[2], validated[2]) and plain[3]["loss"] == validated[3]["loss"] and plain[3]["validation"] == []
    points = dict(validated[3]["validation"])
    best = min(points, key=points.get)
    assert list(points) == [2, 4, 6] and len(set(points.values())) == 3
    assert f"The validation loss was lowest after step {best}: {points[best]:.6g}." in caplog.text
    shown = progress._shown[None, "2"]
    assert (shown["best_step"], shown["best_loss"]) == (best, points[best]) and dict(shown["validation"]) == points
    (table,) = (path for path in (output_folder / "traintrain").glob("*.csv") if "validation" in path.read_text())
    assert next(iter(read_table(table).values())).validation == points
    recalled = tiny.train("LoRA", validation_images=[image(tiny, 8)], validate_every=2, **pictures)
    assert dict(recalled[3]["validation"]) == points


def test_the_loss_is_of_the_weights_for_use(tiny):
    """With an average over the steps that hardly moves, it hardly moves either."""
    pictures = {
        "training_images": [image(tiny, 0)],
        "validation_images": [image(tiny, 8)],
        "steps": 2,
        "validate_every": 1,
    }
    raw, averaged = (
        dict(
            tiny.train("LoRA", settings=TrainingConfig(lr_scheduler="constant", ema_decay=decay), **pictures)[3][
                "validation"
            ]
        )
        for decay in (0.0, 0.9)
    )
    assert raw[1] == averaged[1] and raw[2] != averaged[2]


def test_a_training_that_resumes_keeps_its_validation(tiny):
    pictures = {"training_images": [image(tiny, 0)], "validation_images": [image(tiny, 8)], "settings": SETTINGS}
    straight = tiny.train("LoRA", steps=8, validate_every=2, **pictures)
    first = tiny.train("LoRA", steps=4, validate_every=2, **pictures)
    second = tiny.train("LoRA", steps=8, validate_every=2, lora=first[2], network=None, **pictures)
    assert same(straight[2], second[2]) and straight[3]["validation"] == second[3]["validation"]


def test_a_text_encoder_in_training_encodes_the_held_out_captions_as_it_is_then(train):  # noqa: F811
    network = NetworkConfig(rank=2, blocks="BASE")  # nothing else changes
    held_out = [TrainingImage(torch.rand(64, 64, 3), "a red circle", None, "a", (64, 64))]
    *_, loss = train(network=network, steps=3, validation_images=held_out, validate_every=1, learning_rate=1e-2)
    assert len({value for _, value in loss["validation"]}) == 3


def test_the_table_has_a_column_for_it_and_reads_back(tmp_path):
    runs = {"a": History([3.0, 2.0, 1.0], [0.1] * 3, [2], {2: 0.25, 3: 0.5}), "b": History([1.0], [0.1])}
    write_table(tmp_path / "a.csv", runs, 1)
    with open(tmp_path / "a.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0][-2:] == ["skipped", "validation loss"]
    assert [row[-2:] for row in rows[1:]] == [["", ""], ["yes", "0.25"], ["", "0.5"], ["", ""]]
    assert read_table(tmp_path / "a.csv") == runs


def test_plot_loss_draws_it_and_names_the_lowest_step(output_folder):
    run = {"loss": [1.0] * 10, "learning_rate": [0.1] * 10, "validation": [[5, 0.5], [10, 0.75]]}
    image = plot(loss={"run0": run}, smoothing=1).args[0]
    plain = plot(loss={"run0": {**run, "validation": []}}, smoothing=1, name="plain").args[0]
    assert not torch.equal(image, plain)
    assert read_table(output_folder / "loss" / "loss.csv")["run 1"].validation == {5: 0.5, 10: 0.75}


def test_the_earliest_of_the_lowest_finite_losses_is_the_best():
    assert History(validation={30: 0.5, 10: 0.5, 20: float("nan"), 5: 0.6}).best_step() == 10
    assert History().best_step() is None and History(validation={1: float("nan")}).best_step() is None
