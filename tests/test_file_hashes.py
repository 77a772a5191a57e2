"""What a LoRA file says of itself to other programs: hashes of its own weights, trigger words, and nothing private."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from comfy.cli_args import args
from pack.nodes import host
from pack.nodes.save_lora import SaveLoRA
from pack.trainer.lora_file import LoRAWeights, load_lora
from pack.trainer.lora_metadata import tag_frequency
from pack.trainer.state import load_state, save_state
from safetensors.torch import save, save_file
from tiny_host import TinyHost

KEY = "lora_unet_middle_block_1_proj_in"
STALE = {"sshs_model_hash": "a" * 64, "sshs_legacy_hash": "b" * 8, "modelspec.hash_sha256": "0x" + "c" * 64}
PRIVATE = {
    "ss_dataset_dirs": '{"10_secret": {"n_repeats": 10}}',
    "ss_datasets": '[{"image_dir": "C:/secret"}]',
    "ss_tag_frequency": '{"10_secret": {"secret": 3}}',
    "ss_training_comment": "secret",
    "ss_sd_model_name": "secret.safetensors",
    "ss_network_args": '{"preset": "C:\\\\secret.toml"}',
    "ot_config": '{"concept_file_name": "secret"}',
    "training_info": "secret",
    "modelspec.thumbnail": "data:image/png;base64,secret",
}
PUBLIC = {
    "ss_base_model_version": "sdxl_base_v1-0",
    "ss_v2": "False",
    "ss_network_dim": "4",
    "ss_network_module": "networks.lora",
    "ss_learning_rate": "0.0001",
    "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
    "modelspec.author": "Ada",
    "modelspec.license": "MIT",
}


def a_lora(rank: int = 2, **metadata: str) -> LoRAWeights:
    rng = torch.Generator().manual_seed(rank)
    up, down = torch.randn(600, rank, generator=rng), torch.randn(rank, 500, generator=rng)
    return LoRAWeights(
        {f"{KEY}.lora_up.weight": up, f"{KEY}.lora_down.weight": down, f"{KEY}.alpha": torch.tensor(1.0)}, metadata
    )


def save_node(lora, precision: str = "fp32", strength: float = 1.0, **inputs) -> dict[str, str]:
    """Save a LoRA with the node; return the file's path and its metadata."""
    workflow = {"workflow": {"nodes": ["secret"]}}
    SaveLoRA.hidden = SimpleNamespace(prompt={"1": {"inputs": {"folder": "secret"}}}, extra_pnginfo=workflow)
    path = Path(SaveLoRA.execute(lora, "mine", precision, strength, True, **inputs).args[0])
    return path, load_lora(path).metadata


def read_body(path: Path) -> bytes:
    """Return what follows the header, by the description of the format."""
    content = path.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


@pytest.mark.parametrize(
    "precision, strength, rank", [("fp32", 1.0, 2), ("fp16", 2.0, 2), ("bf16", -1.0, 2), ("fp32", 1, 400)]
)
def test_the_hashes_are_those_of_the_saved_weights(output_folder, precision, strength, rank):
    path, metadata = save_node(a_lora(rank, **STALE, ss_seed="3"), precision, strength)
    expected = hashlib.sha256(read_body(path)).hexdigest()
    assert metadata["sshs_model_hash"] == expected and metadata["modelspec.hash_sha256"] == f"0x{expected}"
    # The legacy hash is of 64 KiB at 1 MiB of the file that has only the metadata of training.
    training = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    tensors = dict(load_lora(path))
    legacy = hashlib.sha256(save(tensors, training)[2**20 : 2**20 + 2**16]).hexdigest()[:8]
    assert metadata["sshs_legacy_hash"] == legacy
    assert (legacy == hashlib.sha256(b"").hexdigest()[:8]) == (path.stat().st_size < 2**20)


def test_a_training_keeps_files_with_hashes(tmp_path, output_folder):
    tiny = TinyHost(tmp_path)
    tiny.train("iLECO", steps=1)
    (path,) = (output_folder / "traintrain").glob("*.safetensors")
    assert load_lora(path).metadata["sshs_model_hash"] == hashlib.sha256(read_body(path)).hexdigest()


def leave_out_by_switch(monkeypatch) -> dict[str, bool]:
    return {"for_publishing": True}


def leave_out_by_flag(monkeypatch) -> dict[str, bool]:
    monkeypatch.setattr(args, "disable_metadata", True)
    return {}


@pytest.mark.parametrize("leave_out", [leave_out_by_switch, leave_out_by_flag])
def test_a_published_file_has_nothing_private_and_what_programs_need(output_folder, monkeypatch, leave_out):
    lora = a_lora(**PRIVATE, **PUBLIC, **STALE)
    path, metadata = save_node(lora, **leave_out(monkeypatch))
    assert b"secret" not in path.read_bytes()
    assert PUBLIC.items() <= metadata.items() and metadata["ss_output_name"] == "mine"
    assert metadata["sshs_model_hash"] == hashlib.sha256(read_body(path)).hexdigest()


