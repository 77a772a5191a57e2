"""The demonstration model draws what it is told, and learns a purple star in the graph that we ship."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import comfy.sd
import folder_paths
import pytest
import torch
from conftest import ROOT
from pack.nodes.images import BucketImages, LoadImageFolder
from pack.nodes.settings import LoRANetwork, TrainingSettings
from pack.nodes.train import TrainLoRA
from pack.tools.shapes import pictures
from pack.tools.shapes.classify import Seen, classify
from pack.tools.shapes.sampling import draw
from pack.tools.shapes.world import BACKGROUNDS, COLOURS, SHAPES, Scene, place, random_scene
from PIL import Image, ImageFilter


@pytest.fixture(scope="module")
def shapes(shapes_checkpoint):
    with torch.inference_mode():
        return comfy.sd.load_checkpoint_guess_config(str(shapes_checkpoint))[:3]


def share(drawn: list[Image.Image], right: Callable[[int, Seen], bool]) -> float:
    return sum(right(index, classify(picture)) for index, picture in enumerate(drawn)) / len(drawn)


def test_the_classifier_names_what_was_drawn_sharp_or_soft():
    rng = random.Random(1)
    scenes = [random_scene(rng) for _ in range(150)] + [
        Scene("purple", "star", b, **place(rng)) for b in [*BACKGROUNDS] * 15
    ]
    for blur, bar in ((0.0, 1.0), (1.0, 0.97)):
        seen = [classify(scene.draw().filter(ImageFilter.GaussianBlur(blur))) for scene in scenes]
        right = [s == Seen(scene.colour, scene.shape, scene.background) for s, scene in zip(seen, scenes)]
        assert sum(right) / len(right) >= bar


def test_the_classifier_names_nothing_where_there_is_nothing_to_name():
    empty, noise = Image.new("RGB", (64, 64), BACKGROUNDS["white"]), Image.effect_noise((64, 64), 200).convert("RGB")
    assert classify(empty) == Seen(None, None, "white")
    assert classify(noise).shape is None


def test_the_model_draws_the_colour_and_the_shape_it_is_told(shapes):
    rng = random.Random(7)
    scenes = [Scene(colour, shape, background) for colour in COLOURS for shape in SHAPES for background in BACKGROUNDS]
    scenes = [scenes[i % len(scenes)] for i in range(100)]
    rng.shuffle(scenes)
    drawn = draw(*shapes, [scene.caption() for scene in scenes], seed=1234)
    assert share(drawn, lambda i, seen: seen.colour == scenes[i].colour) >= 0.95
    assert share(drawn, lambda i, seen: seen.shape == scenes[i].shape) >= 0.90


@pytest.fixture(scope="module")
def taught(shapes, tmp_path_factory):
    """MODEL and CLIP out of TrainLoRA, with every value as the example workflow has it."""
    folder_paths.set_input_directory(str(tmp_path_factory.mktemp("input")))
    workflow = json.loads((ROOT / "example_workflows" / "train_lora.json").read_text())
    values = {node["type"]: node["widgets_values"] for node in workflow["nodes"]}
    pictures.write(folder_paths_input() / values["TrainTrain_LoadImageFolder"][0])
    with torch.inference_mode():
        images, masks, captions, names = LoadImageFolder.execute(*values["TrainTrain_LoadImageFolder"]).args
        width, height, step, least, ratio, sub, mirror, upscale, repeats = (
            [v] for v in values["TrainTrain_BucketImages"]
        )
        training_images = BucketImages.execute(
            images, captions, width, height, step, least, ratio, sub, mirror, upscale, repeats, masks=masks, names=names
        ).args[0]
        names_of = lambda node: [i.id for i in node.define_schema().inputs]  # noqa: E731
        network = LoRANetwork.execute(**dict(zip(names_of(LoRANetwork), values["TrainTrain_LoRANetwork"]))).args[0]
        settings = TrainingSettings.execute(
            **dict(zip(names_of(TrainingSettings), values["TrainTrain_TrainingSettings"]))
        ).args[0]
        model, clip, vae = shapes
        return TrainLoRA.execute(
            model, clip, vae, training_images, *values["TrainTrain_TrainLoRA"], network=network, settings=settings
        ).args


def folder_paths_input():
    from pathlib import Path

    return Path(folder_paths.get_input_directory())


def test_it_learns_a_purple_star_that_it_did_not_know(shapes, taught):
    prompts = [f"a purple star on a {background} background" for background in [*BACKGROUNDS] * 6][:16]
    is_star = lambda _, seen: (seen.colour, seen.shape) == ("purple", "star")  # noqa: E731
    assert share(draw(taught[0], taught[1], shapes[2], prompts, seed=99), is_star) >= 0.80
    assert share(draw(*shapes, prompts, seed=99), is_star) == 0.0


def test_it_still_knows_the_old_shapes(shapes, taught):
    rng = random.Random(11)
    scenes = [random_scene(rng) for _ in range(48)]
    drawn = draw(taught[0], taught[1], shapes[2], [scene.caption() for scene in scenes], seed=5)
    assert share(drawn, lambda i, seen: (seen.colour, seen.shape) == (scenes[i].colour, scenes[i].shape)) >= 0.90
