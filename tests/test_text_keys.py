"""Keys of text encoders in LoRA files: kohya's for each encoder, in parts for merged layers; and which layers are trained."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import comfy.lora
import comfy.ops
import comfy.sd
import diffusers.loaders
import pytest
import torch
from comfy.sd import CLIPType, TEModel
from comfy.text_encoders.hidream_o1 import HiDreamO1TE
from pack.nodes.host.text_keys import text_key_of
from pack.trainer.blocks import choose_layers
from text_encoder_runs import NETWORK, assert_close, encode, run
from tiny_models import load_model
from tiny_text_encoders import load_clip

pytestmark = pytest.mark.usefixtures("one_thread")

L, G, T5 = TEModel.CLIP_L, TEModel.CLIP_G, TEModel.T5_XXL


def build(kinds: list[TEModel], clip_type: CLIPType) -> torch.nn.Module:
    """Return the host's text encoders for files of these kinds, at their real sizes, without weights."""
    with pytest.MonkeyPatch.context() as patch:
        build = lambda target, model_options, **_: target.clip(device="meta", model_options=model_options)  # noqa: E731
        patch.setattr(comfy.sd, "CLIP", build)
        patch.setattr(comfy.sd, "detect_te_model", lambda weights: kinds[int(weights["number"])])
        files = [{"number": torch.tensor(number)} for number in range(len(kinds))]
        return comfy.sd.load_text_encoder_state_dicts(files, clip_type=clip_type)


