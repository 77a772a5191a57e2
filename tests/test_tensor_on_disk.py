"""Tensors on disk: any operation of another node finds the pixels."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import comfy.utils
import folder_paths
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bucketing import WHOLE_CAT, save
from comfy_api.latest import ui
from pack.nodes.bucket_images import BucketImages
from pack.nodes.fingerprint import fingerprint
from pack.trainer.dataset.tensor_on_disk import TensorOnDisk, pixels_on_disk
from PIL import Image

import nodes as host_nodes

PLAIN = torch.from_numpy(WHOLE_CAT).float().div(255)[None]


@pytest.fixture
def cat(tmp_path) -> TensorOnDisk:
    return pixels_on_disk(save(tmp_path / "cat.png"))


def write_into(image: torch.Tensor) -> torch.Tensor:
    image[:, 0] = 0
    image *= 0.5
    return image


OPERATIONS: list[Callable] = [
    lambda image: image[:, :, :, :3],
    lambda image: image[0],
    lambda image: [image for image in image][0],
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
def test_an_operation_returns_the_ordinary_tensor_that_it_returns_for_pixels_in_memory(cat, operation, inference):
    with torch.inference_mode(inference):
        expected, found = operation(PLAIN.clone()), operation(cat)
    assert type(found) is type(expected) and found.dtype == expected.dtype
    assert np.array_equal(np.asarray(found), np.asarray(expected))


def test_the_vae_and_the_previews_of_the_host_accept_it(shapes, cat, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    with torch.inference_mode():
        encoded = [host_nodes.VAEEncode().encode(shapes[2], image)[0]["samples"] for image in (cat, PLAIN)]
        (shown,) = ui.PreviewImage(cat).as_dict()["images"]
    assert torch.equal(*encoded)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "temp" / shown["filename"])), WHOLE_CAT)


def test_shape_and_type_are_known_without_reading_pixels(cat, tmp_path):
    (tmp_path / "cat.png").unlink()
    assert cat.shape == (1, 300, 451, 3) and cat.size(1) == 300 and len(cat) == 1 and cat.ndim == cat.dim() == 4
    assert cat.dtype == torch.float32 and cat.device.type == "cpu" and not cat.requires_grad
    assert cat.numel() * cat.element_size() == cat.nbytes == 300 * 451 * 3 * 4
    with pytest.raises(ValueError, match="cat.png No such file"):
        cat.mean()


def test_an_in_place_write_is_kept_and_trained(cat):
    cat[0, :, :, 1] = 0
    assert cat.file is None and torch.equal(cat[..., 0], PLAIN[..., 0]) and not cat[..., 1].any()
    values = {"width": 256, "height": 256, "buckets_step": 64, "min_length": 128, "max_ratio": 2.0}
    values |= {"sub_image_num": 0, "mirroring": False, "disable_upscale": False, "repeats": 1}
    (image,), _, _ = BucketImages.execute([cat], [""], **{key: [value] for key, value in values.items()}).args
    assert not image.pixels[..., 1].any() and image.pixels[..., 0].any()


def test_it_has_the_fingerprint_of_its_pixels(cat):
    assert fingerprint({"image": [cat]}, {}, "1") == fingerprint({"image": [PLAIN]}, {}, "1")
    assert fingerprint({"image": [cat]}, {}, "1") != fingerprint({"image": [PLAIN * 0.5]}, {}, "1")


def test_an_error_in_another_node_names_the_file_that_has_changed(cat, tmp_path):
    save(tmp_path / "cat.png", WHOLE_CAT[:100])
    with pytest.raises(ValueError, match="cat.png has changed since it was loaded: run Load Image Folder again.$"):
        cat.clone()
