"""Captions that vary from step to step: shuffled tags, dropped captions, one of several lines."""

from __future__ import annotations

import json
from collections import Counter
from random import Random

import pytest
import torch
from image_files import CAT, write
from pack.nodes.load_image_folder import LoadImageFolder
from pack.nodes.training_captions import TrainingCaptions
from pack.trainer.caption_draw import ORDERS, CaptionConfig, CaptionDraw, captions_to_encode, shuffle_tags
from pack.trainer.config import TrainingConfig
from pack.trainer.dataset.image_captions import split_captions
from pack.trainer.dataset.training_image import TrainingImage
from pack.trainer.training_example import EncodedImage
from tiny_host import TinyHost
from tiny_models import HEIGHT, WIDTH

SETTINGS = TrainingConfig(lr_scheduler="constant")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> TinyHost:
    return TinyHost(tmp_path_factory.mktemp("models"))


def images(tiny: TinyHost, *captions: str) -> list[TrainingImage]:
    return [TrainingImage(tiny.picture[0], caption, None, caption, (WIDTH, HEIGHT)) for caption in captions]


def encoded_captions(tiny: TinyHost, monkeypatch) -> list[str]:
    """Return the list of what the CLIP will be asked to encode."""
    asked, encode = [], tiny.clip.encode_from_tokens_scheduled
    monkeypatch.setattr(tiny.clip, "encode_from_tokens_scheduled", lambda text: asked.append(text) or encode(text))
    return asked


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_every_order_of_the_tags_comes_up_as_often_and_the_first_ones_stay():
    rng = Random(0)
    counts = Counter(shuffle_tags("sks,a ,  b,c,,", 1, rng) for _ in range(6000))
    assert sorted(counts) == [f"sks, {x}, {y}, {z}" for x, y, z in ("abc", "acb", "bac", "bca", "cab", "cba")]
    assert all(900 < count < 1100 for count in counts.values())  # 1000 expected, deviation 29
    assert shuffle_tags("a, b", 5, rng) == "a, b" and shuffle_tags("", 0, rng) == ""


def test_captions_are_dropped_at_the_rate_that_is_set():
    draw = CaptionDraw([["red"], ["blue"]], "", CaptionConfig(dropout=0.25), seed=1)
    drawn = Counter(caption for _ in range(4000) for caption in draw.draw([0, 1]))
    assert 1850 < drawn[""] < 2150 and 2850 < drawn["red"] < 3150 and 2850 < drawn["blue"] < 3150
    assert set(CaptionDraw([["red"]], "", CaptionConfig(dropout=1), seed=1).draw([0] * 100)) == {""}


def test_one_of_several_captions_is_drawn_for_each_example_of_a_batch():
    draw = CaptionDraw([["a", "b"], ["c"]], None, CaptionConfig(), seed=1)
    drawn = Counter(draw.draw([1, 0])[1] for _ in range(1000))
    assert drawn.keys() == {"a", "b"} and 420 < drawn["a"] < 580
    assert draw.draw([1, 1]) == ["c", "c"]


def test_regularization_images_keep_their_captions():
    draw = CaptionDraw([["a, b, c"], ["d, e, f"]], "", CaptionConfig(True, 0, dropout=0.5), seed=1, varied=1)
    drawn = [draw.draw([0, 1]) for _ in range(200)]
    assert {own for _, own in drawn} == {"d, e, f"} and len({varied for varied, _ in drawn}) == 7


def test_an_encoder_that_is_not_trained_gets_a_few_orders_of_each_caption():
    config = CaptionConfig(shuffle_tags=True, keep_tags=0)
    texts = captions_to_encode(["a, b, c, d, e", "f"], config, Random(1))
    assert len(texts) == 2 * ORDERS and len(set(texts[:ORDERS])) > 4 and set(texts[ORDERS:]) == {"f"}
    assert captions_to_encode(["a, b"], CaptionConfig(), Random(1)) == ["a, b"]


@pytest.mark.parametrize("settings, message", [({"keep_tags": -1}, "keep_tags is -1"), ({"dropout": 1.5}, "is 1.5")])
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        CaptionConfig(**settings)