def trained_layers(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    unet = torch.nn.Module()
    unet.blocks = torch.nn.ModuleList([torch.nn.ModuleDict({"layer": torch.nn.Linear(2, 2)})])
    return choose_layers(unet, NETWORK, model)


# By hand from kohya's sd-scripts: lora_te1, lora_te2 and lora_te3 for CLIP-L, CLIP-G and T5, and lora_te for one encoder;
# the host reads its own names for the rest.
KEYS = {
    "SDXL": (
        [L, G],
        CLIPType.STABLE_DIFFUSION,
        {"lora_te1_text_model_encoder": 72, "lora_te2_text_model_encoder": 192},
    ),
    "SD3": (
        [L, G, T5],
        CLIPType.SD3,
        {"lora_te1_text_model_encoder": 72, "lora_te2_text_model_encoder": 192, "lora_te3_encoder_block": 168},
    ),
    "SD3, T5": ([T5], CLIPType.SD3, {"text_encoders.t5xxl.transformer.encoder.block": 168}),
    "SD3, CLIP-G and T5": (
        [G, T5],
        CLIPType.SD3,
        {"text_encoders.clip_g.": 192, "text_encoders.t5xxl.transformer.encoder.block": 168},
    ),
    "Flux.1": ([L, T5], CLIPType.FLUX, {"lora_te1_text_model_encoder": 72, "lora_te3_encoder_block": 168}),
    "Lumina 2": ([TEModel.GEMMA_2_2B], CLIPType.LUMINA2, {"lora_te_layers": 182}),
    "Anima": ([TEModel.QWEN3_06B], CLIPType.STABLE_DIFFUSION, {"lora_te_layers": 196}),
    "Qwen-Image": ([TEModel.QWEN25_7B], CLIPType.QWEN_IMAGE, {"lora_te_layers": 196}),
    "Flux.2": ([TEModel.MISTRAL3_24B], CLIPType.FLUX2, {"lora_te_layers": 280}),
    "Krea 2": ([TEModel.QWEN3VL_4B], CLIPType.KREA2, {"lora_te_layers": 252}),
    "Kandinsky 5": (
        [TEModel.QWEN25_7B, L],
        CLIPType.KANDINSKY5_IMAGE,
        {"text_encoders.qwen25_7b.": 196, "lora_te1_text_model_encoder": 72},
    ),
    # What reads images or sounds, and what only reads quoted words, gets nothing from a caption.
    "HunyuanImage 2.1": (
        [TEModel.QWEN25_7B, TEModel.BYT5_SMALL_GLYPH],
        CLIPType.HUNYUAN_IMAGE,
        {"text_encoders.qwen25_7b.": 196},
    ),
    "Gemma 3 with vision": ([TEModel.GEMMA_3_4B_VISION], CLIPType.LUMINA2, {"lora_te_layers": 238}),
    "Gemma 4": ([TEModel.GEMMA_4_31B], CLIPType.LUMINA2, {"lora_te_layers": 420}),
    "HunyuanDiT": (
        [L, T5],
        CLIPType.HUNYUAN_DIT,
        {"text_encoders.hydit_clip.transformer.bert.encoder.layer": 144, "text_encoders.mt5xl.": 168},
    ),
}


@pytest.mark.parametrize("name", KEYS)
def test_each_layer_has_the_key_that_other_programs_read(name):
    kinds, clip_type, expected = KEYS[name]
    model = build(kinds, clip_type)
    key_of = text_key_of(SimpleNamespace(cond_stage_model=model))
    keys = {layer: key_of(layer) for layer in trained_layers(model)}
    known = comfy.lora.model_lora_keys_clip(model, {})
    assert all(known[key] == f"{layer.removeprefix('BASE.')}.weight" for layer, key in keys.items())
    counts = {start: sum(key.startswith(start) for key in keys.values()) for start in expected}
    assert counts == expected and sum(counts.values()) == len(keys)


def test_stacked_experts_are_not_trained():
    """As those of Lens: no adapter fits a tensor of several weights."""
    layers = trained_layers(build([TEModel.GPT_OSS_20B], CLIPType.LENS))
    assert len(layers) == 24 * 4 and all(".self_attn." in layer for layer in layers)


def test_a_clip_that_only_splits_captions_into_tokens_is_refused():
    with pytest.raises(ValueError, match="This CLIP has no layers to train.*remove BASE from blocks"):
        trained_layers(HiDreamO1TE())


def test_diffusers_reads_the_keys_of_flux():
    """It reads CLIP-L's and leaves out T5's, which it does not support."""
    model = build([L, T5], CLIPType.FLUX)
    key_of, lora = text_key_of(SimpleNamespace(cond_stage_model=model)), {}
    for name, layer in trained_layers(model).items():
        lora[f"{key_of(name)}.lora_down.weight"] = torch.randn(2, layer.in_features)
        lora[f"{key_of(name)}.lora_up.weight"] = torch.randn(layer.out_features, 2)
        lora[f"{key_of(name)}.alpha"] = torch.tensor(2.0)
    read = diffusers.loaders.FluxLoraLoaderMixin.lora_state_dict(lora)
    assert len(read) == 2 * 72 and all(key.startswith("text_encoder.text_model.encoder.layers.") for key in read)


class Slice:
    """A part of a merged layer's output."""

    def __init__(self, layer: torch.nn.Module, rows: slice) -> None:
        self._layer, self._rows = layer, rows

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._layer(x)[..., self._rows]


def merge(parent: torch.nn.Module, parts: tuple[str, ...], merged: str) -> None:
    """Replace layers of a module by one with all their rows, as in some files of text encoders."""
    weights = [getattr(parent, part).weight for part in parts]
    layer = comfy.ops.manual_cast.Linear(weights[0].shape[1], sum(map(len, weights)), bias=False)
    layer.weight = torch.nn.Parameter(torch.cat(weights), False)
    start = 0
    for part, weight in zip(parts, weights):
        delattr(parent, part)
        setattr(parent, part, Slice(layer, slice(start, start + len(weight))))
        start += len(weight)
    setattr(parent, merged, layer)


QKV, GATE_UP = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Any:
    return load_model("SD3", tmp_path_factory.mktemp("model"), False, {})


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> tuple[Any, Any]:
    """A CLIP, and one with the same weights whose projections are merged."""
    plain, merged = (load_clip("Z-Image", tmp_path_factory.mktemp("clip")) for _ in range(2))
    with torch.inference_mode():
        for block in merged.cond_stage_model.qwen3_4b.transformer.model.layers:
            merge(block.self_attn, QKV, "qkv_proj")
            merge(block.mlp, GATE_UP, "gate_up_proj")
    assert_close(encode(merged)[0], encode(plain)[0])
    return plain, merged


@pytest.fixture
def host_knows_parts(monkeypatch) -> None:
    """Make the host's loader read parts of merged layers, as it does for models with merged layers."""
    original = comfy.lora.model_lora_keys_clip

    def with_parts(model: torch.nn.Module, keys: dict[str, Any]) -> dict[str, Any]:
        for key, target in [*original(model, keys).items()]:
            for parts, merged, rows in ((QKV, "qkv_proj", (256, 128, 128)), (GATE_UP, "gate_up_proj", (64, 64))):
                if isinstance(target, str) and key.endswith(merged):
                    for number, part in enumerate(parts):
                        offset = (0, sum(rows[:number]), rows[number])
                        keys[key.removesuffix(merged) + part] = (target, offset)
        return keys

    monkeypatch.setattr(comfy.lora, "model_lora_keys_clip", with_parts)


def layers_of(lora: dict[str, torch.Tensor]) -> set[str]:
    return {key.split(".")[0] for key in lora}


@pytest.mark.parametrize("network_type", ["lierla", "loha"])
def test_a_merged_layer_is_written_in_the_parts_that_other_programs_read(clips, model, host_knows_parts, network_type):
    plain, merged = clips
    trained = run(model, merged, network=replace(NETWORK, network_type=network_type))
    expected = {f"lora_te_layers_{n}_self_attn_{part}" for n in range(3) for part in (*QKV, "o_proj")}
    expected |= {f"lora_te_layers_{n}_mlp_{part}" for n in range(3) for part in (*GATE_UP, "down_proj")}
    assert layers_of(trained.lora) == expected
    for clip in clips:  # also where they are not merged
        _, loaded = comfy.sd.load_lora_for_models(None, clip, trained.lora, 0.0, 1.0)
        assert_close(trained.outputs[0], encode(loaded)[0])
    again = run(model, merged, trained.lora)
    assert_close(again.outputs[0], trained.outputs[0])
    assert {adapter.rank for adapter in again.adapters.values()} == {4}
    assert all(torch.equal(again.lora[key], tensor) for key, tensor in trained.lora.items())


def test_a_lokr_of_a_merged_layer_is_written_whole(clips, model, host_knows_parts):
    trained = run(model, clips[1], network=replace(NETWORK, network_type="lokr"))
    assert sum(key.endswith(("qkv_proj", "gate_up_proj")) for key in layers_of(trained.lora)) == 6
    _, loaded = comfy.sd.load_lora_for_models(None, clips[1], trained.lora, 0.0, 1.0)
    assert_close(trained.outputs[0], encode(loaded)[0])


def test_a_host_that_does_not_read_parts_gets_the_whole_layer(clips, model):
    trained = run(model, clips[1])
    assert len(layers_of(trained.lora)) == 3 * 4
    _, loaded = comfy.sd.load_lora_for_models(None, clips[1], trained.lora, 0.0, 1.0)
    assert_close(trained.outputs[0], encode(loaded)[0])


def test_a_lora_from_where_they_are_not_merged_resumes_with_its_effect(clips, model):
    plain, merged = clips
    trained = run(model, plain)
    assert_close(run(model, merged, trained.lora).outputs[0], trained.outputs[0])
