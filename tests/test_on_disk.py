"""Pictures that stay on disk: any operation of other nodes finds their pixels, and Bucket Images reads them small."""

from __future__ import annotations

import copy
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import comfy.utils
import folder_paths
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from comfy_api.latest import ui
from pack.nodes.fingerprint import fingerprint
from pack.nodes.images import BucketImages
from pack.trainer.buckets import BucketConfig
from pack.trainer.cropping import fill_buckets
from pack.trainer.data import TrainingImage
from pack.trainer.images import load_folder
from pack.trainer.on_disk import TensorOnDisk, alpha_on_disk, pixels_on_disk
from pack.trainer.picture import PictureFile, read_header, to_unit_range
from PIL import Image, ImageFile
from skimage import data

import nodes as host_nodes

CAT = data.chelsea()  # 300 x 451 x 3
PLAIN = torch.from_numpy(CAT).float().div(255)[None]


def save(path: Path, picture: np.ndarray = CAT, **options: object) -> PictureFile:
    Image.fromarray(picture).save(path, **options)
    return read_header(path)


@pytest.fixture
def cat(tmp_path) -> TensorOnDisk:
    return pixels_on_disk(save(tmp_path / "cat.png"))


def crop(*pictures: PictureFile | torch.Tensor, masks: list | None = None, **changed: int) -> list[TrainingImage]:
    config = BucketConfig(**{"width": 256, "height": 256, "step": 64, "min_length": 128} | changed)
    return fill_buckets(pictures, [""], masks, config)


def to_bytes(pixels: torch.Tensor) -> np.ndarray:
    return (to_unit_range(pixels) * 255).round().numpy()


def write_into(image: torch.Tensor) -> torch.Tensor:
    image[:, 0] = 0
    image *= 0.5
    return image


OPERATIONS: list[Callable] = [
    lambda image: image[:, :, :, :3],
    lambda image: image[0],
    lambda image: [picture for picture in image][0],
    lambda image: image.movedim(-1, 1),
    lambda image: image.permute(0, 3, 1, 2).contiguous(),
    lambda image: image.reshape((-1, image.shape[-3], image.shape[-2], image.shape[-1])),
    lambda image: 255.0 * image,
    lambda image: 1 - image,
    lambda image: image > 0.5,
    lambda image: image.clone(),
    lambda image: image.to("cpu"),
    lambda image: image.half(),
    lambda image: image.detach(),
    lambda image: image.cpu().numpy(),
    lambda image: np.array(image),
    lambda image: np.asarray(image[0]),
    lambda image: np.clip(255.0 * image.cpu().numpy(), 0, 255).astype(np.uint8),
    lambda image: np.array(image.tolist()),
    lambda image: np.from_dlpack(image),
    lambda image: torch.cat([image, torch.zeros_like(image)]),
    lambda image: torch.stack((image, image)),
    lambda image: torch.tensor(image),
    lambda image: torch.zeros(2, 300, 451, 3).copy_(image),
    lambda image: F.interpolate(image.movedim(-1, 1), size=(70, 90), mode="bilinear"),
    lambda image: comfy.utils.common_upscale(image.movedim(-1, 1), 100, 60, "lanczos", "center"),
    lambda image: host_nodes.ImageScale().upscale(image, "bicubic", 90, 0, "disabled")[0],
    lambda image: host_nodes.ImageBatch().batch(image, torch.zeros(1, 20, 30, 3))[0],
    lambda image: host_nodes.ImagePadForOutpaint().expand_image(image, 8, 8, 8, 8, 4)[0],
    lambda image: copy.deepcopy(image),
    lambda image: pickle.loads(pickle.dumps(image)),
    write_into,
]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # torch's, also for its own tensors
@pytest.mark.parametrize("inference", [False, True], ids=["plain", "inference"])
@pytest.mark.parametrize("operation", OPERATIONS, ids=range(len(OPERATIONS)))
def test_an_operation_gives_what_it_gives_on_pixels_in_memory_as_an_ordinary_tensor(cat, operation, inference):
    with torch.inference_mode(inference):
        expected, found = operation(PLAIN.clone()), operation(cat)
    assert type(found) is type(expected) and found.dtype == expected.dtype
    assert np.array_equal(np.asarray(found), np.asarray(expected))


def test_the_vae_and_the_previews_of_the_host_take_them(shapes, cat, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    with torch.inference_mode():
        encoded = [host_nodes.VAEEncode().encode(shapes[2], image)[0]["samples"] for image in (cat, PLAIN)]
        (shown,) = ui.PreviewImage(cat).as_dict()["images"]
    assert torch.equal(*encoded)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "temp" / shown["filename"])), CAT)


