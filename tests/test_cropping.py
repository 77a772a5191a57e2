"""Cropping: an image in memory or on disk is resized to cover its resolution and cut at the center."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bucketing import WHOLE_CAT, crop, fill, photo, save, to_bytes
from pack.trainer.dataset.image_on_disk import read_header
from PIL import Image
from skimage import data, transform

CAT = torch.from_numpy(WHOLE_CAT).float() / 255


def test_an_image_is_resized_to_cover_its_resolution_and_cut_at_the_center():
    (filled,) = fill(CAT, width=256, height=128, min_length=128, max_ratio=1.0)
    # By another program: the cat at height 128 is 192.4 wide; the middle 128 columns are kept.
    scaled = transform.resize(data.chelsea() / 255, (128, 192), order=3, anti_aliasing=True)
    assert filled.resolution == (128, 128)
    assert np.abs(filled.pixels.numpy() - scaled[:, 32:160]).mean() < 0.01
    assert np.abs(filled.pixels.numpy() - scaled[:, 36:164]).mean() > 0.015


def test_downscaling_does_not_alias():
    stripes = (torch.arange(1024) % 2).float()[None, :, None].repeat(1024, 1, 3)
    (filled,) = fill(stripes, width=208, height=208)
    assert (filled.pixels - 0.5).abs().max() < 0.1


def test_an_enlarged_hard_edge_stays_between_black_and_white():
    edge = (torch.arange(256) > 128).float()[None, :, None].repeat(320, 1, 3)
    (filled,) = fill(edge)
    assert filled.pixels.min() == 0 and filled.pixels.max() == 1


def test_an_image_that_has_its_resolution_is_neither_resized_nor_copied():
    image = photo(512, 640)
    assert fill(image)[0].pixels is image


def test_mirrored_copies_are_flipped_pixel_by_pixel_with_their_masks():
    mask = torch.zeros(640, 512)
    mask[:, :100] = 1
    plain, mirrored = fill(photo(512, 640), masks=[mask], mirroring=True)
    assert torch.equal(mirrored.pixels, plain.pixels[:, range(511, -1, -1)])
    assert plain.mask[:, :100].all() and not plain.mask[:, 100:].any()
    assert mirrored.mask[:, 412:].all() and not mirrored.mask[:, :412].any()
    assert (plain.mirrored, mirrored.mirrored) == (False, True) and mirrored.caption == plain.caption == "caption 0"


def test_a_file_is_cropped_as_pillow_crops_it(tmp_path):
    (image,) = crop(save(tmp_path / "cat.png"))
    # 451 x 300 goes to 256 x 192 (1.33), which it covers as 289 x 192; cut at the center from column 16 on.
    expected = Image.fromarray(WHOLE_CAT).resize((289, 192), Image.Resampling.BICUBIC).crop((16, 0, 272, 192))
    assert image.pixels.dtype == torch.uint8 and np.array_equal(image.pixels.numpy(), np.asarray(expected))
    assert (image.source_size, image.resolution) == ((451, 300), (256, 192))


MODES = {
    "gray.jpg": lambda: Image.fromarray(WHOLE_CAT).convert("L"),
    "cmyk.jpg": lambda: Image.fromarray(WHOLE_CAT).convert("CMYK"),
    "palette.gif": lambda: Image.fromarray(WHOLE_CAT).quantize(64),
    "alpha.png": lambda: Image.fromarray(np.dstack([WHOLE_CAT, WHOLE_CAT[:, :, 0]])),
    "deep.png": lambda: Image.fromarray(WHOLE_CAT[:, :, 0].astype(np.uint16) * 257),
    "cat.webp": lambda: Image.fromarray(WHOLE_CAT),
    "one.bmp": lambda: Image.fromarray(WHOLE_CAT).convert("1", dither=Image.Dither.NONE),
}


@pytest.mark.parametrize("name", MODES)
def test_a_file_of_any_kind_matches_its_pixels_resized_by_pytorch(tmp_path, name):
    MODES[name]().save(tmp_path / name)
    file = read_header(tmp_path / name)
    (small,), (expected,) = crop(file), crop(file.pixels())
    assert small.resolution == expected.resolution
    assert np.abs(to_bytes(small.pixels) - to_bytes(expected.pixels)).mean() < 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", ["jpg", "png", "tif", "webp"])
def test_a_rotated_file_is_cropped_upright(tmp_path, orientation, extension):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = save(tmp_path / f"cat.{extension}", exif=exif)
    (small,), (expected,) = crop(file), crop(file.pixels())  # test_image_formats.py shows that pixels() is upright
    assert small.resolution == expected.resolution == ((256, 192) if orientation < 5 else (192, 256))
    assert np.abs(to_bytes(small.pixels) - to_bytes(expected.pixels)).mean() < 0.5


def test_a_large_jpeg_decoded_at_reduced_size_looks_the_same(tmp_path):
    file = save(tmp_path / "a.jpg", data.astronaut()[:509], quality=95)  # decoded as 256 x 255, of which 254.5
    square = {"width": 120, "height": 120, "min_length": 120}
    (small,), (expected,) = crop(file, **square), crop(file.pixels(), **square)
    assert small.resolution == expected.resolution == (120, 120)
    assert np.abs(to_bytes(small.pixels) - to_bytes(expected.pixels)).mean() < 0.8


def test_every_sub_image_is_cropped_from_the_same_file(tmp_path):
    file = save(tmp_path / "cat.jpg")
    found, expected = crop(file, sub_image_num=3), crop(file.pixels(), sub_image_num=3)
    assert [image.resolution for image in found] == [image.resolution for image in expected] and len(found) == 4
    for one, other in zip(found, expected):
        assert np.abs(to_bytes(one.pixels) - to_bytes(other.pixels)).mean() < 0.5
