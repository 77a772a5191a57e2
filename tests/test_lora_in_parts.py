"""Files with q, k and v of their own, for models that have them in one matrix: training starts with the same effect."""

from __future__ import annotations

import re

import comfy.lora
import comfy.utils
import folder_paths
import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from pack.nodes.host.lora_import import create_network
from pack.nodes.host.lora_keys import with_lora
from pack.trainer.config import NetworkConfig
from pack.trainer.lora_file import load_lora
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from tiny_host import TinyHost
from tiny_models import load_family

# How programs begin the keys for a family: ai-toolkit and diffusers, OneTrainer, SimpleTuner with LyCORIS.
STYLES = {
    "Flux": ("transformer.", "lora_transformer_", "lycoris_"),
    "Chroma": ("transformer.", "lora_transformer_"),
    "Z-Image": ("diffusion_model.layers.", "transformer.", "lycoris_"),
    "SD3": ("transformer.", "lora_transformer_", "lycoris_"),
}
CASES = [(family, style) for family, styles in STYLES.items() for style in styles]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return {name: load_family(name, tmp_path_factory.mktemp("tiny")).model for name in STYLES}


def parts(model, style: str) -> dict[str, tuple[tuple, tuple[int, int]]]:
    """The keys of a style for parts of layers and their neighbors, each with its target and the size of the part."""
    found, taken, weights = {}, set(), model.model.state_dict()
    for key, target in comfy.lora.model_lora_keys_unet(model.model, {}).items():
        name, offset, *_ = (target, None) if isinstance(target, str) else (*target, None)
        if not key.startswith(style) or name not in weights or weights[name].ndim != 2 or target in taken:
            continue
        if name.startswith("diffusion_model.final") or re.search(r"qkv|linear1", key.removeprefix(style)):
            continue
        size = list(weights[name].shape)
        if offset:
            size[offset[0]] = offset[2]
        taken.add(target)
        found[key] = (target, tuple(size))
    return found


def lora_for(model, style: str, kind: str = "lora") -> dict[str, torch.Tensor]:
    """A LoRA, LoHa or LoKr with ranks and alphas that change from part to part; some have no alpha. mixed: all three"""
    rng, lora = torch.Generator().manual_seed(0), {}
    draw = lambda *shape: 0.3 * torch.randn(shape, generator=rng)  # noqa: E731
    for number, (key, (_, (rows, columns))) in enumerate(parts(model, style).items()):
        of = ("lokr", "lora", "loha")[number % 3] if kind == "mixed" else kind
        shapes = shapes_of(of, rows, columns, rank=2 + number % 2)
        lora |= {f"{key}.{name}": draw(*shape) for name, shape in shapes.items()}
        if number % 3:
            lora[f"{key}.alpha"] = torch.tensor(float(number % 5 + 1))
    return lora


def effect(model, lora) -> dict[str, torch.Tensor]:
    """What a LoRA adds to each weight, as the host computes it."""
    patches = with_lora(model, lora).patches
    shapes = {key: comfy.utils.get_attr(model.model, key).shape for key in patches}
    return {key: comfy.lora.calculate_weight(patches[key], torch.zeros(shapes[key]), key) for key in patches}


def begin(model, lora):
    return create_network(None, lora, 0, model, None, model.model.diffusion_model)


def assert_same_effect(model, lora) -> None:
    before, after = effect(model, lora), effect(model, begin(model, lora).weights())
    assert before.keys() == after.keys()
    for key in before:
        assert before[key].abs().max() > 0.01
        torch.testing.assert_close(after[key], before[key], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["lora", "loha"])
@pytest.mark.parametrize("family, style", CASES)
def test_parts_are_joined_with_the_effect_that_the_host_gives_them(models, family, style, kind):
    model, keys = models[family], parts(models[family], style)
    assert len([target for target, _ in keys.values() if not isinstance(target, str) and target[1]]) >= 6
    assert_same_effect(model, lora_for(model, style, kind))


def test_a_part_alone_leaves_the_rest_of_its_layer_alone(models):
    model = models["Flux"]
    lora = lora_for(model, "transformer.")
    alone = {
        key: tensor for key, tensor in lora.items() if key.startswith("transformer.transformer_blocks.0.attn.to_k.")
    }
    assert_same_effect(model, alone)
    (added,) = effect(model, begin(model, alone).weights()).values()
    assert not added[:128].any() and added[128:256].any() and not added[256:].any()


def test_parts_and_the_whole_of_a_layer_add_up(models):
    model = models["Flux"]
    lora = lora_for(model, "transformer.")
    whole = "diffusion_model.double_blocks.0.img_attn.qkv"
    lora |= {f"{whole}.lora_A.weight": 0.3 * torch.randn(5, 128), f"{whole}.lora_B.weight": 0.3 * torch.randn(384, 5)}
    assert_same_effect(model, lora)


def flux_of_diffusers() -> tuple[FluxTransformer2DModel, LoraConfig]:
    sizes = {"num_attention_heads": 1, "attention_head_dim": 128, "num_layers": 2, "num_single_layers": 2}
    theirs = FluxTransformer2DModel(**sizes, joint_attention_dim=24, pooled_projection_dim=32, in_channels=64)
    targets = ["to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "proj_mlp", "proj_out", "to_out.0"]
    return theirs, LoraConfig(r=2, lora_alpha=4, target_modules=targets)


def randomize(theirs: torch.nn.Module) -> None:
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)


def test_flux_as_diffusers_trains_and_saves_it(models, tmp_path):
    theirs, config = flux_of_diffusers()
    theirs.add_adapter(config)
    randomize(theirs)
    FluxPipeline.save_lora_weights(tmp_path, get_peft_model_state_dict(theirs))
    lora = load_lora(tmp_path / "pytorch_lora_weights.safetensors")
    assert len(lora) == sum("lora_" in name for name, _ in theirs.named_parameters()) > 40
    assert_same_effect(models["Flux"], lora)


