"""LoRA files made by other programs: every tensor is used, with the same effect."""

from __future__ import annotations

import logging
import re
from functools import cache
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, NamedTuple

import comfy.lora
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras import nodes_train
from diffusers import StableDiffusionPipeline
from diffusers.training_utils import _collate_lora_metadata as collate_metadata
from diffusers.utils import convert_state_dict_to_diffusers
from lycoris.kohya import LycorisNetworkKohya
from pack.nodes.host.lora_keys import lora_keys, with_lora
from pack.trainer.lora_file import load_lora, save_lora
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn
from unets import run_diffusers, run_host, small_pair

# Layers of every kind in diffusers' names; in PEFT's settings each kind may have a rank and alpha of its own.
LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"]
LAYERS += ["conv1", "conv2", "conv", "conv_shortcut", "time_emb_proj"]
PEFT = {"r": 4, "target_modules": LAYERS}
LOKR = {"network_module": "lokr"}
OWN_SCALES = {"lora_alpha": 6, "rank_pattern": {"conv1": 2}, "alpha_pattern": {"conv1": 1, "attn1.to_q": 9}}


EXPRESSIONS = {
    "lora_alpha": 6,
    "rank_pattern": {r"(.*\.)?conv[12]": 2},
    "alpha_pattern": {
        r".*(ff|up_blocks\.\d+).*": 3,
        r"^mid_block\..*": 1,
        r"to_[qk]": 9,
    },  # PEFT sorts them in the file
}


class Made(NamedTuple):
    """What another program made: a file, the host's MODEL of the same weights, the output without and with the LoRA."""

    path: Path
    model: ModelPatcher
    bare: torch.Tensor
    predicted: torch.Tensor


def by_lycoris(folder: Path, family: str, std: float = 0.2, **settings: Any) -> Made:
    """LyCORIS takes kohya's names. For SDXL kohya's U-Net has the names of the host's own."""
    model, theirs = small_pair(family)
    bare = run_host(model)
    unet = theirs if family == "SD1" else model.model.diffusion_model
    settings = {"network_module": "locon", "lora_dim": 4, "alpha": 2.0, **settings}
    network = LycorisNetworkKohya(None, unet, conv_lora_dim=2, conv_alpha=1.0, **settings)
    network.apply_to(None, unet, apply_text_encoder=False, apply_unet=True)
    randomize(network.parameters(), std)
    network.save_weights(str(folder / "a.safetensors"), None, {})
    predicted = run_diffusers(unet) if family == "SD1" else run_host(model)
    network.restore()
    return Made(folder / "a.safetensors", model, bare, predicted)


def by_peft(folder: Path, family: str, kind: type = LoraConfig, std: float = 0.1, **scales: Any) -> Made:
    """A whole PeftModel, as PEFT itself saves it: its scale is in another file."""
    model, unet = small_pair(family)
    wrapped = get_peft_model(unet, kind(**PEFT, **(scales or {"lora_alpha": 4})))
    randomize((p for name, p in wrapped.named_parameters() if re.search("lora_|hada_|lokr_", name)), std)
    wrapped.save_pretrained(folder)
    return Made(folder / "adapter_model.safetensors", model, run_host(model), run_diffusers(unet))


def by_diffusers(folder: Path, family: str, convert: Callable[[dict], dict], **settings: Any) -> Made:
    """As its training scripts save it, with the settings of PEFT in the file's metadata."""
    model, unet = small_pair(family)
    unet.add_adapter(LoraConfig(**PEFT, **OWN_SCALES, **settings))
    randomize((parameter for name, parameter in unet.named_parameters() if "lora_" in name), 0.1)
    tensors, metadata = convert(get_peft_model_state_dict(unet)), collate_metadata({"unet": unet})
    StableDiffusionPipeline.save_lora_weights(folder, tensors, **metadata)
    return Made(folder / "pytorch_lora_weights.safetensors", model, run_host(model), run_diffusers(unet))


def by_the_host(folder: Path, family: str, algorithm: str) -> Made:
    """The host's own trainer trains all that a model has, norms and biases too."""
    model, _ = small_pair(family)
    trained = model.clone()
    tensors, _ = nodes_train._setup_lora_adapters(trained, {}, algorithm, torch.float32, 4)
    randomize((tensor for key, tensor in tensors.items() if not key.endswith(".alpha")), 0.15)
    save_file({key: tensor.detach().contiguous() for key, tensor in tensors.items()}, folder / "a.safetensors")
    return Made(folder / "a.safetensors", model, run_host(model), run_host(trained))


