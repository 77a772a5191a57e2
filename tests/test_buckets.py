"""Bucket resolutions by the published rules and examples, and which of them an image goes into."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from bucketing import photo, resolutions_of
from conftest import ROOT
from pack.trainer.dataset.buckets import BucketConfig, Resolution, choose_resolutions, main_resolutions, sub_resolutions
from pack.trainer.dataset.fill_buckets import fill_buckets

FINE = BucketConfig(width=768, height=512, step=128, min_length=256)


def parse(text: str) -> set[Resolution]:
    return {tuple(int(side) for side in size.split("x")) for size in text.split(", ")}


def test_a_coarse_step_gives_the_three_resolutions_of_the_published_example():
    assert main_resolutions(BucketConfig(768, 512, 256, 512)) == [(512, 768), (512, 512), (768, 512)]
    assert sub_resolutions(BucketConfig(768, 512, 256, 512)) == []


def test_a_fine_step_gives_the_main_and_sub_resolutions_of_the_published_example():
    main = "384x768, 512x768, 512x640, 512x512, 640x512, 768x512, 768x384"
    sub = "256x512, 384x640, 256x384, 384x512, 384x384, 256x256, 512x384, 384x256, 640x384, 512x256"
    assert len(main_resolutions(FINE)) == 7 and set(main_resolutions(FINE)) == parse(main)
    assert len(sub_resolutions(FINE)) == 10 and set(sub_resolutions(FINE)) == parse(sub)


def test_width_and_height_may_be_given_in_either_order():
    swapped = BucketConfig(width=512, height=768, step=128, min_length=256)
    assert (main_resolutions(swapped), sub_resolutions(swapped)) == (main_resolutions(FINE), sub_resolutions(FINE))


def search_main_resolutions(config: BucketConfig) -> set[Resolution]:
    """Follow the rule by trying every height, in whole numbers and fractions."""
    (shorter, longer), area = sorted([config.width, config.height]), config.width * config.height
    longest = config.max_length or longer
    found = {(shorter, shorter)}
    for width in range(config.min_length, longest + 1):
        if (width - config.min_length) % config.step:
            continue
        height = min(longest, max(h for h in range(0, area // width + 1) if h % config.step == 0))
        if width > longer and height < config.min_length:
            continue
        found |= {(width, height), (height, width)}
    return {size for size in found if ratio_allowed(size, config)}


def search_sub_resolutions(config: BucketConfig) -> set[Resolution]:
    longest = config.max_length or max(config.width, config.height)
    sides = [s for s in range(longest + 1) if s >= config.min_length]
    sides = [s for s in sides if (s - config.min_length) % config.step == 0]
    pairs = {(w, h) for w in sides for h in sides if w * h <= config.width * config.height}
    return {pair for pair in pairs if ratio_allowed(pair, config)} - search_main_resolutions(config)


def ratio_allowed(size: Resolution, config: BucketConfig) -> bool:
    limit = Fraction(config.max_ratio)
    return size[1] > 0 and size[0] > 0 and 1 / limit <= Fraction(*size) <= limit


@pytest.mark.parametrize("seed", range(60))
def test_resolutions_follow_the_rules_for_any_settings(seed):
    draw = random.Random(seed)
    width, height, step, shortest = (8 * draw.randint(*span) for span in [(8, 160), (8, 160), (1, 40), (4, 90)])
    config = BucketConfig(width, height, step, shortest, draw.choice([1.0, 1.25, 1.5, 2.0, 3.0, 2.6]))
    if seed % 2:
        config = replace(config, max_length=max(width, height) + 8 * draw.randint(0, 100))
    main, sub = main_resolutions(config), sub_resolutions(config)
    assert len(main) == len(set(main)) and set(main) == search_main_resolutions(config)
    assert len(sub) == len(set(sub)) and set(sub) == search_sub_resolutions(config)


SDXL = BucketConfig(1024, 1024, step=64, min_length=512, max_ratio=2.5, max_length=1536)


def test_with_a_maximum_length_the_resolutions_that_sdxl_was_trained_at_come_out():
    # Of the table in SDXL's report (arXiv 2307.01952, appendix I): the largest of each width from 640 to 1536.
    published = "1024x1024, 960x1088, 896x1152, 832x1216, 768x1344, 704x1472, 640x1536"
    found = set(main_resolutions(SDXL))
    assert parse(published) <= found and {(height, width) for width, height in parse(published)} <= found
    assert all(width * height <= 1024 * 1024 and max(width, height) <= 1536 for width, height in found)
    assert min(width * height for width, height in found) > 0.93e6  # none is small


def test_the_template_for_sdxl_has_these_resolutions():
    graph = json.loads((ROOT / "example_workflows" / "2_Train_a_LoRA_SDXL.json").read_text())
    (values,) = (node["widgets_values"] for node in graph["nodes"] if node["type"] == "TrainTrain_BucketImages")
    assert main_resolutions(BucketConfig(*values)) == main_resolutions(SDXL)


def test_without_one_the_rule_is_as_it_was():
    assert main_resolutions(replace(SDXL, max_length=0)) == main_resolutions(replace(SDXL, max_length=1024))
    assert max(max(size) for size in main_resolutions(replace(SDXL, max_length=0))) == 1024


@pytest.mark.parametrize(
    "size, without, resolution",
    [
        ((1920, 1080), (1024, 576), (1344, 768)),
        ((832, 1216), (704, 1024), (832, 1216)),
        ((1536, 640), (1024, 512), (1536, 640)),
        ((1024, 1024), (1024, 1024), (1024, 1024)),
    ],
)
def test_a_wide_or_tall_image_uses_the_full_area_with_a_maximum_length(size, without, resolution):
    for config, expected in ((replace(SDXL, max_length=0, max_ratio=2), without), (SDXL, resolution)):
        assert choose_resolutions(size, main_resolutions(config), [], config) == [expected]


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"width": 500}, "width 500 must be a multiple of 8 pixels .some models need 16"),
        ({"height": 4}, "height 4 must be a multiple of 8"),
        ({"step": 0}, "buckets_step 0 must be a multiple of 8"),
        ({"width": 500, "min_length": 250}, "width 500 .*; min_length 250 "),
        ({"max_ratio": 0.5}, "max_ratio 0.5 must be at least 1"),
        ({"max_ratio": float("nan")}, "max_ratio nan"),
        ({"sub_image_num": -1}, "sub_image_num -1 must be 0 or more"),
        ({"repeats": 0}, "repeats 0 must be 1 or more"),
        (
            {"max_length": 1000},
            "max_length 1000 must be 0, or a multiple of 8 .* not less than width 1024 and height 1024",
        ),
        ({"max_length": 1030}, "max_length 1030 must be 0, or a multiple of 8"),
        ({"max_length": -8}, "max_length -8 must be 0"),
        ({"max_length": 9000}, "max_length 9000 must be 8192 or less"),
    ],
)
def test_invalid_settings_are_named(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        BucketConfig(**settings)


def test_one_image_with_three_sub_images_and_mirroring_becomes_eight():
    assert resolutions_of(photo(512, 640), sub_image_num=3, mirroring=True)[:2] == [(512, 640)] * 2
    assert len(resolutions_of(photo(512, 640), sub_image_num=3, mirroring=True)) == 8


def test_sub_images_go_into_the_buckets_of_nearest_aspect_ratio():
    # The aspect ratio is 0.8; the sub resolutions' distances: 384x512 0.05, 256x384 0.133, 384x640 and the squares 0.2
    assert resolutions_of(photo(512, 640), sub_image_num=2) == [(512, 640), (384, 512), (256, 384)]


@pytest.mark.parametrize(
    "size, resolution",
    [((1000, 1000), (512, 512)), ((900, 300), (768, 384)), ((300, 900), (384, 768)), ((451, 300), (768, 512))],
)
def test_an_image_goes_into_the_main_bucket_of_nearest_aspect_ratio(size, resolution):
    assert resolutions_of(photo(*size)) == [resolution]


def test_without_upscaling_larger_buckets_are_skipped():
    assert resolutions_of(photo(600, 400), disable_upscale=True, width=512, height=384) == [(512, 384)]
    # 520x400 covers no main resolution; of the sub resolutions 512x384 is off by 0.03 and 384x256 by 0.2.
    assert resolutions_of(photo(520, 400), sub_image_num=2, disable_upscale=True) == [(512, 384), (384, 256)]


def test_of_two_equally_near_buckets_the_larger_is_chosen():
    # 1.25 lies halfway between 384x384 and 384x256; 256x256 is as near but smaller.
    assert resolutions_of(photo(500, 400), sub_image_num=2, disable_upscale=True) == [(384, 384), (384, 256)]


def test_without_upscaling_one_error_names_every_image_that_fits_no_bucket():
    images = [photo(512, 640), photo(500, 400), photo(30, 20)]
    with pytest.raises(ValueError) as caught:
        config = BucketConfig(768, 512, 128, 256, disable_upscale=True)
        fill_buckets(images, ["a"], None, config, ["a.png", "b.jpg", "c.gif"])
    assert "b.jpg (500x400), c.gif (30x20)" in str(caught.value) and "a.png" not in str(caught.value)
    assert "smallest is 512x512" in str(caught.value)


def test_an_error_gives_the_counts_that_do_not_match():
    image, config = photo(64, 64), BucketConfig(64, 64, 8, 64)
    with pytest.raises(ValueError, match=r"captions \(2\) and masks \(1\) must match the number of images \(3\)"):
        fill_buckets([image] * 3, ["a", "b"], [torch.ones(64, 64)], config)
    with pytest.raises(ValueError, match="There are no images"):
        fill_buckets([], [], None, config)
    assert [filled.caption for filled in fill_buckets([image] * 2, ["both"], None, config)] == ["both", "both"]