def test_flux_as_peft_saves_it(models, tmp_path):
    theirs, config = flux_of_diffusers()
    wrapped = get_peft_model(theirs, config)
    randomize(theirs)
    wrapped.save_pretrained(tmp_path)
    lora = load_lora(tmp_path / "adapter_model.safetensors")
    added = effect(models["Flux"], lora)["diffusion_model.double_blocks.0.img_attn.qkv.weight"]
    to_k = theirs.transformer_blocks[0].attn.to_k.get_delta_weight("default").detach()
    torch.testing.assert_close(added[128:256], to_k)
    assert_same_effect(models["Flux"], lora)


@pytest.mark.parametrize("kind", ["lokr", "mixed"])
@pytest.mark.parametrize("family, style", CASES)
def test_lokrs_stay_apart_under_their_own_keys(models, family, style, kind):
    model, lora = models[family], lora_for(models[family], style, kind)
    network, added = begin(model, lora), effect(model, lora)
    after = network.weights()
    kept = {key for key in after if "lokr" in key and not key.startswith("lora_unet_")}
    assert len(kept) >= 4 and kept <= lora.keys()
    for key, delta in effect(model, after).items():
        torch.testing.assert_close(delta, added[key], rtol=1e-5, atol=1e-5)
    assert network.size()[0] > len(added)  # several adapters on one layer


@pytest.mark.parametrize("strength", [1.0, -0.5])
@pytest.mark.parametrize("kind", ["lokr", "mixed"])
@pytest.mark.parametrize("family", ["Flux", "SD3"])
def test_a_layer_in_training_adds_what_the_host_adds_to_its_weight(models, family, kind, strength):
    """Each layer is run alone, so that no other one hides a difference; SD3 has a layer whose rows are in another order."""
    model = models[family]
    lora = lora_for(model, "lycoris_", kind)
    network, rng = begin(model, lora), torch.Generator().manual_seed(1)
    for key, delta in effect(model, lora).items():
        layer = model.model.get_submodule(key.removesuffix(".weight"))
        x = torch.randn(2, 3, delta.shape[1], generator=rng)
        with torch.no_grad():
            bare = layer(x)
            with network.injected(), network.scaled(strength):
                adapted = layer(x)
        torch.testing.assert_close(adapted - bare, strength * (x @ delta.T), rtol=1e-3, atol=1e-2)


def test_a_lokr_of_parts_trains_and_resumes(models, tmp_path, monkeypatch):
    tiny = TinyHost(tmp_path, "Flux")
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    lora = lora_for(tiny.model, "lycoris_", "lokr")
    *_, trained, loss = tiny.train("copy machine", lora=lora, network=None)
    parts = [key for key in lora if re.search(r"_(to|add)_[qkv](_proj)?\.lokr_w1$", key)]
    assert len(parts) >= 12 and not any(torch.equal(trained[key], lora[key]) for key in parts)
    *_, longer, loss = tiny.train("copy machine", lora=trained, network=None, steps=6)
    assert len(loss["loss"]) == 6 and longer.keys() == trained.keys()


def test_a_lokr_of_parts_does_not_fit_lora_network(models):
    lora = lora_for(models["Flux"], "lycoris_", "lokr")
    config = NetworkConfig(network_type="lokr")
    unet = models["Flux"].model.diffusion_model
    with pytest.raises(ValueError, match=r"img_attn.qkv \(lycoris_.*disconnect LoRA Network"):
        create_network(config, lora, 0, models["Flux"], None, unet)


def test_a_dora_of_parts_is_refused_in_a_sentence(models):
    key = "transformer.transformer_blocks.0.attn.to_q"
    lora = {f"{key}.{name}": torch.ones(shape) for name, shape in shapes_of("lora", 128, 128).items()}
    lora[f"{key}.dora_scale"] = torch.ones(1, 128)
    with pytest.raises(ValueError, match=r"its layer double_blocks.0.img_attn.qkv is in parts.*DoRA.*Load LoRA and"):
        begin(models["Flux"], lora)


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr"])
@pytest.mark.parametrize("key", ["diffusion_model.img_in", "transformer.transformer_blocks.0.attn.to_q"])
def test_a_file_for_layers_of_other_sizes_is_refused(models, kind, key):
    """One of half the rows and twice the columns has as many values: the host would reshape it."""
    columns, rows = (64, 128) if "img_in" in key else (128, 128)
    for given in ((rows, columns + 2), (rows // 2, columns * 2), (rows * 2, columns)):
        lora = {f"{key}.{name}": torch.ones(shape) for name, shape in shapes_of(kind, *given).items()}
        with pytest.raises(RuntimeError, match=rf"1 of the LoRA's 1 layers do not match this model.*\({kind}\)"):
            with_lora(models["Flux"], lora)
        with pytest.raises(ValueError, match="Training cannot start from this LoRA"):
            begin(models["Flux"], lora)


def shapes_of(kind: str, rows: int, columns: int, rank: int = 2) -> dict[str, tuple[int, int]]:
    if kind == "lora":
        return {"lora_up.weight": (rows, rank), "lora_down.weight": (rank, columns)}
    if kind == "loha":
        return {f"hada_w{n}_{side}": (rows, rank) if side == "a" else (rank, columns) for n in (1, 2) for side in "ab"}
    if rank == 2:
        return {"lokr_w1": (2, 2), "lokr_w2": (rows // 2, columns // 2)}
    return {"lokr_w1": (4, 2), "lokr_w2_a": (rows // 4, rank), "lokr_w2_b": (rank, columns // 2)}