def randomize(parameters: Iterable[nn.Parameter], std: float) -> None:
    torch.manual_seed(3)
    for parameter in parameters:
        nn.init.normal_(parameter, std=std)


MULTIPLIED: dict[str, Callable[..., Made]] = {  # whose effect can be multiplied in the file
    "kohya": by_lycoris,
    "LyCORIS with Tucker decomposition": lambda *to: by_lycoris(*to, use_tucker=True),
    "LyCORIS with norms": lambda *to: by_lycoris(*to, train_norm=True),
    "LyCORIS, whole layers": lambda *to: by_lycoris(*to, network_module="full"),
    "LyCORIS LoHa": lambda *to: by_lycoris(*to, 0.4, network_module="loha"),
    "LyCORIS LoHa with Tucker decomposition": lambda *to: by_lycoris(*to, 0.4, network_module="loha", use_tucker=True),
    "LyCORIS LoKr": lambda *to: by_lycoris(*to, network_module="lokr"),
    "LyCORIS LoKr, both decomposed": lambda *to: by_lycoris(*to, 0.4, **LOKR, decompose_both=True, lora_dim=1),
    "LyCORIS LoKr of a factor": lambda *to: by_lycoris(*to, 0.3, **LOKR, factor=4, lora_dim=2),
    "LyCORIS LoKr, unbalanced": lambda *to: by_lycoris(*to, 0.3, **LOKR, factor=4, unbalanced_factorization=True),
    "LyCORIS LoKr, both whole": lambda *to: by_lycoris(*to, **LOKR, full_matrix=True),
    "LyCORIS with rsLoRA": lambda *to: by_lycoris(*to, rs_lora=True),
    "PEFT": by_peft,
    "PEFT with patterns": lambda *to: by_peft(*to, **OWN_SCALES),
    "PEFT with regular expressions": lambda *to: by_peft(*to, **EXPRESSIONS),
    "PEFT with rsLoRA": lambda *to: by_peft(*to, **OWN_SCALES, use_rslora=True),
    "PEFT LoHa": lambda *to: by_peft(*to, kind=LoHaConfig, alpha=6, alpha_pattern={"conv1": 1}, std=0.4),
    "PEFT LoKr": lambda *to: by_peft(*to, kind=LoKrConfig, alpha=6, alpha_pattern={"conv1": 1}, std=0.2),
    "diffusers in PEFT's names": lambda *to: by_diffusers(*to, dict),
    "diffusers": lambda *to: by_diffusers(*to, convert_state_dict_to_diffusers),
    "diffusers with rsLoRA": lambda *to: by_diffusers(*to, convert_state_dict_to_diffusers, use_rslora=True),
    "the host's LoRA": lambda *to: by_the_host(*to, "LoRA"),
    "the host's LoHa": lambda *to: by_the_host(*to, "LoHa"),
    "the host's LoKr": lambda *to: by_the_host(*to, "LoKr"),
}
UNPLACED = {"LyCORIS LoKr with Tucker decomposition": lambda *to: by_lycoris(*to, 0.2, **LOKR, use_tucker=True)}
ROTATIONS = {
    "LyCORIS OFT": lambda *to: by_lycoris(*to, network_module="diag-oft"),
    "the host's OFT": lambda *to: by_the_host(*to, "OFT"),
}
MAKERS = MULTIPLIED | ROTATIONS | UNPLACED
CASES = [(name, "SD1") for name in MULTIPLIED | ROTATIONS]
CASES += [(name, "SDXL") for name in ("kohya", "LyCORIS LoKr", "PEFT", "diffusers", "the host's LoRA")]


@pytest.fixture(scope="module")
def make(tmp_path_factory) -> Iterator[Callable[[str, str], Made]]:
    """Makes a file once for all tests."""
    kinds = ["SpatialTransformer", "ResBlock", "Downsample", "Upsample"]  # the host's names for kohya's classes
    targets = [*LycorisNetworkKohya.UNET_TARGET_REPLACE_MODULE, *kinds]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LycorisNetworkKohya, "UNET_TARGET_REPLACE_NAME", [])  # with both lists it takes a layer twice
        patch.setattr(LycorisNetworkKohya, "UNET_TARGET_REPLACE_MODULE", targets)
        yield cache(lambda name, family: MAKERS[name](tmp_path_factory.mktemp("made"), family))


