"""The report and the contact sheet of Bucket Images."""

from __future__ import annotations

import pytest
import torch
from bucketing import fill, photo
from pack.trainer.dataset.bucket_report import report_buckets
from pack.trainer.dataset.buckets import BucketConfig
from pack.trainer.dataset.contact_sheet import draw_contact_sheet
from pack.trainer.dataset.fill_buckets import fill_buckets
from pack.trainer.dataset.training_image import TrainingImage
from PIL import ImageDraw


def test_a_small_image_is_enlarged_and_the_report_says_so():
    filled = fill(photo(256, 320), photo(512, 640))
    assert [image.resolution for image in filled] == [(512, 640)] * 2
    assert "enlarged, may be blurry: image 1 2x at 512x640" in report_buckets(filled).splitlines()


def test_repeats_count_per_epoch_and_make_no_copies():
    filled = fill(photo(512, 640), repeats=10)
    assert len(filled) == 1 and filled[0].repeats == 10
    assert report_buckets(filled).startswith("1 image -> 1 training image in 1 bucket; 10 per epoch")


def test_the_report_lists_buckets_images_crops_masks_and_missing_captions():
    config = BucketConfig(768, 512, 128, 256, mirroring=True)
    images = [photo(1600, 400), photo(1024, 1280)]
    masks = [torch.ones(400, 1600), torch.tensor([0.0, 1.0]).repeat_interleave(512).expand(1280, 1024)]
    lines = report_buckets(fill_buckets(images, ["", "b"], masks, config, ["wide.png", "high.png"])).splitlines()
    assert lines == [
        "2 images -> 4 training images in 2 buckets; 4 per epoch",
        "512x640 (0.33 MP), 2 images (1 mirrored): high.png",
        "768x384 (0.29 MP), 2 images (1 mirrored): wide.png",
        "more than 25% cropped away: wide.png 50% at 768x384",
        "trained only inside the mask: high.png",
        "without a caption: wide.png",
    ]


def test_the_report_ends_with_what_was_left_out_of_each_folder():
    lines = report_buckets(fill(photo(512, 640)), ["", "left out: 1 heic", "", "left out: 1 heic"]).splitlines()
    assert lines[-1] == "left out: 1 heic" and "".join(lines).count("heic") == 1


def test_the_contact_sheet_is_one_image_with_every_training_image_on_it():
    red, blue = torch.zeros(640, 512, 3), torch.zeros(512, 768, 3)
    red[:, :, 0], blue[:, :, 2] = 1, 1
    sheet = draw_contact_sheet(fill(*[red] * 60, blue))
    assert sheet.shape[0] == 1 and sheet.shape[2] <= 1024 and sheet.shape[3] == 3 and sheet.dtype == torch.float32
    is_red = (sheet[0] - torch.tensor([1.0, 0, 0])).abs().amax(-1) < 0.01
    is_blue = (sheet[0] - torch.tensor([0, 0, 1.0])).abs().amax(-1) < 0.01
    # Tiles are 176 high, so 141 or 264 wide; at most 40 per bucket are shown.
    assert int(is_red.sum()) == 40 * 176 * 141 and int(is_blue.sum()) == 176 * 264


def test_the_contact_sheet_darkens_what_is_not_trained():
    mask = torch.tensor([0.0, 1.0]).repeat_interleave(256).expand(640, 512)
    sheet = draw_contact_sheet(fill(torch.ones(640, 512, 3), masks=[mask]))[0]
    assert int((sheet.amin(-1) > 0.99).sum()) == pytest.approx(176 * 141 / 2, rel=0.03)


def headings(monkeypatch, images: list[TrainingImage]) -> list[str]:
    """Return the text on the contact sheet."""
    written = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda drawing, place, text, **style: written.append(text))
    draw_contact_sheet(images)
    return written


def test_a_heading_of_the_contact_sheet_counts_images_and_says_how_much_is_cropped_away(monkeypatch):
    images = [photo(512, 512), photo(640, 512), photo(512, 1024)]  # at a square resolution: 0, 20 and 50 % cropped away
    square = fill(*images, width=512, height=512, min_length=512, mirroring=True)
    assert headings(monkeypatch, square) == ["512x512, 6 images (3 mirrored)\ncropped away: median 20%, max 50%"]
    two = fill(*[photo(512, 640)] * 41, photo(1536, 384))
    assert headings(monkeypatch, two) == [
        "512x640, 41 images, the first 40 shown\nnothing cropped away",
        "768x384, 1 image\ncropped away: median 50%, max 50%",
    ]
