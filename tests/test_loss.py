"""The loss of a training: its curve for the page, its table, its chart."""

from __future__ import annotations

import csv
from types import SimpleNamespace

import pytest
import torch
from pack.nodes.loss_table import read_table, write_table
from pack.nodes.plot_loss import PlotLoss
from pack.trainer.history import History, LossCurve, smooth


def plot(**inputs):
    PlotLoss.hidden = SimpleNamespace(unique_id="1", prompt={}, extra_pnginfo=None)
    return PlotLoss.execute(**{"smoothing": 3, "name": "loss", **inputs})


def rows(folder, name="loss") -> list[list[str]]:
    with open(folder / "loss" / f"{name}.csv", newline="") as file:
        return list(csv.reader(file))


def test_the_mean_of_the_last_losses_by_hand():
    assert smooth([4.0, 2.0, 0.0, 6.0], 2).tolist() == [4.0, 3.0, 1.0, 3.0]
    assert smooth([], 2).tolist() == []


def test_a_curve_of_few_steps_is_the_losses():
    curve = LossCurve(max_points=4)
    for loss in (5.0, 3.0, 1.0):
        curve.add(loss)
    assert curve.points() == [(1, 5.0), (2, 3.0), (3, 1.0)]


def test_a_curve_of_many_steps_is_their_means():
    curve = LossCurve(max_points=4)
    for loss in range(1, 8):  # 1 .. 7, in fours of two
        curve.add(float(loss))
    assert curve.points() == [(2, 1.5), (4, 3.5), (6, 5.5), (7, 7.0)]
    for loss in range(8, 1001):
        curve.add(float(loss))
    points = curve.points()
    assert 2 < len(points) <= 4 and points[-1][0] == 1000
    assert points[0] == (256, pytest.approx(256.5 / 1, abs=130)) and points[0][1] == sum(range(1, 257)) / 256


def test_the_table_has_step_loss_smoothed_loss_and_learning_rate(output_folder):
    plot(loss={"run0": {"name": "a", "loss": [4.0, 2.0], "learning_rate": [1e-3, 5e-4]}}, smoothing=2)
    assert rows(output_folder) == [
        ["run", "step", "loss", "smoothed loss", "learning rate"],
        ["a", "1", "4.0", "4.0", "0.001"],
        ["a", "2", "2.0", "3.0", "0.0005"],
    ]


def test_several_runs_and_earlier_tables_come_into_one(output_folder):
    plot(loss={"run0": {"name": "a", "loss": [1.0, 2.0], "learning_rate": [0.1, 0.1]}}, name="old")
    image = plot(
        loss={
            "run0": {"loss": torch.tensor([1.0, 2.0, 3.0]).tolist()},
            "run1": None,
            "run2": {"name": "a", "loss": 0.5},
        },
        tables="old",
        logarithmic=True,
    ).args[0]
    assert [(row[0], row[1]) for row in rows(output_folder)[1:]] == [
        *(("run 1", str(step)) for step in (1, 2, 3)),
        ("a", "1"),
        ("a (2)", "1"),
        ("a (2)", "2"),
    ]
    assert rows(output_folder)[1][4] == "" and rows(output_folder)[-1][4] == "0.1"
    assert image.shape == (1, 500, 900, 3) and (output_folder / "loss" / "loss.png").is_file()


@pytest.mark.parametrize("losses", [[0.3], [0.2] * 30, [0.0] * 30, [1e-8, *[1e8] * 9]])
@pytest.mark.parametrize("logarithmic", [False, True])
def test_one_value_a_constant_and_zeros_can_be_drawn(losses, logarithmic):
    image = plot(loss={"run0": {"loss": losses}}, logarithmic=logarithmic).args[0]
    blue = (image[0] - torch.tensor([0x1F, 0x77, 0xB4]) / 255).abs().sum(-1) < 0.05  # matplotlib's first colour
    assert blue[:, 60:600].sum() > 20  # a line or a dot; the legend is on the right


def test_a_log_axis_shows_small_losses_apart(output_folder):
    """Three lines at 1, 0.1 and 0.01 are as far from one another."""
    runs = {f"run{i}": {"loss": [loss] * 20} for i, loss in enumerate((1.0, 0.1, 0.01))}
    image = plot(loss=runs, logarithmic=True, smoothing=1).args[0][0]
    colours = [(0x1F, 0x77, 0xB4), (0xFF, 0x7F, 0x0E), (0x2C, 0xA0, 0x2C)]
    heights = []
    for colour in colours:
        near = (image[:, 300] - torch.tensor(colour) / 255).abs().sum(-1) < 0.2
        heights.append(near.nonzero().float().mean().item())
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=3) and heights[0] < heights[2] - 100


@pytest.mark.parametrize("text", ["Loss\n1.5\n0.5\n", "step,LOSS,LR\n1,1.5,0.1\n2,0.5,0.1\n", "\ufeffloss\n1.5\n0.5\n"])
def test_tables_of_other_programs_are_read(tmp_path, text):
    (tmp_path / "theirs.csv").write_text(text, encoding="utf-8")
    assert {name: run.losses for name, run in read_table(tmp_path / "theirs.csv").items()} == {"theirs": [1.5, 0.5]}


def test_a_written_table_reads_back_to_the_last_digit(tmp_path):
    run = History([1 / 3, 0.1 + 0.2], [1e-4 / 3, 2.0])
    write_table(tmp_path / "a.csv", {"mine": run}, 25)
    assert read_table(tmp_path / "a.csv") == {"mine": run}


@pytest.mark.parametrize(
    "content, message",
    [
        (b"step,value\n1,2\n", "theirs.csv is not a loss table"),
        (b"loss\nword\n", "not a loss table"),
        (b"loss\n", "no rows"),
    ]
    + [(b"\xff\xfe\x00garbage", "not a loss table"), (b"", "no rows")],
)
def test_a_file_that_is_not_a_loss_table_is_named(output_folder, content, message):
    (output_folder / "loss").mkdir(parents=True)
    (output_folder / "loss" / "theirs.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        plot(tables="theirs")


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({}, "no loss to draw"),
        ({"tables": "absent"}, "no table absent.csv"),
        ({"tables": "../x"}, "not a valid file name"),
    ],
)
def test_nothing_to_draw_is_an_error(inputs, message):
    with pytest.raises(ValueError, match=message):
        plot(**inputs)