def test_a_file_has_its_workflow_otherwise(output_folder):
    path, metadata = save_node(a_lora(**PRIVATE))
    assert PRIVATE.items() <= metadata.items() and {"workflow", "prompt"} <= metadata.keys()


def test_with_the_flag_no_file_of_a_training_has_captions(tmp_path, output_folder, monkeypatch):
    monkeypatch.setattr(args, "disable_metadata", True)
    tiny = TinyHost(tmp_path)
    from pack.trainer.config import TrainingConfig

    outputs = tiny.train("LoRA", steps=3, settings=TrainingConfig(save_every=2, lr_scheduler="constant"))
    assert "ss_tag_frequency" in outputs[2].metadata  # in memory
    files = list(output_folder.rglob("*.safetensors"))
    assert files and not any("ss_tag_frequency" in load_lora(file).metadata for file in files)
    _, saved = save_node(outputs[2])
    assert "ss_tag_frequency" not in saved
    *_, again, loss = tiny.train("LoRA", steps=4, lora=load_lora(output_folder / "loras" / "mine.safetensors"),
                                 settings=TrainingConfig(save_every=2, lr_scheduler="constant"))  # fmt: skip
    assert len(loss["loss"]) == 4 and again.metadata["traintrain_step"] == "4"


def test_a_loaded_lora_does_not_follow_its_file(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(dict(a_lora()), path)
    lora = load_lora(path)
    before = {key: tensor.clone() for key, tensor in lora.items()}
    with open(path, "r+b") as file:  # in place, as copying over it does
        file.seek(-4000, 2)
        file.write(bytes(4000))
    assert all(torch.equal(lora[key], before[key]) for key in before)


def test_a_loaded_state_does_not_follow_its_file(tmp_path):
    path = tmp_path / "a.state"
    save_state(path, {"weights": [torch.ones(4000)]}, {})
    state = load_state(path)
    with open(path, "r+b") as file:
        file.seek(-4000, 2)
        file.write(bytes(4000))
    assert (state["weights"][0] == 1).all()


@pytest.mark.parametrize(
    "captions, trigger",
    [
        (["ohwx, a man, outdoors", "ohwx, indoors", "ohwx"], "ohwx"),
        (["Ohwx Cat, outdoors", "ohwx cat, a chair"], "Ohwx Cat"),
        (["a man, red", "red, a dog", "sky, red"], "red"),  # none in front of all: the most frequent
    ],
)
def test_the_trigger_word_is_the_first_key_and_the_first_tag(captions, trigger):
    groups = json.loads(tag_frequency(captions))
    (name,) = groups
    assert re.fullmatch(r"\d+_(.+)", name)[1] == trigger and name.split("_")[1] == trigger
    assert next(iter(groups[name])) == trigger.lower()


A1111 = {  # class of the host's model -> what A1111 and Forge take a LoRA's file for
    "SD15": "SD1", "SD15_instructpix2pix": "SD1", "SD20": "SD2", "SD21UnclipL": "SD2", "LotusD": "SD2",
    "SDXL": "SDXL", "SDXLRefiner": "SDXL", "SSD1B": "SDXL", "KOALA_1B": "SDXL", "SDXL_instructpix2pix": "SDXL",
}  # fmt: skip


def version_in_a1111(metadata: dict[str, str]) -> str:
    """Return the version as A1111 reads it from a file."""
    if metadata["ss_base_model_version"].startswith("sdxl_"):
        return "SDXL"
    return "SD2" if metadata["ss_v2"] == "True" else "SD1"


@pytest.mark.parametrize("name, version", A1111.items())
def test_a1111_takes_the_file_for_the_version_it_is_of(name, version):
    import comfy.model_base
    import comfy.supported_models
    from pack.nodes.host.lora_keys import model_family
    from pack.trainer.config import NetworkConfig, TrainingConfig
    from pack.trainer.lora_metadata import training_metadata

    kinds = [comfy.model_base.ModelType.EPS] + [comfy.model_base.ModelType.V_PREDICTION] * (version == "SD2")
    for kind in kinds:
        config = getattr(comfy.supported_models, name)({"context_dim": 768})
        patcher = SimpleNamespace(model=SimpleNamespace(model_config=config, model_type=kind))
        metadata = training_metadata(NetworkConfig(), TrainingConfig(), model_family(patcher), 0.0)
        assert version_in_a1111(metadata) == version


def test_the_family_of_the_demonstration_model_is_sd1(shapes):
    from pack.nodes.host.lora_keys import model_family

    assert model_family(shapes[0]) == "sd_v1" and host.lora_key_of(shapes[0])
