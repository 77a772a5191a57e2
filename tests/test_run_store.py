"""Trainings on disk: no training runs twice, and none is lost."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from comfy.model_management import InterruptProcessingException
from pack.nodes import host
from pack.nodes.fingerprint import fingerprint
from pack.nodes.save_lora import SaveLoRA
from pack.nodes.train_lora import TrainLoRA
from pack.tools.shapes.scenes import Scene
from pack.tools.shapes.train_shapes import pixels
from pack.trainer.config import NetworkConfig, TrainingConfig
from pack.trainer.dataset.training_image import TrainingImage
from pack.trainer.lora_file import load_lora, save_lora

PROMPT = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "shapes.safetensors"}},
    "2": {"class_type": "TrainTrain_TrainLoRA", "inputs": {"model": ["1", 0], "steps": 6}},
    "3": {
        "class_type": "TrainTrain_SaveLoRA",
        "inputs": {"lora": ["2", 2], "name": "style/mine", "save_precision": "bf16"},
    },
}


@pytest.fixture
def images() -> list[TrainingImage]:
    pictures = pixels([Scene("red", "circle", "white").draw(), Scene("blue", "square", "gray").draw()]).movedim(1, -1)
    return [TrainingImage(p, c, None, c, (64, 64)) for p, c in zip(pictures, ["red circle", "blue square"])]


@pytest.fixture
def train(shapes, images, monkeypatch):
    """Run Train LoRA as the executor does; `stop_at` cancels it after a step. Counts the steps it takes."""
    steps = []

    def run(stop_at=None, node=TrainLoRA, **inputs):
        from pack.nodes import training_node

        class Progress:
            def __init__(self, *_):
                pass

            def begin(self, session):
                pass

            def recall(self, history):
                pass

            def shown(self):
                return nullcontext()

            def show(self, step, samples):
                pass

            def validate(self, step, loss):
                pass

            def report(self, step):
                steps.append(step.number)
                if step.number == stop_at:
                    raise InterruptProcessingException

        monkeypatch.setattr(training_node, "TrainingProgress", Progress)
        monkeypatch.setattr(node, "hidden", SimpleNamespace(unique_id="2", prompt=PROMPT), raising=False)
        model, clip, vae = shapes
        values = {"steps": 6, "batch_size": 2, "learning_rate": 1e-3, "seed": 1, "training_images": images}
        with torch.inference_mode():
            return node.execute(model=model, clip=clip, vae=vae, **{**values, **inputs}).args

    run.steps = steps
    return run


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_the_same_training_is_loaded_from_disk(train, output_folder):
    *_, lora, loss = train()
    assert train.steps == [1, 2, 3, 4, 5, 6]
    model, clip, again, loss_again = train()
    assert train.steps == [1, 2, 3, 4, 5, 6]  # no step more
    assert same(lora, again) and loss == loss_again and len(model.patches) == sum("alpha" in key for key in lora)
    *_, other, _ = train(seed=2)
    assert len(train.steps) == 12 and not same(lora, other)
    assert len(list((output_folder / "traintrain").glob("mine_*.safetensors"))) == 2


def test_the_lora_says_what_it_was_trained_on(train):
    *_, lora, _ = train(steps=1)
    assert lora.metadata["ss_tag_frequency"] == '{"1_red circle": {"red circle": 1, "blue square": 1}}'


def test_another_image_or_caption_is_another_training(train, images):
    train()
    images[0].pixels.mul_(0.5)
    train()
    assert len(train.steps) == 12


def test_a_damaged_result_is_trained_again(train, output_folder):
    train()
    (file,) = (output_folder / "traintrain").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-9])
    train()
    assert len(train.steps) == 12


def test_a_cancelled_training_resumes_as_if_it_had_not_stopped(train, output_folder):
    with pytest.raises(InterruptProcessingException):
        train(stop_at=3)
    (kept,) = (output_folder / "traintrain").glob("mine_*.safetensors")
    assert load_lora(kept).metadata["traintrain_step"] == "3"
    *_, lora, loss = train()
    assert train.steps == [1, 2, 3, 4, 5, 6]
    for file in (output_folder / "traintrain").iterdir():
        file.unlink()
    *_, straight, loss_straight = train()
    assert same(lora, straight) and loss == loss_straight


def test_a_connected_lora_resumes_with_its_state_and_its_own_network(train, shapes):
    settings = TrainingConfig(lr_scheduler="constant")
    network = NetworkConfig(network_type="c3lier", rank=3, alpha=2, conv_rank=2)
    *_, straight, losses = train(settings=settings, network=network, steps=6)
    *_, first, _ = train(settings=settings, network=network, steps=4)
    train.steps.clear()
    *_, second, losses_second = train(settings=settings, lora=first, steps=6)
    assert train.steps == [5, 6]
    assert same(straight, second) and losses == losses_second
    assert second.metadata["ss_network_dim"] == "3" and '"conv_dim": 2' in second.metadata["ss_network_args"]
    with pytest.raises(ValueError, match="trained for 4 steps and steps is 4"):
        train(settings=settings, lora=first, steps=4)
    with pytest.raises(ValueError, match="58 layers and LoRA Network selects 48"):
        train(settings=settings, lora=first, network=NetworkConfig(rank=3), steps=6)


def test_a_lora_without_a_state_provides_the_initial_weights(train, tmp_path, output_folder):
    *_, lora, _ = train(network=NetworkConfig(rank=5, alpha=2.5))
    save_lora(tmp_path / "a.safetensors", lora, "fp32", 1.0, {})
    train.steps.clear()
    *_, on, _ = train(lora=load_lora(tmp_path / "a.safetensors"), learning_rate=1e-12)
    assert train.steps == [1, 2, 3, 4, 5, 6]
    assert on.keys() == lora.keys() and on.metadata["ss_network_dim"] == "5"
    for key in lora:
        torch.testing.assert_close(on[key], lora[key], rtol=1e-5, atol=1e-8)


def test_save_every_writes_the_steps_beside_what_save_lora_will_write(train, output_folder):
    *_, lora, _ = train(settings=TrainingConfig(save_every=2))
    files = sorted(path.name for path in (output_folder / "loras" / "style").iterdir())
    assert files == ["mine_2steps.safetensors", "mine_4steps.safetensors"]
    second = load_lora(output_folder / "loras" / "style" / files[0])
    assert second.metadata["traintrain_step"] == "2"
    assert second.keys() == lora.keys() and {t.dtype for t in second.values()} == {torch.bfloat16}


@pytest.mark.parametrize("strength, goes_on", [(1.0, True), (2.0, False)])
def test_a_saved_lora_finds_its_state_unless_it_was_multiplied(train, monkeypatch, strength, goes_on):
    *_, lora, _ = train(settings=TrainingConfig(lr_scheduler="constant"), steps=2)
    monkeypatch.setattr(SaveLoRA, "hidden", SimpleNamespace(prompt=PROMPT, extra_pnginfo={}), raising=False)
    path = Path(SaveLoRA.execute(lora, "mine", "fp16", strength, False).args[0])
    train.steps.clear()
    train(settings=TrainingConfig(lr_scheduler="constant"), lora=load_lora(path), steps=4)
    assert train.steps == ([3, 4] if goes_on else [1, 2, 3, 4])


def test_training_leaves_model_and_clip_outputs_that_sample(train, shapes):
    model, clip, lora, _ = train()
    assert model.model is shapes[0].model and clip is not shapes[1]
    assert same(lora, lora) and not host.has_text_encoder(lora)


def test_a_prompt_has_the_same_fingerprint_after_a_restart():
    """SD1's files have no text projection, so its pooled output is made of whatever stood in the memory."""
    tokens = torch.ones(1, 77, 768)
    runs = [fingerprint({"original": [[tokens, {"pooled_output": torch.full((1, 768), f)}]]}, {}, "2") for f in (0, 1)]
    assert runs[0] == runs[1] != fingerprint({"original": [[tokens * 2, {}]]}, {}, "2")