@pytest.mark.parametrize("name, family", CASES)
def test_a_file_has_the_effect_that_it_had_where_it_was_made(make, caplog, name, family):
    made = make(name, family)
    predicted = run_host(with_lora(made.model, load_lora(made.path)))
    assert (made.predicted - made.bare).abs().mean() > 0.1
    torch.testing.assert_close(predicted, made.predicted, rtol=0, atol=1e-3)
    assert torch.equal(run_host(made.model), made.bare)
    assert not [record.message for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("name", MULTIPLIED)
def test_a_file_saved_at_a_strength_has_that_much_of_the_effect(make, tmp_path, name):
    made = make(name, "SD1")
    lora = load_lora(made.path)
    save_lora(tmp_path / "b.safetensors", lora, "fp32", -0.7, {})
    expected = made.model.clone()
    expected.add_patches(comfy.lora.load_lora(lora, lora_keys(made.model)), -0.7)
    predicted = run_host(with_lora(made.model, load_lora(tmp_path / "b.safetensors")))
    torch.testing.assert_close(predicted, run_host(expected), rtol=0, atol=1e-3)
    assert (predicted - made.predicted).abs().mean() > 0.05


@pytest.mark.parametrize("name", ROTATIONS)
def test_weights_that_cannot_be_scaled_are_not_saved_at_another_strength(make, tmp_path, name):
    lora = load_lora(make(name, "SD1").path)
    save_lora(tmp_path / "b.safetensors", lora, "fp32", 1.0, {})
    with pytest.raises(ValueError, match="oft_blocks.*cannot be changed.*strength 1"):
        save_lora(tmp_path / "b.safetensors", lora, "fp32", 2.0, {})
    assert load_lora(tmp_path / "b.safetensors").keys() == lora.keys()


@pytest.fixture
def kohyas(make) -> tuple[ModelPatcher, dict[str, torch.Tensor]]:
    made = make("kohya", "SD1")
    return made.model, dict(load_lora(made.path))


TEXT = [
    "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight",
    "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha",
]
TEXT += ["lora_te2_text_projection.lora_up.weight", "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight"]
TEXT += ["text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_B.weight", "bundle_emb.star.string_to_param.*"]
TEXT += ["text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.lora_up.weight"]


def test_text_encoder_weights_are_ignored_for_the_model(kohyas):
    model, lora = kohyas
    plain = with_lora(model, lora)
    with_text = with_lora(model, {**lora, **{key: torch.zeros(2, 2) for key in TEXT}})
    assert with_text.patches.keys() == plain.patches.keys()
    assert not with_lora(model, {key: torch.zeros(2, 2) for key in TEXT}).patches


def test_a_second_lora_adds_to_the_first(kohyas):
    model, lora = kohyas
    twice = model.clone()
    twice.add_patches(comfy.lora.load_lora(lora, lora_keys(model)), 2.0)
    torch.testing.assert_close(run_host(with_lora(with_lora(model, lora), lora)), run_host(twice), rtol=0, atol=1e-3)


@pytest.mark.parametrize("added", ["lora_up.weight", "alpha", "diff", "hada_w3"])
def test_a_layer_that_the_model_does_not_have_is_named(kohyas, added):
    model, lora = kohyas
    lora[f"lora_unet_down_blocks_7_attentions_0_proj_in.{added}"] = torch.zeros(2, 2)
    with pytest.raises(
        RuntimeError, match="1 of the LoRA's 120 layers .*lora_unet_down_blocks_7_attentions_0_proj_in[^.]"
    ):
        with_lora(model, lora)


def test_an_unknown_tensor_is_named(kohyas):
    model, lora = kohyas
    lora["lora_unet_mid_block_attentions_0_proj_in.lora_new.weight"] = torch.zeros(2, 2)
    with pytest.raises(RuntimeError, match="1 of the LoRA's 119 layers .*lora_unet_mid_block_attentions_0_proj_in"):
        with_lora(model, lora)


def test_a_bias_that_the_layer_does_not_have_is_named(kohyas):
    model, lora = kohyas
    lora["lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.diff_b"] = torch.zeros(64)
    with pytest.raises(RuntimeError, match=r"1 of .*middle_block.1.transformer_blocks.0.attn1.to_q.bias"):
        with_lora(model, lora)


def test_a_lora_of_other_widths_is_refused(kohyas):
    """SD2's layers are called as SD1's are, and those that read the text are wider."""
    model, lora = kohyas
    wide = {key: torch.zeros(4, 32) for key in lora if "attn2_to_k.lora_down" in key}
    with pytest.raises(RuntimeError, match=rf"{len(wide)} of the LoRA's 119 layers .*attn2.to_k"):
        with_lora(model, {**lora, **wide})
