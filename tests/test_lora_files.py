"""LoRA files: whole or not there, read by others, never pickle."""

from __future__ import annotations

import json

import pytest
import torch
from pack.trainer.config import NetworkConfig, TrainingConfig
from pack.trainer.files import LoRAWeights, file_metadata, load_lora, save_lora, training_metadata
from safetensors.torch import load_file, save_file

KEY = "lora_unet_middle_block_1_proj_in"


def a_lora(scale: float = 1.0) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        f"{KEY}.lora_up.weight": torch.randn(6, 2) * scale,
        f"{KEY}.lora_down.weight": torch.randn(2, 5) * scale,
        f"{KEY}.alpha": torch.tensor(1.0),
    }


def effect(lora: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the LoRA adds to the layer's weight, by the formula of the file format."""
    down = lora[f"{KEY}.lora_down.weight"].float()
    return lora[f"{KEY}.lora_up.weight"].float() @ down * lora[f"{KEY}.alpha"].item() / len(down)


def test_a_file_gives_back_what_was_saved(tmp_path):
    save_lora(tmp_path / "a.safetensors", a_lora(), "fp32", 1.0, {"ss_seed": "3"})
    loaded = load_lora(tmp_path / "a.safetensors")
    assert loaded.metadata == {"ss_seed": "3"}
    assert loaded.keys() == a_lora().keys() and all(
        torch.equal(loaded[key], tensor) for key, tensor in a_lora().items()
    )


@pytest.mark.parametrize(
    "precision, dtype", [("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
def test_the_precision_is_the_one_asked_for(tmp_path, precision, dtype):
    save_lora(tmp_path / "a.safetensors", a_lora(), precision, 1.0, {})
    assert {tensor.dtype for tensor in load_file(tmp_path / "a.safetensors").values()} == {dtype}


@pytest.mark.parametrize("strength", [2.0, -0.5, 0.0])
def test_the_strength_multiplies_the_effect(tmp_path, strength):
    save_lora(tmp_path / "a.safetensors", a_lora(), "fp32", strength, {})
    torch.testing.assert_close(effect(load_lora(tmp_path / "a.safetensors")), effect(a_lora()) * strength)


def test_values_that_the_precision_cannot_hold_are_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match="fp16 cannot hold"):
        save_lora(tmp_path / "a.safetensors", a_lora(scale=1e6), "fp16", 1.0, {})
    assert not list(tmp_path.iterdir())


def test_a_save_that_fails_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_lora(path, a_lora(), "fp32", 1.0, {})
    before = path.read_bytes()

    def fill_the_disk(tensors, part, metadata):
        part.write_bytes(b"half a fi")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pack.trainer.files.save_file", fill_the_disk)
    with pytest.raises(OSError, match="No space"):
        save_lora(path, a_lora(2.0), "fp32", 1.0, {})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "not a whole safetensors file"),
        (b"\x80\x02}q\x00.", "not a whole safetensors file"),
        (b"x" * 5000, "not a whole safetensors file"),
    ],
)
def test_a_file_that_is_no_lora_is_named(tmp_path, content, message):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"broken.safetensors is {message}"):
        load_lora(path)


def test_a_truncated_file_is_named(tmp_path):
    path = tmp_path / "cut.safetensors"
    save_file(a_lora(), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="cut.safetensors is not a whole"):
        load_lora(path)


def test_the_metadata_says_how_it_was_trained_under_the_names_others_read():
    training = training_metadata(
        NetworkConfig(rank=4, alpha=2), TrainingConfig(steps=30, learning_rate=5e-4, seed=9), "sd_v1", started=1.5
    )
    metadata = file_metadata(
        LoRAWeights(a_lora(), training),
        "purple_star",
        {"prompt": {"1": {"class_type": "X"}}, "workflow": {"nodes": []}},
    )
    expected = {
        "ss_network_dim": "4",
        "ss_network_alpha": "2",
        "ss_max_train_steps": "30",
        "ss_learning_rate": "0.0005",
        "ss_seed": "9",
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "ss_output_name": "purple_star",
        "modelspec.title": "purple_star",
    }
    assert {key: metadata.get(key) for key in expected} == expected
    assert (
        json.loads(metadata["workflow"]) == {"nodes": []} and json.loads(metadata["prompt"])["1"]["class_type"] == "X"
    )
    assert all(isinstance(value, str) for value in metadata.values())


def test_weights_of_any_dict_are_a_lora_without_metadata():
    assert file_metadata(a_lora(), "x", {})["ss_output_name"] == "x"
