"""LoRA files: whole or not there, read by others, never pickle."""

from __future__ import annotations

import json

import pytest
import torch
from pack.trainer.config import NetworkConfig, TrainingConfig
from pack.trainer.lora_file import LoRAWeights, load_lora, save_lora
from pack.trainer.lora_metadata import file_metadata, tag_frequency, training_metadata
from pack.trainer.schedule import SCHEDULES
from safetensors.torch import load_file, save_file

KEY = "lora_unet_middle_block_1_proj_in"
HASHES = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")
TEXT_KEY = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"


def a_lora(scale: float = 1.0, key: str = KEY) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        f"{key}.lora_up.weight": torch.randn(6, 2) * scale,
        f"{key}.lora_down.weight": torch.randn(2, 5) * scale,
        f"{key}.alpha": torch.tensor(1.0),
    }


def effect(lora: dict[str, torch.Tensor], key: str = KEY) -> torch.Tensor:
    """What the LoRA adds to the layer's weight, by the formula of the file format."""
    down = lora[f"{key}.lora_down.weight"].float()
    return lora[f"{key}.lora_up.weight"].float() @ down * lora[f"{key}.alpha"].item() / len(down)


def test_a_file_gives_back_what_was_saved(tmp_path):
    save_lora(tmp_path / "a.safetensors", a_lora(), "fp32", 1.0, {"ss_seed": "3"})
    loaded = load_lora(tmp_path / "a.safetensors")
    assert loaded.metadata["ss_seed"] == "3" and set(loaded.metadata) == {"ss_seed", *HASHES}
    assert loaded.keys() == a_lora().keys() and all(
        torch.equal(loaded[key], tensor) for key, tensor in a_lora().items()
    )


@pytest.mark.parametrize(
    "precision, dtype", [("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
def test_the_precision_is_the_one_asked_for(tmp_path, precision, dtype):
    save_lora(tmp_path / "a.safetensors", a_lora(), precision, 1.0, {})
    assert {tensor.dtype for tensor in load_file(tmp_path / "a.safetensors").values()} == {dtype}


@pytest.mark.parametrize("key", [KEY, TEXT_KEY])
@pytest.mark.parametrize("strength", [2.0, -0.5, 0.0])
def test_the_strength_multiplies_the_effect(tmp_path, strength, key):
    save_lora(tmp_path / "a.safetensors", a_lora(key=key), "fp32", strength, {})
    saved = load_lora(tmp_path / "a.safetensors")
    torch.testing.assert_close(effect(saved, key), effect(a_lora(key=key), key) * strength)


def test_weights_that_cannot_be_scaled_are_refused_and_nothing_is_written(tmp_path):
    dora = {**a_lora(), f"{KEY}.dora_scale": torch.ones(6, 1)}
    with pytest.raises(ValueError, match="dora_scale.*strength 1"):
        save_lora(tmp_path / "a.safetensors", dora, "fp32", 2.0, {})
    assert not list(tmp_path.iterdir())
    save_lora(tmp_path / "a.safetensors", dora, "fp32", 1.0, {})
    assert load_lora(tmp_path / "a.safetensors").keys() == dora.keys()


def test_integers_stay_integers(tmp_path):
    shape = torch.tensor([3073, 128])  # bf16 has no 3073
    save_lora(tmp_path / "a.safetensors", {**a_lora(), f"{KEY}.reshape_weight": shape}, "bf16", 2.0, {})
    saved = load_lora(tmp_path / "a.safetensors")[f"{KEY}.reshape_weight"]
    assert saved.dtype == shape.dtype and torch.equal(saved, shape)


def test_values_that_the_precision_cannot_hold_are_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match="NaN, Inf or too large for fp16"):
        save_lora(tmp_path / "a.safetensors", a_lora(scale=1e6), "fp16", 1.0, {})
    assert not list(tmp_path.iterdir())


def test_a_failed_save_leaves_the_old_file_intact(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_lora(path, a_lora(), "fp32", 1.0, {})
    before = path.read_bytes()

    def fill_the_disk(tensors, part, metadata):
        part.write_bytes(b"half a fi")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pack.trainer.lora_file.save_file", fill_the_disk)
    with pytest.raises(OSError, match="No space"):
        save_lora(path, a_lora(2.0), "fp32", 1.0, {})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "not a safetensors file"),
        (b"\x80\x02}q\x00.", "not a safetensors file"),
        (b"x" * 5000, "not a safetensors file"),
    ],
)
def test_a_file_that_is_not_safetensors_is_named(tmp_path, content, message):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"broken.safetensors is {message}"):
        load_lora(path)


