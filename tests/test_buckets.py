"""Frames by the published rules and examples, and what happens to a picture on its way into one."""

from __future__ import annotations

import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from pack.trainer.bucket_report import draw_contact_sheet, report_buckets
from pack.trainer.buckets import BucketConfig, Frame, main_frames, sub_frames
from pack.trainer.cropping import fill_buckets
from pack.trainer.data import TrainingImage
from PIL import Image, ImageDraw
from skimage import data, transform

FINE = BucketConfig(width=768, height=512, step=128, min_length=256)
CAT = torch.from_numpy(data.chelsea()).float() / 255  # (300, 451, 3)


def picture(width: int, height: int) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.fromarray(data.astronaut()).resize((width, height)))).float() / 255


def fill(*images: torch.Tensor, masks: list[torch.Tensor] | None = None, **settings: object) -> list[TrainingImage]:
    config = BucketConfig(**{"width": 768, "height": 512, "step": 128, "min_length": 256} | settings)
    return fill_buckets(images, [f"caption {i}" for i in range(len(images))], masks, config)


def frames_of(*images: torch.Tensor, **settings: object) -> list[Frame]:
    return [image.frame for image in fill(*images, **settings)]


def parse(text: str) -> set[Frame]:
    return {tuple(int(side) for side in frame.split("x")) for frame in text.split(", ")}


def test_a_coarse_step_gives_the_three_frames_of_the_published_example():
    assert main_frames(BucketConfig(768, 512, 256, 512)) == [(512, 768), (512, 512), (768, 512)]
    assert sub_frames(BucketConfig(768, 512, 256, 512)) == []


def test_a_fine_step_gives_the_main_and_sub_frames_of_the_published_example():
    main = "384x768, 512x768, 512x640, 512x512, 640x512, 768x512, 768x384"
    sub = "256x512, 384x640, 256x384, 384x512, 384x384, 256x256, 512x384, 384x256, 640x384, 512x256"
    assert len(main_frames(FINE)) == 7 and set(main_frames(FINE)) == parse(main)
    assert len(sub_frames(FINE)) == 10 and set(sub_frames(FINE)) == parse(sub)


def test_width_and_height_may_be_given_in_either_order():
    swapped = BucketConfig(width=512, height=768, step=128, min_length=256)
    assert (main_frames(swapped), sub_frames(swapped)) == (main_frames(FINE), sub_frames(FINE))


