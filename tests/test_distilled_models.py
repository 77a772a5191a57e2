"""Distilled models: the guidance that is an input of the network, and the warning about few steps."""

from __future__ import annotations

import pytest
import torch
from pack.nodes.host.distilled import STEP_DISTILLED
from pack.trainer.dataset.training_image import TrainingImage
from tiny_host import TinyHost
from tiny_models import HEIGHT, WIDTH


@pytest.fixture(scope="module")
def flux(tmp_path_factory) -> TinyHost:
    return TinyHost(tmp_path_factory.mktemp("model"), "Flux")


def seen_guidance(tiny: TinyHost, method: str, **inputs: object) -> set[float]:
    """Return the guidance that the network gets in a training of a method's node."""
    seen: set[float] = set()
    network = tiny.model.model.diffusion_model
    handle = network.register_forward_pre_hook(
        lambda _, args, kwargs: seen.update(kwargs["guidance"].flatten().tolist()), with_kwargs=True
    )
    try:
        tiny.train(method, steps=2, **inputs)
    finally:
        handle.remove()
    return seen


def wired(prompt: list, guidance: float) -> list:
    return [[tensor, {**extra, "guidance": guidance}] for tensor, extra in prompt]


@pytest.mark.parametrize("method", ["LoRA", "copy machine", "difference"])
def test_images_are_learned_at_guidance_1_or_what_is_set(flux, method, output_folder):
    own = {} if method == "LoRA" else {"conditioning": wired(flux.prompt, 4.0)}
    flux.copied()
    assert seen_guidance(flux, method, **own) == {1.0}
    assert seen_guidance(flux, method, distilled_guidance=2.5, **own) == {2.5}


def test_methods_with_a_teacher_take_what_is_wired(flux, output_folder):
    sides = {"original": wired(flux.prompt, 4.0), "target": wired(flux.blue, 4.0)}
    assert seen_guidance(flux, "iLECO", **sides) == {4.0}
    sides = {f"{side}_conditioning": prompt for side, prompt in sides.items()}
    assert seen_guidance(flux, "ADDifT", **sides) == {4.0}


def test_a_model_without_that_input_trains_as_without_the_setting(tmp_path, output_folder):
    tiny = TinyHost(tmp_path)
    *_, one, _ = tiny.train("LoRA", steps=2)
    *_, other, _ = tiny.train("LoRA", steps=2, distilled_guidance=9.0, seed=3)
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_several_sets_are_one_epoch_of_all_with_their_repeats(flux, output_folder):
    def a_set(name: str, repeats: int) -> list[TrainingImage]:
        return [TrainingImage(flux.picture[0], name, None, name, (WIDTH, HEIGHT), repeats=repeats)]

    more = {"set0": a_set("b", 3), "set1": None, "set2": a_set("c", 2)}
    job = flux.job("LoRA", training_images=a_set("a", 1), more_training_images=more)
    drawn = [index for _ in range(6) for index in next(job.method.batches)]
    assert sorted(drawn) == [0, 1, 1, 1, 2, 2]
    assert [len(job.method.examples), job.labels["ss_tag_frequency"].count('"c"')] == [3, 1]


@pytest.mark.parametrize(
    "name, found",
    [("z_image_turbo_bf16", 1), ("sdxl_lightning_4step", 1), ("flux1-schnell", 1), ("qwen-8steps", 1), ("sd_xl_base_1.0", 0),
     ("flux1-dev", 0), ("hyperrealism_v3", 0), ("sdxl_hyper_8", 1), ("dreamshaper_8", 0), ("z_image_bf16", 0), ("model_24steps", 0)],
)  # fmt: skip
def test_a_step_distilled_model_is_known_by_the_name_of_its_file(name, found):
    assert bool(STEP_DISTILLED.search(name)) == bool(found)


def test_the_log_says_what_training_does_to_a_step_distilled_model(flux, caplog, monkeypatch, output_folder):
    flux.train("LoRA", steps=1)
    assert "distilled" not in caplog.text
    monkeypatch.setattr(flux.model, "cached_patcher_init", (None, ("/models/flux1-turbo.safetensors", {})))
    flux.train("LoRA", steps=1, seed=4)
    assert (
        "The model flux1-turbo is distilled to sample in few steps. Training makes it lose this bit by bit"
        in caplog.text
    )
