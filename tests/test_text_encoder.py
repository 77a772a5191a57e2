"""The text encoder in training: gradients through the host's CLIP, and a LoRA that the host puts on it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from pack.nodes import host
from pack.nodes.host import text_encoder
from pack.nodes.train_ileco import TrainILECO
from pack.nodes.train_lora import TrainLoRA
from pack.tools.shapes.scenes import Scene
from pack.tools.shapes.train_shapes import pixels
from pack.trainer.config import NetworkConfig, TrainingConfig
from pack.trainer.dataset.training_image import TrainingImage

BOTH, TEXT = NetworkConfig(rank=2, blocks="all, BASE"), NetworkConfig(rank=2, blocks="BASE")


@pytest.fixture
def train(shapes, monkeypatch):
    for node in (TrainLoRA, TrainILECO):
        monkeypatch.setattr(node, "hidden", SimpleNamespace(unique_id="1", prompt={}), raising=False)
    pictures = pixels([Scene("red", "circle", "white").draw(), Scene("blue", "square", "gray").draw()]).movedim(1, -1)
    images = [TrainingImage(p, c, None, c, (64, 64)) for p, c in zip(pictures, ["red circle", "blue square"])]

    def run(**inputs):
        model, clip, vae = shapes
        values = {"steps": 2, "batch_size": 2, "learning_rate": 1e-3, "seed": 1, "training_images": images, **inputs}
        with torch.inference_mode():
            return TrainLoRA.execute(model=model, clip=clip, vae=vae, **values).args

    return run


def all_bytes(clip) -> dict[str, torch.Tensor]:
    """Of all parameters: an SD1 file has no text projection, so that is uninitialized memory, maybe NaN."""
    state = clip.cond_stage_model.state_dict()
    return {key: tensor.flatten().view(torch.uint8).clone() for key, tensor in state.items()}


def encode(clip, text):
    with torch.inference_mode():
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))[0][0].clone()


def test_base_trains_the_text_encoder_and_leaves_it_as_it_was(shapes, train):
    clip = shapes[1]
    before, learning = all_bytes(clip), [p.requires_grad for p in clip.cond_stage_model.parameters()]
    prompt = encode(clip, "a red circle")
    model, trained, lora, loss = train(network=BOTH)
    text = {key for key in lora if key.startswith("lora_te_text_model_encoder_layers_")}
    assert sum(key.endswith(".alpha") for key in text) == 12 * 6  # q, k, v, out, fc1 and fc2 of each layer
    assert all(lora[key].any() for key in text if key.endswith("lora_up.weight") and "layers_11" not in key)
    assert len(model.patches) == 48 and len(trained.patcher.patches) == 12 * 6
    assert (encode(trained, "a red circle") - prompt).abs().max() > 1e-4
    assert torch.equal(encode(clip, "a red circle"), prompt)
    after = all_bytes(clip)
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    assert not any(module._forward_hooks for module in clip.cond_stage_model.modules())
    assert [parameter.requires_grad for parameter in clip.cond_stage_model.parameters()] == learning


def test_base_alone_trains_nothing_else_and_without_it_the_text_encoder_stays(train):
    model, clip, lora, _ = train(network=TEXT)
    assert all(key.startswith("lora_te_") for key in lora) and not model.patches and clip.patcher.patches
    model, clip, lora, _ = train(network=NetworkConfig(rank=2, blocks="all, -BASE"))
    assert not host.has_text_encoder(lora) and not clip.patcher.patches


def test_the_encoder_in_training_encodes_as_the_host_does(shapes):
    clip = shapes[1]
    texts = ["a red circle", "a (blue:1.4) square"]
    expected = host.HostTextEncoder(clip).encode(texts)
    with host.open_model(shapes[0], clip=clip), torch.no_grad():
        encoded = host.TrainedTextEncoder(clip).encode(texts)
    for ours, theirs in zip(encoded, expected):
        torch.testing.assert_close(ours[0].cpu(), theirs[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            ours[1]["pooled_output"].cpu(), theirs[1]["pooled_output"], rtol=1e-4, atol=1e-4, equal_nan=True
        )


def test_a_caption_of_several_images_is_encoded_once(shapes):
    model, clip, _ = shapes
    passes = []
    handle = clip.cond_stage_model.clip_l.transformer.register_forward_hook(lambda *_: passes.append(1))
    try:
        with host.open_model(model, clip=clip):
            first, other, again = host.TrainedTextEncoder(clip).encode(["red", "blue", "red"])
    finally:
        handle.remove()
    assert len(passes) == 2 and again[0] is first[0] and other[0] is not first[0]


def test_every_step_has_the_prompt_as_the_encoder_gives_it_then(shapes):
    model, clip, _ = shapes
    tensor, extra = host.HostTextEncoder(clip).encode(["a red circle"])[0]
    with host.open_model(model, clip=clip) as (denoiser, _):
        prompt = [None, extra]  # one object in both steps, as a freed one's address may come again
        for factor in (1.0, 0.5):
            prompt[0] = (tensor * factor).requires_grad_()
            x_t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
            denoiser.predict(x_t, torch.tensor([2.0]), [prompt]).square().sum().backward()
            assert prompt[0].grad.any()


def test_the_text_encoder_has_its_own_learning_rate(train):
    slow = TrainingConfig(text_encoder_learning_rate=1e-9)
    moved = lambda lora, start: max(lora[key].abs().max() for key in lora if key.startswith(start) and "up" in key)  # noqa: E731
    *_, even, _ = train(network=BOTH)
    *_, uneven, _ = train(network=BOTH, settings=slow)
    assert moved(uneven, "lora_te") < 1e-7 < 1e-4 < moved(even, "lora_te")
    assert moved(uneven, "lora_unet") > 1e-4


def test_a_lora_with_text_encoder_resumes_with_it(train):
    settings = TrainingConfig(lr_scheduler="constant")
    *_, straight, _ = train(network=BOTH, settings=settings, steps=2)
    *_, first, _ = train(network=BOTH, settings=settings, steps=1)
    *_, second, _ = train(lora=first, settings=settings, steps=2)
    assert straight.keys() == second.keys() and all(torch.equal(straight[key], second[key]) for key in straight)


def test_a_text_encoder_in_training_gets_fresh_orders_and_the_empty_prompt(train, monkeypatch):
    asked, tokenize = [], text_encoder.tokenize
    monkeypatch.setattr(
        text_encoder, "tokenize", lambda clip, caption: asked.append(caption) or tokenize(clip, caption)
    )
    settings = TrainingConfig(lr_scheduler="constant")
    pictures = [TrainingImage(torch.rand(64, 64, 3), "sks, a, b, c, d", None, "a", (64, 64))]
    varied = {"shuffle_tags": True, "caption_dropout": 0.5, "training_images": pictures, "batch_size": 1}
    *_, straight, _ = train(network=BOTH, settings=settings, steps=6, **varied)
    assert "" in asked and len({text for text in asked if text.startswith("sks, ")}) > 1
    *_, first, _ = train(network=BOTH, settings=settings, steps=4, **varied)
    *_, second, _ = train(lora=first, settings=settings, steps=6, **varied)
    assert all(torch.equal(straight[key], second[key]) for key in straight)


def test_settings_without_effect_are_refused(shapes, train):
    with pytest.raises(ValueError, match="text_encoder_learning_rate is set but the text encoder is not trained"):
        train(settings=TrainingConfig(text_encoder_learning_rate=1e-4))
    clip = shapes[1]
    with torch.inference_mode():
        prompt = clip.encode_from_tokens_scheduled(clip.tokenize("red"))
    values = {"width": 64, "height": 64, "denoise_steps": 0, "guidance": 0.0, "steps": 2, "batch_size": 1}
    with pytest.raises(ValueError, match="Only Train LoRA can train BASE, the text encoder"):
        TrainILECO.execute(
            model=shapes[0], original=prompt, target=prompt, network=BOTH, learning_rate=1e-3, seed=0, **values
        )
