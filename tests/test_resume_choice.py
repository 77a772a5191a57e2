"""Going on from a LoRA: what is used of it, its training state or its weights, and who says so."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pack.nodes import kept_files
from pack.nodes.save_lora import SaveLoRA
from pack.trainer.config import NETWORK_TYPES, NetworkConfig, TrainingConfig
from pack.trainer.lora_file import STEP, TRAINING, WEIGHTS, LoRAWeights, load_lora
from pack.trainer.optimizer import OPTIMIZERS
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_host import TinyHost

CONSTANT = TrainingConfig(lr_scheduler="constant")
STILL = {"learning_rate": 1e-12, "settings": CONSTANT}  # a training that shows the weights it started from


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> TinyHost:
    return TinyHost(tmp_path_factory.mktemp("model"))


@pytest.fixture
def first(tiny, output_folder) -> LoRAWeights:
    """A LoRA of three steps of iLECO, with its training state on disk."""
    return tiny.train("iLECO", steps=3, settings=CONSTANT)[1]


def save(lora: dict[str, torch.Tensor], name: str = "mine", precision: str = "fp32", **inputs) -> Path:
    SaveLoRA.hidden = SimpleNamespace(prompt={}, extra_pnginfo=None)
    values = {"strength": 1.0, "overwrite": True, **inputs}
    return Path(SaveLoRA.execute(lora, name, precision, **values).args[0])


def edit(path: Path, change) -> Path:
    """Change the tensors of a file in another program, which keeps the metadata."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(change(load_file(path)), path, metadata)
    return path


def negate(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: -tensor if key.endswith("lora_up.weight") else tensor for key, tensor in tensors.items()}