def search_main_frames(config: BucketConfig) -> set[Frame]:
    """Follow the rule by trying every height, in whole numbers and fractions."""
    (shorter, longer), area = sorted([config.width, config.height]), config.width * config.height
    frames = {(shorter, shorter)}
    for width in range(config.min_length, longer + 1):
        if (width - config.min_length) % config.step:
            continue
        heights = [h for h in range(0, area // width + 1) if h % config.step == 0]
        frames |= {(width, min(longer, max(heights))), (min(longer, max(heights)), width)}
    return {frame for frame in frames if ratio_allowed(frame, config)}


def search_sub_frames(config: BucketConfig) -> set[Frame]:
    sides = [s for s in range(max(config.width, config.height) + 1) if s >= config.min_length]
    sides = [s for s in sides if (s - config.min_length) % config.step == 0]
    pairs = {(w, h) for w in sides for h in sides if w * h <= config.width * config.height}
    return {pair for pair in pairs if ratio_allowed(pair, config)} - search_main_frames(config)


def ratio_allowed(frame: Frame, config: BucketConfig) -> bool:
    limit = Fraction(config.max_ratio)
    return frame[1] > 0 and frame[0] > 0 and 1 / limit <= Fraction(*frame) <= limit


@pytest.mark.parametrize("seed", range(60))
def test_frames_follow_the_rules_for_any_numbers(seed):
    draw = random.Random(seed)
    width, height, step, shortest = (8 * draw.randint(*span) for span in [(8, 160), (8, 160), (1, 40), (4, 90)])
    config = BucketConfig(width, height, step, shortest, draw.choice([1.0, 1.25, 1.5, 2.0, 3.0, 2.6]))
    main, sub = main_frames(config), sub_frames(config)
    assert len(main) == len(set(main)) and set(main) == search_main_frames(config)
    assert len(sub) == len(set(sub)) and set(sub) == search_sub_frames(config)


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"width": 500}, "width 500 must be a multiple of 8, .*some models ask for 16"),
        ({"height": 4}, "height 4 must be a multiple of 8"),
        ({"step": 0}, "buckets_step 0 must be a multiple of 8"),
        ({"width": 500, "min_length": 250}, "width 500 .*; min_length 250 "),
        ({"max_ratio": 0.5}, "max_ratio 0.5 must be at least 1"),
        ({"max_ratio": float("nan")}, "max_ratio nan"),
        ({"sub_image_num": -1}, "sub_image_num -1 must be 0 or more"),
        ({"repeats": 0}, "repeats 0 must be 1 or more"),
    ],
)
def test_settings_that_cannot_be_used_are_named(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        BucketConfig(**settings)


def test_one_picture_with_three_sub_images_and_mirroring_becomes_eight():
    assert frames_of(picture(512, 640), sub_image_num=3, mirroring=True)[:2] == [(512, 640)] * 2
    assert len(frames_of(picture(512, 640), sub_image_num=3, mirroring=True)) == 8


def test_sub_images_go_to_the_frames_of_nearest_ratio():
    # 0.8 wide to high; the sub frames' distances: 384x512 0.05, 256x384 0.133, 384x640 and the squares 0.2
    assert frames_of(picture(512, 640), sub_image_num=2) == [(512, 640), (384, 512), (256, 384)]


@pytest.mark.parametrize(
    "size, frame",
    [((1000, 1000), (512, 512)), ((900, 300), (768, 384)), ((300, 900), (384, 768)), ((451, 300), (768, 512))],
)
def test_a_picture_goes_to_the_main_frame_of_nearest_ratio(size, frame):
    assert frames_of(picture(*size)) == [frame]


def test_a_picture_is_scaled_to_cover_its_frame_and_cut_at_the_centre():
    (filled,) = fill(CAT, width=256, height=128, min_length=128, max_ratio=1.0)
    # By another program: the cat at height 128 is 192.4 wide, of which the middle 128 columns are kept.
    scaled = transform.resize(data.chelsea() / 255, (128, 192), order=3, anti_aliasing=True)
    assert filled.frame == (128, 128)
    assert np.abs(filled.pixels.numpy() - scaled[:, 32:160]).mean() < 0.01
    assert np.abs(filled.pixels.numpy() - scaled[:, 36:164]).mean() > 0.015


def test_scaling_down_does_not_alias():
    stripes = (torch.arange(1024) % 2).float()[None, :, None].repeat(1024, 1, 3)
    (filled,) = fill(stripes, width=208, height=208)
    assert (filled.pixels - 0.5).abs().max() < 0.1


def test_an_enlarged_hard_edge_stays_between_black_and_white():
    edge = (torch.arange(256) > 128).float()[None, :, None].repeat(320, 1, 3)
    (filled,) = fill(edge)
    assert filled.pixels.min() == 0 and filled.pixels.max() == 1


def test_a_picture_of_the_frames_own_size_is_neither_scaled_nor_copied():
    image = picture(512, 640)
    assert fill(image)[0].pixels is image


def test_mirrored_copies_are_flipped_pixel_by_pixel_with_their_masks():
    mask = torch.zeros(640, 512)
    mask[:, :100] = 1
    plain, mirrored = fill(picture(512, 640), masks=[mask], mirroring=True)
    assert torch.equal(mirrored.pixels, plain.pixels[:, range(511, -1, -1)])
    assert plain.mask[:, :100].all() and not plain.mask[:, 100:].any()
    assert mirrored.mask[:, 412:].all() and not mirrored.mask[:, :412].any()
    assert (plain.mirrored, mirrored.mirrored) == (False, True) and mirrored.caption == plain.caption == "caption 0"


def test_a_mask_is_cut_like_its_picture():
    marked = torch.zeros(300, 451, 3)
    marked[100:200, 60:300] = 1
    (filled,) = fill(marked, masks=[marked[:, :, 0]])
    assert filled.frame == (768, 512) and filled.mask.dtype == torch.bool
    assert (filled.mask != (filled.pixels[:, :, 0] > 0.5)).float().mean() < 0.005


def test_alpha_above_a_tenth_is_trained_and_a_full_mask_is_none():
    alpha = torch.tensor([0.0, 0.1, 0.11, 1.0]).repeat_interleave(128).expand(640, 512)
    partly, fully = fill(picture(512, 640), picture(512, 640), masks=[alpha, torch.full((640, 512), 0.2)])
    assert partly.mask[:, 256:].all() and not partly.mask[:, :256].any()
    assert fully.mask is None
    assert fill(picture(512, 640))[0].mask is None


def test_without_upscaling_larger_frames_are_left_out():
    assert frames_of(picture(600, 400), disable_upscale=True, width=512, height=384) == [(512, 384)]
    # 520x400 covers no main frame; of the sub frames 512x384 is off by 0.03 and 384x256 by 0.2.
    assert frames_of(picture(520, 400), sub_image_num=2, disable_upscale=True) == [(512, 384), (384, 256)]


def test_of_two_equally_near_frames_the_larger_is_taken():
    # 1.25 lies halfway between 384x384 and 384x256; 256x256 is as near but smaller.
    assert frames_of(picture(500, 400), sub_image_num=2, disable_upscale=True) == [(384, 384), (384, 256)]


def test_without_upscaling_one_error_names_every_picture_that_fits_no_frame():
    images = [picture(512, 640), picture(500, 400), picture(30, 20)]
    with pytest.raises(ValueError) as caught:
        config = BucketConfig(768, 512, 128, 256, disable_upscale=True)
        fill_buckets(images, ["a"], None, config, ["a.png", "b.jpg", "c.gif"])
    assert "b.jpg (500x400), c.gif (30x20)" in str(caught.value) and "a.png" not in str(caught.value)
    assert "smallest is 512x512" in str(caught.value)


def test_a_small_picture_is_enlarged_and_the_report_says_so():
    filled = fill(picture(256, 320), picture(512, 640))
    assert [image.frame for image in filled] == [(512, 640)] * 2
    assert "enlarged, so they may be blurred: image 1 2x in 512x640" in report_buckets(filled).splitlines()


def test_a_picture_whose_mask_leaves_nothing_is_named():
    masks = [torch.zeros(640, 512), torch.ones(640, 512), torch.full((640, 512), 0.1)]
    with pytest.raises(ValueError, match="Nothing is left to train.*image 1 in 512x640, image 3 in 512x640;"):
        fill(*[picture(512, 640)] * 3, masks=masks)


def test_a_mask_of_another_shape_is_named_with_both_sizes():
    with pytest.raises(ValueError, match="image 2 is 512x640, its mask 64x64"):
        fill(picture(512, 640), picture(512, 640), masks=[torch.ones(640, 512), torch.ones(64, 64)])


def test_a_mask_of_the_same_shape_at_another_scale_fits():
    mask = torch.zeros(320, 256)
    mask[:, :128] = 1
    (filled,) = fill(picture(512, 640), masks=[mask])
    assert filled.mask[:, :256].all() and not filled.mask[:, 256:].any()


def test_numbers_that_do_not_match_are_both_said():
    image, config = picture(64, 64), BucketConfig(64, 64, 8, 64)
    with pytest.raises(ValueError, match="3 images but 2 captions and 1 masks"):
        fill_buckets([image] * 3, ["a", "b"], [torch.ones(64, 64)], config)
    with pytest.raises(ValueError, match="There are no images"):
        fill_buckets([], [], None, config)
    assert [filled.caption for filled in fill_buckets([image] * 2, ["both"], None, config)] == ["both", "both"]


def test_repeats_count_in_the_epoch_and_share_their_pixels():
    filled = fill(picture(512, 640), repeats=10)
    assert len(filled) == 1 and filled[0].repeats == 10
    assert report_buckets(filled).startswith("1 picture -> 1 training image in 1 frame; 10 per epoch")


def test_the_report_lists_frames_pictures_crops_masks_and_missing_captions():
    config = BucketConfig(768, 512, 128, 256, mirroring=True)
    images = [picture(1600, 400), picture(1024, 1280)]
    masks = [torch.ones(400, 1600), torch.tensor([0.0, 1.0]).repeat_interleave(512).expand(1280, 1024)]
    lines = report_buckets(fill_buckets(images, ["", "b"], masks, config, ["wide.png", "high.png"])).splitlines()
    assert lines == [
        "2 pictures -> 4 training images in 2 frames; 4 per epoch",
        "512x640, 2 images (1 mirrored): high.png",
        "768x384, 2 images (1 mirrored): wide.png",
        "more than 25% cut off: wide.png 50% in 768x384",
        "trained only inside a mask: high.png",
        "without a caption: wide.png",
    ]


def test_the_contact_sheet_is_one_picture_with_every_training_image_on_it():
    red, blue = torch.zeros(640, 512, 3), torch.zeros(512, 768, 3)
    red[:, :, 0], blue[:, :, 2] = 1, 1
    sheet = draw_contact_sheet(fill(*[red] * 60, blue))
    assert sheet.shape[0] == 1 and sheet.shape[2] <= 1024 and sheet.shape[3] == 3 and sheet.dtype == torch.float32
    is_red = (sheet[0] - torch.tensor([1.0, 0, 0])).abs().amax(-1) < 0.01
    is_blue = (sheet[0] - torch.tensor([0, 0, 1.0])).abs().amax(-1) < 0.01
    # Tiles are 176 high, so 141 or 264 wide; at most 40 of one frame are shown.
    assert int(is_red.sum()) == 40 * 176 * 141 and int(is_blue.sum()) == 176 * 264


def test_the_contact_sheet_darkens_what_is_not_trained():
    mask = torch.tensor([0.0, 1.0]).repeat_interleave(256).expand(640, 512)
    sheet = draw_contact_sheet(fill(torch.ones(640, 512, 3), masks=[mask]))[0]
    assert int((sheet.amin(-1) > 0.99).sum()) == pytest.approx(176 * 141 / 2, rel=0.03)


def headings(monkeypatch, images: list[TrainingImage]) -> list[str]:
    """Return what is written on the contact sheet."""
    written = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda drawing, place, text, **style: written.append(text))
    draw_contact_sheet(images)
    return written


def test_the_contact_sheet_says_of_each_frame_how_many_there_are_and_how_much_is_cut_off(monkeypatch):
    pictures = [picture(512, 512), picture(640, 512), picture(512, 1024)]  # in a square frame: 0, 20 and 50 % cut off
    square = fill(*pictures, width=512, height=512, min_length=512, mirroring=True)
    assert headings(monkeypatch, square) == ["512x512, 6 images (3 mirrored)\ncut off: median 20%, most 50%"]
    two = fill(*[picture(512, 640)] * 41, picture(1536, 384))
    assert headings(monkeypatch, two) == [
        "512x640, 41 images, the first 40 shown\nnothing cut off",
        "768x384, 1 image\ncut off: median 50%, most 50%",
    ]
