"""When a training is another one: what is really in use counts, not what it is called."""

from __future__ import annotations

import copy
from pathlib import Path

import comfy.sd
import folder_paths
import pytest
import torch
from comfy.cli_args import args
from pack.nodes import fingerprint as module
from pack.nodes.fingerprint import fingerprint
from pack.nodes.model_files import named_files
from pack.trainer.config import NetworkConfig, TrainingConfig
from safetensors.torch import save_file
from tiny_host import TinyHost

KEY = "lora_unet_joint_blocks_0_x_block_attn_qkv"
LOADER = {
    "class_type": "LoraLoader",
    "inputs": {"model": ["1", 0], "lora_name": "style.safetensors", "strength_model": 1.0},
}
GRAPH = {
    "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "tiny.safetensors"}},
    "2": LOADER,
    "3": {"class_type": "TrainTrain_TrainLoRA", "inputs": {"model": ["2", 0], "clip": ["5", 0], "steps": 3}},
    "5": {"class_type": "CLIPLoader", "inputs": {"clip_name": "text.safetensors"}},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> TinyHost:
    return TinyHost(tmp_path_factory.mktemp("model"))


@pytest.fixture
def folders(tmp_path, monkeypatch) -> Path:
    """Model folders of ComfyUI and its input folder."""
    for kind in ("loras", "embeddings", "hypernetworks", "vae", "diffusers", "input"):
        (tmp_path / kind).mkdir()
        if kind != "input":
            monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, ([str(tmp_path / kind)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "input"))
    return tmp_path


def styled(tiny: TinyHost, seed: int, strength: float = 1.0):
    """Return the MODEL with a LoRA on it, as LoraLoader puts it on."""
    rng = torch.Generator().manual_seed(seed)
    size = tiny.model.model.diffusion_model.joint_blocks[0].x_block.attn.qkv.weight.shape
    lora = {f"{KEY}.lora_up.weight": torch.randn(size[0], 2, generator=rng)}
    lora[f"{KEY}.lora_down.weight"] = torch.randn(2, size[1], generator=rng)
    with torch.inference_mode():
        model = comfy.sd.load_lora_for_models(tiny.model, None, lora, strength, 0.0)[0]
    assert model.patches
    return model


def of(graph=GRAPH, **inputs) -> str:
    return fingerprint({"steps": 3, **inputs}, graph, "3")


def test_the_patches_of_a_model_count_not_the_name_of_their_file(tiny):
    base = of(model=styled(tiny, 1))
    assert of(model=styled(tiny, 1)) == base  # loaded again, after a restart
    others = [of(model=styled(tiny, 2)), of(model=styled(tiny, 1, strength=0.5)), of(model=tiny.model)]
    assert len({base, *others}) == 4


def test_a_lora_file_that_is_replaced_under_its_name_is_another_training(folders):
    """Also where what it does to the MODEL cannot be read."""
    path = folders / "loras" / "style.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    base = of(model=object())
    assert of(model=object()) == base
    save_file({"a": torch.zeros(2000)}, path)
    assert of(model=object()) != base


def graph_with(class_type: str, **inputs) -> dict:
    graph = copy.deepcopy(GRAPH)
    graph["2"] = {"class_type": class_type, "inputs": {"model": ["1", 0], **inputs}}
    return graph


REPLACED = {
    "a hypernetwork": ("hypernetworks/h.safetensors", {"hypernetwork_name": "h.safetensors"}),
    "in a subfolder": ("loras/style/a.safetensors", {"lora_name": "style/a.safetensors"}),
    "in a dict of another pack": ("loras/a.safetensors", {"lora_1": {"on": True, "lora": "a.safetensors"}}),
    "in a list": ("loras/a.safetensors", {"names": [["a.safetensors", 1.0]]}),
    "an image of an adapter": ("input/face.png", {"image": "face.png"}),
    "an image with its folder": ("input/face.png", {"image": "face.png [input]"}),
    "an embedding": ("embeddings/ohwx.safetensors", {"text": "a photo, embedding:ohwx, red"}),
    "an embedding in a subfolder": ("embeddings/mine/ohwx.pt", {"text": "(embedding:ohwx:1.2)"}),
    "a model that is a folder": ("diffusers/mine/unet/a.safetensors", {"model_path": "mine"}),
}


@pytest.mark.parametrize("path, inputs", REPLACED.values(), ids=REPLACED)
def test_any_file_that_a_node_before_the_model_names_counts(folders, path, inputs):
    file = folders / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"one")
    graph = graph_with("Some", **inputs)
    base = of(graph, model=object())
    assert of(graph, model=object()) == base
    file.write_bytes(b"another")
    assert of(graph, model=object()) != base