def without_half(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    layers = sorted({key.partition(".")[0] for key in tensors})
    return {key: tensor for key, tensor in tensors.items() if key.partition(".")[0] in layers[::2]}


def resized(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Cut every layer to rank 2, as a resize script does."""
    cut = {
        "lora_up.weight": lambda up: up[:, :2],
        "lora_down.weight": lambda down: down[:2],
        "alpha": lambda alpha: alpha / 2,
    }
    return {key: cut[key.partition(".")[2]](tensor).contiguous() for key, tensor in tensors.items()}


def moved(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Exchange two layers of one size: the same bytes in the same order under other names."""
    first, second = "lora_unet_joint_blocks_0_context_block_attn_qkv", "lora_unet_joint_blocks_0_x_block_attn_qkv"
    assert f"{first}.alpha" in tensors and f"{second}.alpha" in tensors
    names = {first: second, second: first}
    return {
        f"{names.get(key.partition('.')[0], key.partition('.')[0])}.{key.partition('.')[2]}": t
        for key, t in tensors.items()
    }


@pytest.mark.parametrize("change", [negate, resized, without_half, moved])
def test_a_file_that_was_edited_counts_itself(tiny, first, change, caplog):
    path = edit(save(first), change)
    caplog.set_level(logging.INFO)
    _, lora, loss = tiny.train("iLECO", steps=4, lora=load_lora(path), network=None, **STILL)
    assert len(loss["loss"]) == 4
    edited = load_file(path)
    assert lora.keys() == edited.keys()
    for key in edited:
        torch.testing.assert_close(lora[key], edited[key], rtol=1e-4, atol=1e-8)
    assert (
        "starts from the LoRA's weights, because its weights were changed after this pack had saved them" in caplog.text
    )


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_file_that_was_only_saved_resumes(tiny, first, precision, caplog):
    caplog.set_level(logging.INFO)
    _, lora, loss = tiny.train("iLECO", steps=5, lora=load_lora(save(first, precision=precision)), settings=CONSTANT)
    _, straight, losses = tiny.train("iLECO", steps=5, settings=CONSTANT)
    assert loss["loss"] == losses["loss"] and all(torch.equal(lora[key], straight[key]) for key in straight)
    assert "resumes the LoRA after step 3, with its training state: steps, 5, is the total" in caplog.text


def test_an_edit_stays_an_edit_when_save_lora_saves_it_again(tiny, first):
    again = save(load_lora(edit(save(first), negate)), "again")
    assert TRAINING not in load_lora(again).metadata
    _, _, loss = tiny.train("iLECO", steps=4, lora=load_lora(again), **STILL)
    assert len(loss["loss"]) == 4


@pytest.mark.parametrize("is_edited, steps", [(False, [4]), (True, [1, 2, 3, 4])])
def test_a_file_of_the_first_version_has_no_digest_and_is_compared_with_the_kept_lora(
    tiny, first, is_edited, steps, monkeypatch
):
    path = save(first, precision="fp16")
    with safe_open(path, "pt") as file:
        metadata = {key: value for key, value in file.metadata().items() if key != WEIGHTS}
    save_file((negate if is_edited else dict)(load_file(path)), path, metadata)
    done = []
    monkeypatch.setattr("pack.nodes.progress.TrainingProgress.report", lambda _, step: done.append(step.number))
    tiny.train("iLECO", steps=4, lora=load_lora(path), **STILL)
    assert done == steps


def test_a_lora_that_another_node_changed_on_its_way_counts_itself(tiny, first):
    changed = LoRAWeights(negate(first), first.metadata)
    _, lora, loss = tiny.train("iLECO", steps=4, lora=changed, **STILL)
    key = next(key for key in first if key.endswith("lora_up.weight"))
    torch.testing.assert_close(lora[key], -first[key], rtol=1e-4, atol=1e-8)


OTHERS = {
    "method": ("copy machine", {}, "it was trained by the method iLECO and this is copy machine"),
    "optimizer": ("iLECO", {"settings": TrainingConfig(optimizer="Lion")}, "with the optimizer AdamW and this is Lion"),
    "alpha": (
        "iLECO",
        {"network": NetworkConfig(rank=4, alpha=1)},
        "of other layers, ranks, alphas, learning rates or optimizer_settings",
    ),
}


@pytest.mark.parametrize("method, inputs, reason", OTHERS.values(), ids=OTHERS)
def test_another_method_or_optimizer_is_a_new_training_from_the_weights(
    tiny, first, method, inputs, reason, monkeypatch, caplog
):
    done = []
    monkeypatch.setattr("pack.nodes.progress.TrainingProgress.report", lambda _, step: done.append(step.number))
    caplog.set_level(logging.INFO)
    tiny.train(method, steps=4, lora=first, **inputs)
    assert done == [1, 2, 3, 4] and reason in caplog.text and "new training of 4 steps" in caplog.text


@pytest.mark.parametrize(
    "optimizer", [name for name, entry in OPTIMIZERS.items() if "bitsandbytes" not in entry.module]
)
def test_a_lora_of_any_optimizer_resumes(tiny, optimizer, caplog):
    rate = 1.0 if OPTIMIZERS[optimizer].finds_rate else 1e-3
    wired = {"settings": replace(CONSTANT, optimizer=optimizer), "learning_rate": rate}
    lora = tiny.train("iLECO", steps=6, **wired)[1]
    caplog.set_level(logging.INFO)
    tiny.train("iLECO", steps=7, lora=lora, network=None, **wired)
    assert "Training resumes the LoRA after step 6" in caplog.text


@pytest.mark.parametrize("rank", [2, 64], ids=["small matrices", "full matrices"])
@pytest.mark.parametrize("kind", NETWORK_TYPES)
def test_a_lora_of_any_type_resumes_with_its_own_network(tiny, kind, rank, caplog):
    network = NetworkConfig(kind, rank, alpha=1)
    lora = tiny.train("iLECO", steps=2, settings=CONSTANT, network=network)[1]
    caplog.set_level(logging.INFO)
    resumed = tiny.train("iLECO", steps=3, settings=CONSTANT, network=None, lora=lora)[1]
    assert "Training resumes the LoRA after step 2" in caplog.text
    assert resumed.metadata["ss_network_dim"] == str(rank)
    assert all(torch.equal(resumed[key], lora[key]) for key in lora if key.endswith(".alpha"))


@pytest.mark.parametrize("optimizer, setting", [("AdamW", "amsgrad=True"), ("CAME", "ams_bound=True")])
def test_settings_for_which_the_state_lacks_something_are_a_new_training(tiny, optimizer, setting, caplog):
    plain, other = (replace(CONSTANT, optimizer=optimizer, optimizer_settings=text) for text in ("", setting))
    caplog.set_level(logging.INFO)
    lora = tiny.train("iLECO", steps=3, settings=plain)[1]
    trained = tiny.train("iLECO", steps=5, settings=other, lora=lora)[1]
    assert "its training state is of other layers, ranks, alphas, learning rates or optimizer_settings" in caplog.text
    assert trained.metadata[STEP] == "5"
    caplog.clear()
    tiny.train("iLECO", steps=7, settings=plain, lora=trained)  # what is there and not needed is no obstacle
    assert "Training resumes the LoRA after step 5" in caplog.text


def test_weights_only_is_a_new_training_although_the_state_is_on_disk(tiny, first, monkeypatch):
    done = []
    monkeypatch.setattr("pack.nodes.progress.TrainingProgress.report", lambda _, step: done.append(step.number))
    tiny.train("iLECO", steps=2, lora=first, settings=CONSTANT, resume="weights only")
    assert done == [1, 2]
    tiny.train("iLECO", steps=4, lora=first, settings=CONSTANT, resume="resume if possible")
    assert done == [1, 2, 4]


def test_resume_only_refuses_to_start_again_from_the_weights(tiny, first):
    for path in list(kept_files.find_kept("*.state")):
        path.unlink()
    with pytest.raises(
        ValueError, match="cannot be resumed, because its training state is no longer on disk: set resume to"
    ):
        tiny.train("iLECO", steps=4, lora=first, settings=CONSTANT, resume="resume only")


def test_a_training_that_was_resumed_is_not_trained_again_when_the_state_is_gone(tiny, first, monkeypatch):
    tiny.train("iLECO", steps=4, lora=first, settings=CONSTANT)
    for path in list(kept_files.find_kept("*.state")):
        path.unlink()
    done = []
    monkeypatch.setattr("pack.nodes.progress.TrainingProgress.report", lambda _, step: done.append(step.number))
    tiny.train("iLECO", steps=4, lora=first, settings=CONSTANT)
    assert done == []


@pytest.mark.parametrize("resume, origin", [("resume if possible", "state"), ("weights only", "weights")])
def test_the_node_says_what_it_started_from(tiny, first, resume, origin, monkeypatch):
    from pack.nodes import progress

    sent = []
    monkeypatch.setattr(progress, "_remember", sent.append)
    tiny.train("iLECO", steps=4, lora=first, settings=CONSTANT, resume=resume)
    assert sent[-1]["origin"] == origin and sent[-1]["resumed_at"] == (3 if origin == "state" else 0)
