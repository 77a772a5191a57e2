"""The questions that the evaluation asks of samples, on pictures that are drawn and so known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pack.tools import base_folder, evaluate
from pack.tools.demonstration import write_images
from pack.tools.evaluate import COLUMNS, Trainer, chosen_experiments
from pack.tools.experiments import list_experiments
from pack.tools.host_paths import ROOT
from pack.tools.runner import Output
from pack.tools.shapes.classify import Seen, classify
from pack.tools.shapes.evaluation_sheet import CELL, SHOWN, draw_sheet
from pack.tools.shapes.scenes import Scene
from pack.tools.shapes.shape_pairs import COUNT, PAIRS, has_bar, without_bar
from PIL import Image


def figure(experiment: str, workflow: str, name: str):
    (found,) = [
        figure
        for e in list_experiments(quick=False)
        if (e.name, e.workflow) == (experiment, workflow)
        for figure in e.figures
        if figure.name == name
    ]
    return found


RED = [Scene("red", shape, "white") for shape in ("circle", "square", "triangle", "circle")]


def test_success_and_damage_are_shares_of_the_samples():
    after = [
        replace(RED[0], colour="blue"),  # right
        replace(RED[1], colour="blue", shape="circle"),  # another shape
        replace(RED[2], colour="blue", background="black"),  # another background
        RED[3],  # unchanged
    ]
    judge = figure("red to blue", "3_Replace_a_concept_iLECO", "red prompts").judge
    assert judge(RED, [scene.draw() for scene in after], []) == ("50%", "25%")


def test_the_other_direction_counts_what_moved_towards_the_target():
    judge = figure("background", "6_Slider_from_two_images_ADDifT", "strength -1").judge
    white, black = (Scene("red", "circle", background).draw() for background in ("white", "black"))
    assert judge(RED, [black, black, white, white], [white, black, white, black]) == ("75%", "50%")


@pytest.mark.parametrize("strength, share", [("1", "25%"), ("0.5", "25%"), ("-0.5", "50%"), ("-1", "50%")])
def test_a_slider_succeeds_at_the_end_that_its_sign_leads_to(strength, share):
    seen = [
        Scene("red", "square", "white"),  # at the positive end
        Scene("blue", "circle", "white"),
        Scene("blue", "circle", "black"),  # another background
        Scene("green", "circle", "white"),
    ]
    judge = figure("slider red, blue", "5_Slider_from_two_prompts", f"neutral prompts, {strength}").judge
    scenes = [Scene("red", "circle", "white")] * 4
    assert judge(scenes, [scene.draw() for scene in seen], []) == (share, "50%")


def test_what_a_slider_does_not_act_on_is_judged_by_the_bare_model():
    judge = figure("slider red, blue", "5_Slider_from_two_prompts", "squares, triangles, 1").judge
    red, blue = (Scene(colour, "square", "white").draw() for colour in ("red", "blue"))
    assert judge([], [red, red, blue, blue], [red, blue, blue, blue]) == ("", "25%")


def test_copies_are_judged_by_their_median_psnr():
    judge = figure("background", "7_Copy_machine_and_difference", "any prompts").judge
    flat = [Image.new("RGB", (64, 64), (level,) * 3) for level in (100, 110, 101, 100 + 51)]
    success, _ = judge([], flat[1:], [flat[0]] * 3)
    assert success == f"{20 * np.log10(255 / 10):.1f} dB"  # the errors are 10, 1 and 51 levels


def test_a_new_concept_counts_by_its_color_and_shape_and_what_was_known_is_damaged_by_others():
    star = Scene("purple", "star", "white")
    after = [star, replace(star, colour="red"), replace(star, shape="circle"), replace(star, background="black")]
    judge = figure("purple star", "1_Train_a_LoRA", "purple star prompts").judge
    assert judge([star] * 4, [scene.draw() for scene in after], []) == ("50%", "25%")
    judge = figure("purple star", "1_Train_a_LoRA", "known prompts").judge
    assert judge(RED, [star.draw(), *(scene.draw() for scene in RED[1:])], []) == ("", "25%")


def test_a_value_is_set_besides_those_of_the_training():
    (experiment,) = chosen_experiments(False, "circle to square, closed form", {"Train iLECO.steps": 7})
    assert experiment.values["Train iLECO.steps"] == 7 and experiment.values["Original 1.text"] == "circle"


def test_all_neighbors_of_a_red_circle_are_preserved():
    (experiment,) = [each for each in list_experiments(quick=False) if each.name == "... with all preserved"]
    saved = json.loads((ROOT / "example_workflows" / f"{experiment.workflow}.json").read_text(encoding="utf-8"))
    kinds = {str(node["id"]): node["type"] for node in saved["nodes"]}
    kept, (node, _) = [], experiment.values["Train iLECO.preserve"]
    while node in experiment.nodes:
        both = experiment.nodes[node]["inputs"]
        text = experiment.nodes[both["conditioning_2"][0]]["inputs"]
        assert kinds[text["clip"][0]] == "CheckpointLoaderSimple"
        kept.append(text["text"])
        node = both["conditioning_1"][0]
    assert kinds[node] == "ConditioningCombine"  # the two prompts of the workflow itself
    kept += [experiment.values[f"Preserve {number}.text"] for number in (1, 2)]
    harmed = next(each for each in experiment.figures if each.name == "red and circle prompts")
    assert set(kept) == {f"a {scene.colour} {scene.shape}" for _, scene in harmed.prompts}


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_differs_in_what_it_says_and_in_nothing_else(name):
    pair = PAIRS[name]
    assert pair.has(pair.target) and not pair.has(pair.original)
    attributes = [
        [getattr(classify(pair.cleaned(image)), kept) for kept in pair.kept] for image in (pair.original, pair.target)
    ]
    assert attributes[0] == attributes[1] and None not in attributes[0]
    assert all(getattr(scene, word) in text for text, scene in pair.prompts for word in pair.kept)


def test_the_bar_is_seen_on_every_image_and_taken_away():
    for background in ("white", "black", "gray"):
        scene = Scene("green", "square", background, y=26, radius=16)
        picture = scene.draw()
        drawn = np.asarray(picture).copy()
        drawn[-10:] = (150, 50, 200)
        assert has_bar(Image.fromarray(drawn)) and not has_bar(picture)
        assert classify(without_bar(Image.fromarray(drawn))) == Seen("green", "square", background)


def test_every_score_has_prompts_no_training_has_and_a_row_in_the_table():
    for experiment in list_experiments(quick=False):
        words = [
            value for name, value in experiment.values.items() if name.endswith(".text") and isinstance(value, str)
        ]
        words += [node["inputs"]["text"] for node in experiment.nodes.values() if "text" in node["inputs"]]
        words += [caption for pair in PAIRS.values() for *_, caption in pair.more if experiment.nodes]
        for each in experiment.figures:
            assert each.prompts and not {text for text, _ in each.prompts} & set(words)
            assert len(COLUMNS.format(each.method, experiment.name, each.name, "100%", "100%", 100, "100")) < 110
    assert 0 < len(list_experiments(quick=True)) < len(list_experiments(quick=False))


def test_the_contact_sheet_shows_the_first_samples_of_each_row(tmp_path):
    rows = [("red", [Image.new("RGB", (64, 64), "red")] * 20), ("blue", [Image.new("RGB", (64, 64), "blue")] * 2)]
    sheet = Image.open(draw_sheet(rows, tmp_path / "a" / "sheet.png"))
    colours = dict((colour, count) for count, colour in sheet.getcolors(1_000_000))
    assert colours[(255, 0, 0)] == SHOWN * CELL**2 and colours[(0, 0, 255)] == 2 * CELL**2


def test_the_folders_of_pairs_stand_beside_the_stars_and_not_among_them(tmp_path, monkeypatch):
    monkeypatch.setattr(base_folder, "_run", lambda host, target, kind: write_images(target))
    (tmp_path / "input").mkdir()
    base_folder._make_images(None, tmp_path)
    inputs = tmp_path / "input"
    assert not [path for path in (inputs / "purple_star").iterdir() if path.is_dir()]
    for name in ("part", "colour"):
        originals = [path for path in (inputs / f"pairs_{name}").glob("*.png") if not path.stem.endswith("_target")]
        assert len(originals) == COUNT and all(path.with_suffix(".txt").is_file() for path in originals)


def test_what_other_nodes_show_is_no_lora(monkeypatch):
    """Bucket Images is an output node, too, and shows a report without texts."""
    shown = [Output("4", "Bucket Images", [], []), Output("8", "Save LoRA", [], ["a.safetensors"])]
    server = SimpleNamespace(get=lambda _: {})
    monkeypatch.setattr(evaluate, "run_workflow", lambda *_: shown)
    for step in ("to_api", "set_values", "keep_outputs"):
        monkeypatch.setattr(evaluate, step, lambda prompt, *_: {})
    trainer = Trainer(server, None)
    trainer.train(list_experiments(quick=True)[0])
    assert trainer.loras == {"Save LoRA": Path("a.safetensors")}