def test_a_path_outside_of_the_folders_counts_too(folders):
    file = folders / "elsewhere.safetensors"
    file.write_bytes(b"one")
    graph = graph_with("Some", path=str(file))
    base = of(graph, model=object())
    file.write_bytes(b"another")
    assert of(graph, model=object()) != base


def test_an_embedding_named_in_a_caption_counts(folders):
    file = folders / "embeddings" / "ohwx.safetensors"
    file.write_bytes(b"one")
    base, plain = of(caption="embedding:ohwx"), of(caption="ohwx")
    file.write_bytes(b"another")
    assert of(caption="embedding:ohwx") != base and of(caption="ohwx") == plain


@pytest.mark.parametrize(
    "text",
    [
        "\0.x",
        "a" * 5000,
        "..",
        "../..",
        "[.x",
        "embedding:../../x",
        "embedding:/etc",
        "embedding:C:/x",
        "/",
        "C:x",
        ".",
        "",
        "\ud800.x",
    ],
)
def test_odd_texts_name_no_file(folders, text):
    assert of(graph_with("Some", text=text), model=object(), caption=text)


@pytest.mark.parametrize(
    "flag", ["force_fp16", "force_fp32", "bf16_unet", "fp8_e4m3fn_text_enc", "fp16_vae", "cpu_vae"]
)
def test_comfyui_with_another_type_flag_trains_again(monkeypatch, flag):
    base = of()
    monkeypatch.setattr(args, flag, True)
    assert of() != base


def test_another_version_of_the_pack_trains_again(monkeypatch):
    assert module.pack_version().count(".") == 2
    base = of()
    monkeypatch.setattr(module, "pack_version", lambda: "9.9.9")
    assert of() != base


def test_what_is_only_shown_or_stored_does_not_count(tiny):
    base = of(settings=TrainingConfig(), model=object())
    assert of(settings=TrainingConfig(save_every=5, keep_gb=1), model=object()) == base
    assert of(settings=TrainingConfig(), model=object(), preview=object()) == base
    assert of(settings=TrainingConfig(max_grad_norm=2), model=object()) != base
    # A MODEL out of another training node: its own preview and saves are upstream.
    graph = graph_with("TrainTrain_TrainCopyMachine", preview=["9", 0], resume_stopped=True)
    assert of(graph, model=object()) == of(graph_with("TrainTrain_TrainCopyMachine"), model=object())


def test_a_value_that_can_be_read_counts_whatever_nodes_it_comes_from():
    graph = copy.deepcopy(GRAPH)
    graph["3"]["inputs"] |= {"network": ["7", 0], "image": ["8", 0]}
    graph |= {
        "7": {"class_type": "A", "inputs": {"x": 1}},
        "8": {"class_type": "LoadImage", "inputs": {"image": "a.png"}},
    }
    other = copy.deepcopy(graph)
    other["7"]["inputs"]["x"], other["8"]["inputs"]["image"] = 2, "b.png"
    values = {"network": NetworkConfig(), "image": torch.ones(2, 2)}
    assert of(graph, **values) == of(other, **values)


def test_a_vae_without_a_file_counts_by_its_weights(tiny):
    base = of(vae=tiny.vae)
    weight = next(iter(tiny.vae.first_stage_model.parameters()))
    before = weight.detach().clone()
    with torch.inference_mode():
        weight.add_(1)
    changed = of(vae=tiny.vae)
    with torch.inference_mode():
        weight.copy_(before)
    assert changed != base == of(vae=tiny.vae)


def test_quantized_patches_count_by_their_values(tiny):
    from comfy.quant_ops import QuantizedTensor

    quantized = [QuantizedTensor.from_float(torch.eye(16) * n, "TensorCoreFP8E4M3Layout") for n in (1, 2)]
    assert of(x=quantized[0]) != of(x=quantized[1])


@pytest.mark.parametrize("text", ["..", "../..", "/", "embedding:../x", "embedding:..", "a/../../b"])
def test_no_folder_outside_of_the_models_is_searched(folders, text):
    (folders / "x").write_bytes(b"secret")
    assert not [path for path in named_files(text) if Path(path) == folders / "x"]
    assert not list(named_files(text))