def test_each_line_of_a_caption_file_is_a_caption_with_the_trigger_word(base):
    folder = base / "input" / "cats"
    for name in ("b", "c", "d"):
        write(folder / f"{name}.png", CAT[:8, :8])
    (folder / "a.txt").write_text("a cat\r\n\n  the cat, on a mat \n")
    (folder / "b.txt").write_text("one")
    (folder / "c.txt").write_text("two\u2028three\n")  # a line separator of the text itself

    def load(**options):
        captions = LoadImageFolder.execute("cats", True, "caption file", "sks", **options).args[2]
        return [split_captions(caption) for caption in captions]

    lines = [["sks, a cat", "sks, the cat, on a mat"], ["sks, one"], ["sks, two", "sks, three"], ["sks"]]
    assert load(caption_lines=True) == lines
    assert load() == [["sks, a cat\r\n\n  the cat, on a mat"], ["sks, one"], ["sks, two\nthree"], ["sks"]]


def test_a_training_draws_from_lines_and_orders_that_are_encoded_before_it(tiny, monkeypatch):
    asked = encoded_captions(tiny, monkeypatch)
    varied = {"shuffle_tags": True, "keep_tags": 1, "caption_dropout": 0.3}
    pictures = images(tiny, "sks, a, b\u2028sks, c, d", "sks, e")
    job = tiny.job("LoRA", training_images=pictures, **varied)
    assert set(asked) == {"sks, a, b", "sks, b, a", "sks, c, d", "sks, d, c", "sks, e", ""}
    assert json_tags(job) == {"1_sks": {"sks": 3, "a": 1, "b": 1, "c": 1, "d": 1, "e": 1}}


def json_tags(job) -> dict:
    return json.loads(job.labels["ss_tag_frequency"])


def test_a_training_that_resumes_draws_on_where_it_stopped(tiny):
    pictures = images(tiny, "sks, a, b, c\u2028sks, d, e", "sks, f, g")
    varied = {"shuffle_tags": True, "caption_dropout": 0.3, "training_images": pictures, "settings": SETTINGS}
    straight, first = tiny.train("LoRA", steps=12, **varied), tiny.train("LoRA", steps=6, **varied)
    assert same(tiny.train("LoRA", steps=12, lora=first[2], network=None, **varied)[2], straight[2])
    plain = tiny.train("LoRA", steps=12, training_images=pictures, settings=SETTINGS)
    assert not same(plain[2], straight[2])


def test_captions_that_do_not_vary_give_the_same_lora_as_before(tiny):
    pictures = images(tiny, "sks, a, b", "sks, c")
    off = {"shuffle_tags": False, "keep_tags": 3, "caption_dropout": 0.0}
    assert tiny.job("LoRA", training_images=pictures, **off).method.captions is None
    plain, again = (tiny.train("LoRA", training_images=pictures, settings=SETTINGS, **each) for each in ({}, off))
    assert same(plain[2], again[2])


def test_prompts_that_are_encoded_already_cannot_be_shuffled(tiny):
    encoded = [EncodedImage(tiny.family.draw_latents(1)[0], tiny.prompt[0])]
    with pytest.raises(ValueError, match="shuffle_tags and caption_dropout need captions as text"):
        tiny.job("LoRA", training_images=encoded, caption_dropout=0.1)
    assert tiny.job("LoRA", training_images=encoded).method.captions is None


def test_captions_without_tags_to_shuffle_are_refused(tiny):
    with pytest.raises(ValueError, match="nothing to shuffle, because no caption has two tags after the first 1"):
        tiny.job("LoRA", training_images=images(tiny, "sks, a cat", "a dog"), shuffle_tags=True)
    assert tiny.job("LoRA", training_images=images(tiny, "sks, a", "sks, a, b"), shuffle_tags=True)


def test_the_empty_prompt_does_not_displace_the_captions_that_are_known(tiny, monkeypatch):
    captions = TrainingCaptions(tiny.model, tiny.clip, 1.0, CaptionConfig(dropout=0.5), seed=1)
    captions.draw(captions.encode(["never asked before"]), 1)
    asked = encoded_captions(tiny, monkeypatch)
    captions.encode(["never asked before"])
    assert asked == []
