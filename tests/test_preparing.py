"""What a training does before its first step is said on its node, counted, and can be cancelled."""

from __future__ import annotations

from types import SimpleNamespace

import comfy.utils
import pytest
import torch
from comfy.model_management import InterruptProcessingException
from pack.nodes import host, page_events, preparing
from pack.nodes.host import preparation
from pack.nodes.preview_settings import PreviewSettings
from pack.nodes.train_ileco import TrainILECO
from pack.nodes.train_lora import TrainLoRA
from pack.trainer.dataset.training_image import TrainingImage
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


NODE = SimpleNamespace(hidden=SimpleNamespace(unique_id="5", extra_pnginfo={"workflow": {"id": "w"}}))


@pytest.fixture
def sent(monkeypatch) -> list[tuple[str, dict]]:
    """What is sent to the page: (event, message); every count, however quick."""
    sent = []
    monkeypatch.setattr(page_events, "send", lambda event, message: sent.append((event, message)))
    monkeypatch.setattr(page_events, "SECONDS_BETWEEN_EVENTS", 0)
    return sent


def stages(sent) -> list[str | None]:
    """Return the stages that were shown, each once in a row."""
    shown = [message["stage"] for event, message in sent if event == preparing.EVENT]
    return [stage for stage, before in zip(shown, [0, *shown]) if stage != before]


@pytest.mark.parametrize("what", ["images", "captions"])
def test_the_page_is_sent_how_many_are_encoded(encode, sent, what):
    with preparing.shown(NODE):
        encode[what]()
        assert preparing.current() == sent[-1][1]
    assert [(message["stage"], message.get("done"), message.get("total")) for _, message in sent] == [
        *((what, done, COUNT) for done in range(COUNT)),
        (None, None, None),
    ]
    assert all((message["workflow"], message["node"]) == ("w", "5") for _, message in sent)
    assert preparing.current() is None


def test_counts_in_quick_succession_are_left_out_but_no_stage(sent, monkeypatch):
    monkeypatch.setattr(page_events, "SECONDS_BETWEEN_EVENTS", 3600)
    with preparing.shown(NODE):
        for done in range(50):
            preparation.announce(preparation.IMAGES, done, 50)
        preparation.announce(preparation.MODEL)
    assert stages(sent) == ["images", "model", None] and len(sent) == 3


def test_nothing_is_sent_outside_of_a_training(encode, sent):
    """Other nodes encode prompts, too, and API clients run nodes without a page."""
    encode["captions"]()
    assert sent == []


def test_a_preparation_that_fails_is_no_longer_shown(sent):
    with pytest.raises(ValueError), preparing.shown(NODE):
        preparation.announce(preparation.IMAGES, 1, 3)
        raise ValueError
    assert sent[-1][1]["stage"] is None and preparing.current() is None


@pytest.fixture
def run(shapes, monkeypatch):
    """Run a training node as the executor does: 2 steps on 64x64 pixels."""

    def run(node, **inputs):
        hidden = SimpleNamespace(unique_id="5", prompt={}, extra_pnginfo=None)
        monkeypatch.setattr(node, "hidden", hidden, raising=False)
        with torch.inference_mode():
            return node.execute(model=shapes[0], steps=2, batch_size=1, learning_rate=1e-3, seed=1, **inputs)

    return run


def test_a_training_on_images_says_each_of_its_stages_in_order(run, shapes, sent):
    images = [TrainingImage(torch.rand(64, 64, 3), f"{n}", None, f"{n}", (64, 64)) for n in range(2)]
    with torch.inference_mode():
        prompt = shapes[1].encode_from_tokens_scheduled(shapes[1].tokenize("a red circle"))
    sampling = {"steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "seed": 1}
    (preview,) = PreviewSettings.execute(
        positive=prompt, negative=prompt, vae=shapes[2], every=2, width=64, height=64, **sampling
    ).args
    run(
        TrainLoRA,
        clip=shapes[1],
        vae=shapes[2],
        training_images=images,
        validation_images=images,
        validate_every=2,
        preview=preview,
    )
    before = ["results", "captions", "images", "captions", "images", "model", "network", "first_step"]
    assert stages(sent) == [*before, "validation", "samples"]
    events = [event for event, _ in sent]
    assert events.index("traintrain.step") > events.index(preparing.EVENT)
    assert events[-1] == "traintrain.end" and preparing.current() is None


def test_a_training_from_the_closed_form_says_so_and_a_finished_one_only_looks_for_its_result(run, shapes, sent):
    with torch.inference_mode():
        prompts = [shapes[1].encode_from_tokens_scheduled(shapes[1].tokenize(text)) for text in ("red", "blue")]
    inputs = dict(zip(("original", "target"), prompts), width=64, height=64, denoise_steps=0, guidance=0.0)
    run(TrainILECO, **inputs, start="closed form")
    assert stages(sent) == ["results", "model", "network", "closed_form", "first_step"]
    sent.clear()
    run(TrainILECO, **inputs, start="closed form")
    assert stages(sent) == ["results"] and sent[-1][0] == "traintrain.end"