def test_what_a_tensor_knows_of_itself_needs_no_pixels(cat, tmp_path):
    (tmp_path / "cat.png").unlink()
    assert cat.shape == (1, 300, 451, 3) and cat.size(1) == 300 and len(cat) == 1 and cat.ndim == cat.dim() == 4
    assert cat.dtype == torch.float32 and cat.device.type == "cpu" and not cat.requires_grad
    assert cat.numel() * cat.element_size() == cat.nbytes == 300 * 451 * 3 * 4
    with pytest.raises(ValueError, match="cat.png No such file"):
        cat.mean()


def test_what_is_written_into_one_is_kept_and_trained(cat):
    cat[0, :, :, 1] = 0
    assert cat.file is None and torch.equal(cat[..., 0], PLAIN[..., 0]) and not cat[..., 1].any()
    values = {"width": 256, "height": 256, "buckets_step": 64, "min_length": 128, "max_ratio": 2.0}
    values |= {"sub_image_num": 0, "mirroring": False, "disable_upscale": False, "repeats": 1}
    (image,), _, _ = BucketImages.execute([cat], [""], **{key: [value] for key, value in values.items()}).args
    assert not image.pixels[..., 1].any() and image.pixels[..., 0].any()


def test_it_counts_as_the_same_picture_in_a_trainings_fingerprint(cat):
    assert fingerprint({"image": [cat]}, {}, "1") == fingerprint({"image": [PLAIN]}, {}, "1")
    assert fingerprint({"image": [cat]}, {}, "1") != fingerprint({"image": [PLAIN * 0.5]}, {}, "1")


def test_the_alpha_on_disk_is_the_mask(tmp_path):
    alpha = np.tile(np.linspace(0, 255, 451).astype(np.uint8), (300, 1))
    masked, plain = save(tmp_path / "a.png", np.dstack([CAT, alpha])), save(tmp_path / "b.png")
    assert np.array_equal(to_bytes(alpha_on_disk(masked)[0]), alpha)
    assert alpha_on_disk(plain).shape == (1, 300, 451) and bool((alpha_on_disk(plain) == 1).all())
    pixels = torch.from_numpy(CAT).float() / 255
    expected = crop(pixels, pixels, masks=[torch.from_numpy(alpha) / 255, torch.ones(300, 451)])
    found = crop(masked, plain, masks=[masked, plain])
    assert torch.equal(found[0].mask, expected[0].mask) and found[1].mask is None


def test_a_file_is_cropped_as_pillow_does_it(tmp_path):
    (image,) = crop(save(tmp_path / "cat.png"))
    # 451 x 300 goes to 256 x 192 (1.33), which it covers as 289 x 192; cut at the centre from column 16 on.
    expected = Image.fromarray(CAT).resize((289, 192), Image.Resampling.BICUBIC).crop((16, 0, 272, 192))
    assert image.pixels.dtype == torch.uint8 and np.array_equal(image.pixels.numpy(), np.asarray(expected))
    assert (image.source_size, image.frame) == ((451, 300), (256, 192))


MODES = {
    "gray.jpg": lambda: Image.fromarray(CAT).convert("L"),
    "cmyk.jpg": lambda: Image.fromarray(CAT).convert("CMYK"),
    "palette.gif": lambda: Image.fromarray(CAT).quantize(64),
    "alpha.png": lambda: Image.fromarray(np.dstack([CAT, CAT[:, :, 0]])),
    "deep.png": lambda: Image.fromarray(CAT[:, :, 0].astype(np.uint16) * 257),
    "cat.webp": lambda: Image.fromarray(CAT),
    "one.bmp": lambda: Image.fromarray(CAT).convert("1", dither=Image.Dither.NONE),
}


@pytest.mark.parametrize("name", MODES)
def test_a_file_of_any_kind_comes_out_as_its_pixels_scaled_by_pytorch_would(tmp_path, name):
    MODES[name]().save(tmp_path / name)
    file = read_header(tmp_path / name)
    (small,), (expected,) = crop(file), crop(file.pixels())
    assert small.frame == expected.frame
    assert np.abs(to_bytes(small.pixels) - to_bytes(expected.pixels)).mean() < 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", ["jpg", "png", "tif", "webp"])