def test_a_truncated_file_is_named(tmp_path):
    path = tmp_path / "cut.safetensors"
    save_file(a_lora(), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="cut.safetensors is not a safetensors file, or is incomplete"):
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


def metadata_of(base_model: str = "sd_v1", **settings) -> dict[str, str]:
    return training_metadata(NetworkConfig(), TrainingConfig(**settings), base_model, started=0.0)


@pytest.mark.parametrize(
    "scheduler, settings, cycles, power, rules",
    [
        ("constant", "", "1", "1.0", ""),
        ("cosine_with_restarts", "", "2", "1.0", ""),
        ("cosine_with_restarts", "num_cycles=5", "5", "1.0", ""),
        ("polynomial", "", "1", "2.0", ""),
        ("polynomial", "power=0.5", "1", "0.5", ""),
        ("piecewise_constant", "steps=(100, 200), factors=(1, 0.5, 0.1)", "1", "1.0", "1:100,0.5:200,0.1"),
        ("piecewise_constant", "steps=100, factors=(1, 0.5)", "1", "1.0", "1:100,0.5"),
    ],
)
def test_the_metadata_has_the_schedule(scheduler, settings, cycles, power, rules):
    metadata = metadata_of(lr_scheduler=scheduler, lr_scheduler_settings=settings)
    assert metadata["ss_lr_scheduler"] == scheduler
    assert metadata["ss_lr_scheduler_num_cycles"] == cycles and metadata["ss_lr_scheduler_power"] == power
    assert metadata["ss_lr_step_rules"] == rules


@pytest.mark.parametrize("scheduler", SCHEDULES)
def test_a_lora_of_no_steps_has_metadata_whatever_the_schedule(scheduler):
    settings = "steps=100, factors=(1, 0.5)" if scheduler == "piecewise_constant" else ""
    assert metadata_of(steps=0, lr_scheduler=scheduler, lr_scheduler_settings=settings)["ss_lr_scheduler"] == scheduler


@pytest.mark.parametrize(
    "base_model, architecture, is_v2",
    [
        ("sd_v1", "stable-diffusion-v1/lora", "False"),
        ("sd_v2", "stable-diffusion-v2-512/lora", "True"),
        ("sd_v2_v", "stable-diffusion-v2-768-v/lora", "True"),
        ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora", "False"),
        ("sd3_m", "stable-diffusion-v3-medium/lora", "False"),
        ("flux1", "flux-1-dev/lora", "False"),
        ("hidream", "hidream/lora", "False"),
    ],
)
def test_the_metadata_names_the_architecture(base_model, architecture, is_v2):
    metadata = metadata_of(base_model)
    assert metadata["modelspec.architecture"] == architecture and metadata["ss_v2"] == is_v2


def test_tags_are_counted_as_kohya_counts_them():
    captions = ["1girl, Red Hat,, outdoors", "red hat,1girl", "1girl", "", "\u591c, 1girl"]
    counts = {"1girl": 4, "red hat": 2, "outdoors": 1, "\u591c": 1}
    assert json.loads(tag_frequency(captions)) == {"1_1girl": counts}
    assert json.loads(tag_frequency(caption for caption in [])) == {}


def test_weights_of_any_dict_are_a_lora_without_metadata():
    assert file_metadata(a_lora(), "x", {})["ss_output_name"] == "x"


def test_a_tensor_of_more_dimensions_than_pytorch_computes_with_is_refused_by_its_name(tmp_path):
    save_file({"x.alpha": torch.ones([1] * 60)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="a.safetensors is damaged, because x.alpha has 60 dimensions"):
        load_lora(tmp_path / "a.safetensors")
