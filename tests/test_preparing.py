"""What a training encodes before its first step is counted on its node, and can be cancelled."""

from __future__ import annotations

import comfy.utils
import pytest
import torch
from comfy.model_management import InterruptProcessingException
from pack.nodes import host
from tiny_models import HEIGHT, WIDTH, TinyCLIP, load_model, load_vae

COUNT = 3


@pytest.fixture
def encode(tmp_path):
    """Encode images, or captions of which two are equal."""
    vae, clip = load_vae("SD3"), TinyCLIP("SD3")
    images = [torch.rand(HEIGHT, WIDTH, 3) for _ in range(COUNT)]
    encoder = host.HostTextEncoder(clip)
    model = load_model("SD3", tmp_path, False, {})
    return {
        "images": lambda: host.encode_images(vae, model, images),
        "captions": lambda: encoder.encode(["red", "green", "red", "blue"]),
    }


@pytest.mark.parametrize("what", ["images", "captions"])
def test_images_and_captions_are_counted_while_they_are_encoded(encode, monkeypatch, what):
    seen = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *_, **__: seen.append((value, total)))
    monkeypatch.setattr(comfy.utils, "PROGRESS_THROTTLE_MIN_INTERVAL", 0)
    encode[what]()
    assert seen == [(1, COUNT), (2, COUNT), (3, COUNT)]


@pytest.mark.parametrize("what", ["images", "captions"])
def test_encoding_can_be_cancelled_between_two_of_them(encode, monkeypatch, what):
    def cancel(*_, **__):
        raise InterruptProcessingException()

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", cancel)
    with pytest.raises(InterruptProcessingException):
        encode[what]()