def test_a_turned_file_is_cropped_upright(tmp_path, orientation, extension):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = save(tmp_path / f"cat.{extension}", exif=exif)
    (small,), (expected,) = crop(file), crop(file.pixels())  # test_images.py shows that pixels() is upright
    assert small.frame == expected.frame == ((256, 192) if orientation < 5 else (192, 256))
    assert np.abs(to_bytes(small.pixels) - to_bytes(expected.pixels)).mean() < 0.5


def test_a_large_jpeg_decoded_small_shows_no_difference(tmp_path):
    file = save(tmp_path / "a.jpg", data.astronaut()[:509], quality=95)  # decoded as 256 x 255, of which 254.5
    square = {"width": 120, "height": 120, "min_length": 120}
    (small,), (expected,) = crop(file, **square), crop(file.pixels(), **square)
    assert small.frame == expected.frame == (120, 120)
    assert np.abs(to_bytes(small.pixels) - to_bytes(expected.pixels)).mean() < 0.8


def test_every_frame_of_a_picture_comes_from_it(tmp_path):
    file = save(tmp_path / "cat.jpg")
    found, expected = crop(file, sub_image_num=3), crop(file.pixels(), sub_image_num=3)
    assert [image.frame for image in found] == [image.frame for image in expected] and len(found) == 4
    for one, other in zip(found, expected):
        assert np.abs(to_bytes(one.pixels) - to_bytes(other.pixels)).mean() < 0.5


def damage(path: Path) -> None:
    """Turn a byte over in the middle of a picture; its beginning and end stay as they are."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def test_one_error_names_every_file_that_turns_out_broken_or_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as other packs leave it
    for name in ("b", "a", "changed", "good", "gone"):
        save(tmp_path / f"{name}.png")
    damage(tmp_path / "a.png")
    damage(tmp_path / "b.png")
    files = [image.file for image in load_folder(tmp_path, False, "file name", "")]
    os.utime(tmp_path / "changed.png", ns=(1, 1))
    (tmp_path / "gone.png").unlink()
    with pytest.raises(ValueError) as caught:
        crop(*files, masks=files)
    lines = str(caught.value).splitlines()
    assert lines[0] == "4 files cannot be used: repair or remove them."
    assert [line.split(": ")[0] for line in lines[1:]] == [
        f"- {tmp_path / name}.png" for name in ("a", "b", "changed", "gone")
    ]
    assert "broken data stream" in lines[1] and "No such file" in lines[4]
    with pytest.raises(ValueError, match="a.png broken data stream"):
        pixels_on_disk(files[0]).clone()
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True
    assert lines[3].endswith("has changed since it was loaded: run Load Image Folder again")


def test_another_node_is_told_which_file_has_changed(cat, tmp_path):
    save(tmp_path / "cat.png", CAT[:100])
    with pytest.raises(ValueError, match="cat.png has changed since it was loaded: run Load Image Folder again.$"):
        cat.clone()


def test_a_jpeg_with_something_behind_its_end_is_whole(tmp_path):
    save(tmp_path / "a.jpg")
    with (tmp_path / "a.jpg").open("ab") as file:
        file.write(b"what a phone appends")
    (image,) = load_folder(tmp_path, False, "file name", "")
    assert image.file.size == (451, 300)


def test_an_orientation_behind_the_pixels_of_a_png_counts(tmp_path):
    save(tmp_path / "a.png")
    content, exif = (tmp_path / "a.png").read_bytes(), Image.Exif()
    exif[0x0112] = 6
    chunk = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    packed = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "a.png").write_bytes(content[:-12] + packed + content[-12:])
    file = read_header(tmp_path / "a.png")
    assert file.size == (300, 451)
    assert np.array_equal(to_bytes(file.pixels()), np.rot90(CAT, -1))
    assert crop(file)[0].frame == (192, 256)


def resident() -> int:
    """Return the most memory the process has held since the last call, in bytes."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    Path("/proc/self/clear_refs").write_text("5")
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak")
def test_a_folder_of_photographs_never_is_in_memory_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    for number in range(12):
        Image.new("RGB", (4000, 3000), (number, 99, 99)).save(tmp_path / f"{number}.jpg")
    resident()
    before = resident()
    files = [image.file for image in load_folder(tmp_path, False, "file name", "")]
    assert len(fill_buckets(files, [""], files, BucketConfig(1024, 1024))) == 12
    # 36 MB each in the file's own 8 bits, 144 MB as IMAGE; the frames are 2 or 3 MB each.
    assert resident() - before < 6 * 36e6 < 12 * 36e6
