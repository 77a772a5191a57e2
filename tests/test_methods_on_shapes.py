"""Each method, by the example workflow that we ship, does on the demonstration model what it promises.

With fewer steps and samples than the workflows have where that is enough; `--long` takes all of them. The whole measurement
with more samples is `python3 dev.py evaluate`.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from pack.tools.evaluate import Studio, Trainer, measure
from pack.tools.experiments import list_experiments
from pack.tools.shapes import shape_pairs
from pack.tools.terminal import StatusLine

SAMPLES, SAMPLING_STEPS = 6, 10
# One of six samples may be wrong, as one of twelve may with `--long`; fewer steps of the sampler copy less exactly.
SLACK = {"%": 10, "dB": 2}
FEWER = {
    "3_Replace_a_concept_iLECO": {"Train iLECO.start": "closed form", "Train iLECO.steps": 0},
    "4_Erase_a_concept_iLECO": {"Train iLECO.steps": 100},
    "7_Copy_machine_and_difference": {"Train Copy Machine.steps": 200, "Train Difference.steps": 80},
}


@pytest.fixture(scope="module")
def studio(shapes_checkpoint, is_long):
    return Studio(shapes_checkpoint, SAMPLING_STEPS * (1 + is_long))


@pytest.fixture(scope="module")
def trainer(server):
    shape_pairs.write(server.base / "input")
    return Trainer(server, StatusLine())


@pytest.mark.parametrize(
    "name, workflow, values, bars",
    [
        (
            "red to blue",
            "3_Replace_a_concept_iLECO",
            {},
            {"red prompts": (90, 15), "green and yellow prompts": (None, 10)},
        ),
        (
            "erase triangle",
            "4_Erase_a_concept_iLECO",
            {"Train iLECO.preserve": None},
            {"triangle prompts": (90, 15), "circle, square prompts": (None, 15)},
        ),
        ("background", "7_Copy_machine_and_difference", {}, {"any prompts": (25, None), "strength 1": (80, 15)}),
        ("background", "6_Slider_from_two_images_ADDifT", {}, {"strength 1": (80, 15), "strength -1": (90, 15)}),
    ],
)
def test_the_method_does_what_it_promises(studio, trainer, is_long, name, workflow, values, bars):
    (experiment,) = [e for e in list_experiments(quick=False) if (e.name, e.workflow) == (name, workflow)]
    fewer = {} if is_long else FEWER.get(workflow, {})
    trainer.train(replace(experiment, values=experiment.values | values | fewer))
    for figure in experiment.figures:
        least_success, most_damage = bars.get(figure.name, (None, None))
        if figure.name not in bars:
            continue
        success, damage, _ = measure(studio, trainer, figure, SAMPLES * (1 + is_long))
        slack = 0 if is_long else SLACK["dB" if success.endswith("dB") else "%"]
        if least_success is not None:
            assert number(success) >= least_success - slack, f"{figure.name}: {success}"
        if most_damage is not None:
            assert number(damage) <= most_damage + slack, f"{figure.name}: {damage} damaged"


def number(text: str) -> float:
    """Read "95%" or "27.8 dB"."""
    return float(text.removesuffix("%").removesuffix(" dB"))