def test_a_fingerprint_depends_on_what_affects_the_result():
    given = {"steps": 3, "image": torch.zeros(2, 2), "model": object()}  # a MODEL of an unknown loader
    base = fingerprint(given, PROMPT, "2")
    titled = {id: {**node, "_meta": {"title": "x"}} for id, node in PROMPT.items()}
    assert fingerprint(given, titled, "2") == base
    renumbered = {"7": PROMPT["1"], "9": {**PROMPT["2"], "inputs": {**PROMPT["2"]["inputs"], "model": ["7", 0]}}}
    assert fingerprint(given, renumbered, "9") == base
    watched = {**PROMPT, "2": {**PROMPT["2"], "inputs": {**PROMPT["2"]["inputs"], "preview": ["4", 0]}}}
    assert fingerprint(given, watched, "2") == base
    other_model = {**PROMPT, "1": {**PROMPT["1"], "inputs": {"ckpt_name": "other.safetensors"}}}
    changed = [
        fingerprint({**given, "steps": 4}, PROMPT, "2"),
        fingerprint({**given, "image": torch.ones(2, 2)}, PROMPT, "2"),
        fingerprint({**given, "image": torch.zeros(4, 1)}, PROMPT, "2"),
        fingerprint(given, other_model, "2"),
        fingerprint({**given, "network": NetworkConfig()}, PROMPT, "2"),
        fingerprint({**given, "network": NetworkConfig(rank=8)}, PROMPT, "2"),
    ]
    assert len({base, *changed}) == 1 + len(changed)
