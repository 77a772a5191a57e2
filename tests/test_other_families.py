"""Families of image models that are not in test_model_families: every method trains on them, or they are refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import comfy.latent_formats
import comfy.quant_ops
import comfy.sd
import comfy.supported_models
import folder_paths
import pytest
import tiny_families
import tiny_host
import tiny_models
import torch
from more_families import MORE
from more_families import REFUSED as REFUSED_IMAGES
from other_families import OTHERS
from pack.nodes import host
from pack.nodes.host.untrainable import check_family
from pack.trainer.blocks import block_id, choose_layers
from pack.trainer.config import NetworkConfig
from tiny_host import TinyHost
from tiny_models import load_family, load_model, make_prompt
from video_families import REFUSED_VIDEOS, VIDEOS

ALL, REFUSED = OTHERS | MORE | VIDEOS, REFUSED_IMAGES | REFUSED_VIDEOS
METHODS = ["LoRA", "iLECO", "slider", "copy machine", "difference", "ADDifT"]
SIZES = {name: (320, 256) for name in ("PixArt Alpha", "PixArt Sigma")}  # they fail on smaller pictures
SIZE = (64, 32)
BLOCKS = {
    "HunyuanVideo": "double_blocks single_blocks",
    "HunyuanVideo 1.5": "double_blocks single_blocks",
    "Kandinsky 5 Video": "text_transformer_blocks visual_transformer_blocks",
    "LTX-Video": "transformer_blocks",
    "Mochi": "blocks",
    "Wan 2.2 5B": "blocks",
    "HunyuanDiT": "blocks",
    "HunyuanDiT 1.1": "blocks",
    "PixelDiT": "patch_blocks pixel_blocks",
    "Z-Image on pixels": "context_refiner layers noise_refiner",
    "InstructPix2Pix (SDXL)": "IN M OUT",
    "Ovis-Image": "double_blocks single_blocks",
    "PixArt Alpha": "blocks",
    "SD 2.1 unCLIP": "IN M OUT",
    "Segmind Vega": "IN M OUT",
    "Chroma Radiance": "double_blocks nerf_blocks single_blocks",
    "Flux Fill": "double_blocks single_blocks",
    "Flux schnell": "double_blocks single_blocks",
    "InstructPix2Pix": "IN M OUT",
    "KOALA": "IN M OUT",
    "SDXL Refiner": "IN M OUT",
    "SSD-1B": "IN M OUT",
    "AuraFlow": "double_layers single_layers",
    "Boogu": "context_refiner double_stream_layers noise_refiner single_stream_layers",
    "ERNIE-Image": "layers",
    "HiDream": "caption_projection double_stream_blocks single_stream_blocks",
    "HunyuanImage 2.1": "double_blocks single_blocks",
    "Ideogram 4": "layers",
    "JoyImage": "double_blocks",
    "Kandinsky 5": "text_transformer_blocks visual_transformer_blocks",
    "Lens": "transformer_blocks",
    "LongCat-Image": "double_blocks single_blocks",
    "Mage-Flow": "transformer_blocks",
    "OmniGen2": "context_refiner layers noise_refiner",
    "PixArt Sigma": "blocks",
}
# Variants of tested families: deeper ones, and those for an image, a camera, sound or a pose as input.
NOT_TESTED = {
    *("CosmosT2V", "CosmosI2V", "CosmosI2VPredict2", "CogVideoX_I2V", "CogVideoX_Inpaint"),
    *("HunyuanVideoI2V", "HunyuanVideoSkyreelsI2V", "KOALA_1B", "SD21UnclipH", "Stable_Cascade_B"),
    *("WAN21_Camera", "WAN21_CausalAR_T2V", "WAN21_FlowRVS", "WAN21_FunControl2V", "WAN21_HuMo", "WAN21_I2V"),
    *("WAN21_SCAIL", "WAN21_SCAIL2", "WAN21_Vace", "WAN22_Animate", "WAN22_Camera", "WAN22_S2V", "WAN22_WanDancer"),
}
REASONS = {
    "CogVideoX": "its prediction type",
    "Cosmos Predict2": "its prediction type",
    "HiDream-O1": "its image is made inside of a language model",
    "Stable Cascade": "its prediction type",
    "Lotus": "it needs an image as input",
    "SD x4 upscaler": "it enlarges an image",
    "HunyuanImage 2.1 refiner": "it refines an image",
}


@pytest.fixture(scope="module", autouse=True)
def known_families() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # sharing work this small between threads takes longer than the work
    with pytest.MonkeyPatch.context() as patch:
        for name, family in (ALL | REFUSED).items():
            patch.setitem(tiny_families.FAMILIES, name, family)
        yield
    torch.set_num_threads(before)


def load(name: str, folder: Path, patch: pytest.MonkeyPatch) -> TinyHost:
    for module, (width, height) in ((module, SIZES.get(name, SIZE)) for module in (tiny_host, tiny_models)):
        patch.setattr(module, "WIDTH", width)
        patch.setattr(module, "HEIGHT", height)
    patch.setattr(folder_paths, "output_directory", str(folder))
    return TinyHost(folder, name)


@pytest.mark.parametrize("name", ALL)
def test_every_method_trains_and_leaves_the_model_as_it_was(name, tmp_path, monkeypatch):
    tiny = load(name, tmp_path, monkeypatch)
    assert type(tiny.model.model.model_config).__name__ == ALL[name].config
    layers, before = choose_layers(tiny.model.model.diffusion_model, tiny.network), tiny.sample()
    assert {re.sub(r"\.?\d+$", "", block_id(layer)) for layer in layers} == set(BLOCKS[name].split())
    for method in METHODS:
        # Without a target, a U-Net's slider has an empty prompt of zeros, for which its cross-attention learns nothing.
        inputs = {"target": make_prompt(name, "green")} if method == "slider" else {}
        model, *_, lora, loss = tiny.train(method, steps=1, **inputs)
        assert torch.tensor(loss["loss"]).isfinite().all()
        tiny.copy = lora if method == "copy machine" else tiny.copy  # of which Train Difference learns
        learned = sum(tensor.any().item() for key, tensor in lora.items() if key.endswith("lora_up.weight"))
        assert learned > 0.7 * len(layers), method
        patched, _ = comfy.sd.load_lora_for_models(tiny.model, None, lora, 1.0, 0.0)  # as the host's LoraLoader does
        assert set(patched.patches) == {f"diffusion_model.{layer}.weight" for layer in layers}, method
    assert torch.equal(tiny.sample(), before)


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_cannot_be_trained_is_refused_by_name(name, tmp_path):
    model, family = load_model(name, tmp_path, False, {}), REFUSED[name].config
    with pytest.raises(ValueError, match=rf"^This model \({family}\) cannot be trained, because {REASONS[name]}"):
        with host.open_model(model):
            pass


def test_every_family_of_the_host_is_tested_or_refused_or_known_as_neither():
    """A new version of the host may have more families: they belong into one of these places and into docs/families.md."""
    tested = {family.config for family in (tiny_families.FAMILIES | ALL | REFUSED).values()}
    left = []
    for family in comfy.supported_models.models:
        model = SimpleNamespace(model_config=family.__new__(family), latent_format=family.latent_format())
        try:
            check_family(model)
        except ValueError as refusal:
            assert f"({family.__name__}) cannot be trained, because it" in str(refusal)
        else:
            left += [family.__name__] if family.__name__ not in tested else []
    assert set(left) == NOT_TESTED


def test_a_family_that_only_newer_hosts_load_is_refused_by_name():
    trellis = SimpleNamespace(
        model_config=type("Trellis2", (), {})(), latent_format=comfy.latent_formats.LatentFormat()
    )
    with pytest.raises(
        ValueError, match=r"^This model \(Trellis2\) cannot be trained, because it does not make images"
    ):
        check_family(trellis)


def test_an_embedder_whose_parts_have_numbers_is_no_block():
    """As Anima's t_embedder and the caption embedders of others."""

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.t_embedder = torch.nn.Sequential(torch.nn.SiLU(), torch.nn.ModuleDict({"in": torch.nn.Linear(2, 2)}))
            self.blocks = torch.nn.ModuleList([torch.nn.ModuleDict({"layer": torch.nn.Linear(2, 2)})])

    assert list(choose_layers(Model(), NetworkConfig())) == ["blocks.0.layer"]


@pytest.mark.parametrize("ending", [None, ZeroDivisionError])
def test_kernels_without_a_backward_pass_are_replaced_only_while_a_model_is_open(ending, tmp_path):
    kitchen = comfy.quant_ops.ck
    before = dict(vars(kitchen))
    x, rope = torch.randn(1, 3, 2, 8, requires_grad=True), torch.randn(1, 3, 1, 4, 2, 2)
    scale = torch.ones(8)
    model = load_family("SD3", tmp_path).model
    with pytest.raises(ending) if ending else nullcontext(), host.open_model(model):
        plain = kitchen.rms_rope_split_half(x, x, rope, scale)
        (gradient,) = torch.autograd.grad(plain[0].sum(), x)
        assert gradient.any()
        if ending:
            raise ending
    assert vars(kitchen) == before
    fused = kitchen.rms_rope_split_half(x.detach(), x.detach(), rope, scale)
    torch.testing.assert_close(fused, tuple(part.detach() for part in plain))
