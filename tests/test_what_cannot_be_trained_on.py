"""NaN in what is trained on is named before training, and a training that changes nothing is an error."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from pack.nodes import host
from pack.trainer.config import TrainingConfig
from pack.trainer.dataset.training_image import TrainingImage
from pack.trainer.training_example import EncodedImage
from tiny_host import TinyHost
from tiny_models import HEIGHT, WIDTH, make_prompt


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> TinyHost:
    return TinyHost(tmp_path_factory.mktemp("model"))


def with_nan(tensor: torch.Tensor) -> torch.Tensor:
    bad = tensor.clone()
    bad.view(-1)[7] = torch.nan
    return bad


def images(tiny: TinyHost, **bad: torch.Tensor) -> list[TrainingImage]:
    return [TrainingImage(bad.get(name, tiny.picture[0]), name, None, name, (WIDTH, HEIGHT)) for name in "abc"]


def test_images_with_nan_are_named(tiny):
    with pytest.raises(
        ValueError, match="^The pixels have NaN or Inf in b, c: check the nodes that the images come from"
    ):
        broken = with_nan(tiny.picture[0])
        tiny.job("LoRA", training_images=images(tiny, b=broken, c=broken / 0))


def test_a_vae_that_makes_nan_is_named_with_its_image(tiny, monkeypatch):
    encode = tiny.vae.encode
    monkeypatch.setattr(
        tiny.vae, "encode", lambda pixels: with_nan(encode(pixels)) if pixels.max() > 1 else encode(pixels)
    )
    with pytest.raises(ValueError, match="^The VAE makes NaN or Inf of b: start ComfyUI with --fp32-vae"):
        tiny.job("LoRA", training_images=images(tiny, b=tiny.picture[0] + 1))


def test_an_image_of_the_other_methods_is_named_by_its_place(tiny):
    for method, place in (("copy machine", "image"), ("ADDifT", "target")):
        with pytest.raises(ValueError, match=r"NaN or Inf in image 1 of 1"):
            tiny.job(method, **{place: with_nan(tiny.picture)})


@pytest.mark.parametrize(
    "method, name",
    [
        ("iLECO", "target"),
        ("slider", "negative"),
        ("copy machine", "conditioning"),
        ("ADDifT", "original_conditioning"),
    ],
)
def test_a_prompt_with_nan_is_named(tiny, method, name):
    ((tensor, extra),) = tiny.prompt
    combined = [[tensor, extra], [with_nan(tensor), extra]]
    with pytest.raises(ValueError, match=f"{name} has NaN or Inf in prompt 2 of 2"):
        tiny.job(method, **{name: combined})


def test_a_caption_that_the_text_encoder_makes_nan_of_is_named(tiny):
    clip = SimpleNamespace(tokenizer=SimpleNamespace(), tokenize=str, cond_stage_model=None)
    clip.encode_from_tokens_scheduled = lambda text: [
        [with_nan(tensor) if text == "b" else tensor, extra] for tensor, extra in make_prompt("SD3", text)
    ]

    class Clip(SimpleNamespace):
        __hash__ = object.__hash__  # as the host's

    with pytest.raises(ValueError, match="The text encoder makes NaN or Inf of the caption 'b'"):
        tiny.job("LoRA", clip=Clip(**vars(clip)), training_images=images(tiny))


def test_latents_with_nan_are_named(tiny):
    latent = tiny.family.draw_latents(1)[0]
    given = [EncodedImage(tensor, host.read_conditioning(tiny.prompt)[0]) for tensor in (latent, with_nan(latent))]
    with pytest.raises(ValueError, match="There is NaN or Inf in latent 2 of 2"):
        tiny.job("LoRA", training_images=given)


@pytest.mark.parametrize("method", ["LoRA", "iLECO"])
def test_a_training_that_leaves_the_lora_at_zero_is_an_error(tiny, method):
    settings = replace(TrainingConfig(), optimizer="RAdamScheduleFree", lr_scheduler="constant")
    with pytest.raises(
        ValueError, match="^Nothing was learned: after 4 steps with RAdamScheduleFree the LoRA is still all zeros"
    ):
        tiny.train(method, steps=4, settings=settings)
    *_, lora, _ = tiny.train(method, steps=8, settings=settings)
    assert any(tensor.any() for key, tensor in lora.items() if "lora_up" in key)
