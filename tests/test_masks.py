"""Masks: cropped with their image, and refused where they do not fit or leave nothing to train."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bucketing import WHOLE_CAT, crop, fill, photo, save, to_bytes
from pack.trainer.dataset.tensor_on_disk import alpha_on_disk


def test_a_mask_is_cropped_like_its_image():
    marked = torch.zeros(300, 451, 3)
    marked[100:200, 60:300] = 1
    (filled,) = fill(marked, masks=[marked[:, :, 0]])
    assert filled.resolution == (768, 512) and filled.mask.dtype == torch.bool
    assert (filled.mask != (filled.pixels[:, :, 0] > 0.5)).float().mean() < 0.005


def test_alpha_above_a_tenth_is_trained_and_a_full_mask_becomes_none():
    alpha = torch.tensor([0.0, 0.1, 0.11, 1.0]).repeat_interleave(128).expand(640, 512)
    partly, fully = fill(photo(512, 640), photo(512, 640), masks=[alpha, torch.full((640, 512), 0.2)])
    assert partly.mask[:, 256:].all() and not partly.mask[:, :256].any()
    assert fully.mask is None
    assert fill(photo(512, 640))[0].mask is None


def test_a_mask_of_the_same_aspect_ratio_at_another_size_fits():
    mask = torch.zeros(320, 256)
    mask[:, :128] = 1
    (filled,) = fill(photo(512, 640), masks=[mask])
    assert filled.mask[:, :256].all() and not filled.mask[:, 256:].any()


def test_an_image_whose_mask_leaves_nothing_to_train_is_named():
    masks = [torch.zeros(640, 512), torch.ones(640, 512), torch.full((640, 512), 0.1)]
    with pytest.raises(
        ValueError, match=r"leaves nothing to train in image 1 at 512x640, image 3 at 512x640\. In a mask, 1 means"
    ):
        fill(*[photo(512, 640)] * 3, masks=masks)


def test_a_mask_of_another_aspect_ratio_is_named_with_both_sizes():
    with pytest.raises(ValueError, match="image 2 is 512x640 but its mask is 64x64"):
        fill(photo(512, 640), photo(512, 640), masks=[torch.ones(640, 512), torch.ones(64, 64)])


def test_the_alpha_on_disk_is_the_mask(tmp_path):
    alpha = np.tile(np.linspace(0, 255, 451).astype(np.uint8), (300, 1))
    masked, plain = save(tmp_path / "a.png", np.dstack([WHOLE_CAT, alpha])), save(tmp_path / "b.png")
    assert np.array_equal(to_bytes(alpha_on_disk(masked)[0]), alpha)
    assert alpha_on_disk(plain).shape == (1, 300, 451) and bool((alpha_on_disk(plain) == 1).all())
    pixels = torch.from_numpy(WHOLE_CAT).float() / 255
    expected = crop(pixels, pixels, masks=[torch.from_numpy(alpha) / 255, torch.ones(300, 451)])
    found = crop(masked, plain, masks=[masked, plain])
    assert torch.equal(found[0].mask, expected[0].mask) and found[1].mask is None
