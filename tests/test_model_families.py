"""The training nodes on every family of image models that the host has."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import comfy.lora
import comfy.ops
import comfy.sample
import comfy.sd
import comfy.supported_models
import comfy.utils
import folder_paths
import pytest
import torch
from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from pack.nodes import host
from pack.nodes.train_addift import TrainADDifT
from pack.nodes.train_copy_machine import TrainCopyMachine
from pack.nodes.train_difference import TrainDifference
from pack.nodes.train_ileco import TrainILECO
from pack.nodes.train_lora import TrainLoRA
from pack.nodes.train_slider import TrainSlider
from pack.trainer.blocks import block_id, choose_layers
from pack.trainer.config import NETWORK_TYPES, NetworkConfig
from pack.trainer.dataset.training_image import TrainingImage
from pack.trainer.lora_file import save_lora
from pack.trainer.network import LoRANetwork
from tiny_families import FAMILIES
from tiny_models import HEIGHT, WIDTH, Loaded, TinyCLIP, load_family, make_prompt

pytestmark = pytest.mark.usefixtures("one_thread")

BLOCKS = {
    "SD1": "IN01 M00 OUT00 OUT01",
    "SD2": "IN01 M00 OUT00 OUT01",
    "SDXL": "IN04 IN05 IN07 IN08 M00 OUT00 OUT01 OUT02 OUT03 OUT04 OUT05",
    "SD3": "joint_blocks.00 joint_blocks.01",
    "Flux": "double_blocks.00 double_blocks.01 single_blocks.00 single_blocks.01",
    "Flux2": "double_blocks.00 double_blocks.01 single_blocks.00 single_blocks.01",
    "Chroma": "double_blocks.00 double_blocks.01 single_blocks.00 single_blocks.01",
    "Lumina2": "context_refiner.00 layers.00 layers.01 noise_refiner.00",
    "Z-Image": "context_refiner.00 layers.00 layers.01 noise_refiner.00",
    "Qwen-Image": "transformer_blocks.00 transformer_blocks.01",
    "Wan": "blocks.00 blocks.01",
    "Anima": "blocks.00 blocks.01",
    "Krea 2": "blocks.00 blocks.01",
}
ATTENTIONS = {"SD1": ("attn2", "attn1"), "SD2": ("attn2", "attn1"), "SDXL": ("attn2", "attn1")}
ATTENTIONS |= {name: ("cross_attn", "self_attn") for name in ("Wan", "Anima")}  # cross, self; others have one for both
# What the last block makes of the prompt goes nowhere, and so do these layers of it.
IDLE = {"Qwen-Image": ("attn_add_q_proj", "attn_to_add_out", "txt_mlp_net_0_proj", "txt_mlp_net_2")}


class Trained(NamedTuple):
    """What a training gives, and a sample of the model from before."""

    model: Any
    lora: dict[str, torch.Tensor]
    losses: list[float]
    sample_before: torch.Tensor


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory) -> Loaded:
    return load_family(request.param, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def trained(family, tmp_path_factory) -> Trained:
    """A LoRA of one picture."""
    before = sample(family, family.model)
    images = [TrainingImage(family.picture[0], "red", None, "a", (WIDTH, HEIGHT))]
    inputs = {"clip": TinyCLIP(family.name), "training_images": images, "steps": 12, "learning_rate": 1e-2}
    model, _, lora, loss = train(TrainLoRA, family, tmp_path_factory.mktemp("output"), vae=family.vae, **inputs)
    return Trained(model, lora, loss["loss"], before)


def train(node: Any, family: Loaded, folder: Path, **inputs: Any) -> tuple:
    """Run a training node as the executor does, on no page and with an output folder of its own."""
    network = NetworkConfig(rank=4, alpha=4)
    values = {"model": family.model, "network": network, "steps": 2, "batch_size": 1, "learning_rate": 1e-3, "seed": 3}
    values |= inputs
    if node is TrainADDifT:  # takes lists
        values = {name: [value] for name, value in values.items()}
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(node, "hidden", SimpleNamespace(unique_id="1", prompt={}), raising=False)
        patch.setattr(folder_paths, "output_directory", str(folder))
        return node.execute(**values).args


def sample(family: Loaded, model: Any) -> torch.Tensor:
    noise, prompts = family.draw_latents(1), [make_prompt(family.name, text) for text in ("red", "")]
    with torch.inference_mode():
        return comfy.sample.sample(
            model, noise, 2, 2.0, "euler", "simple", *prompts, torch.zeros_like(noise), disable_pbar=True, seed=3
        ).clone()


def denoising_loss(family: Loaded, model: Any) -> float:
    """Return the loss on the family's picture at fixed timesteps and noise."""
    (latent,) = host.encode_images(family.vae, family.model, [family.picture[0]])
    x0 = torch.stack([latent] * 6)
    prompts = host.with_guidance(family.model, family.read_prompts(*[("red", 5)] * 6), 1.0)  # that of the training
    with host.open_model(model) as (denoiser, _), torch.no_grad():
        sigma = denoiser.sigma_at(torch.linspace(100, 900, 6))
        x_t = denoiser.add_noise(x0, family.draw_latents(6), sigma)
        target = denoiser.parameterization.target(x_t, x0, sigma)
        return (denoiser.predict(x_t, sigma, prompts) - target).square().mean().item()


def adaptable_layers(family: Loaded, **config: Any) -> dict[str, torch.nn.Module]:
    return choose_layers(family.model.model.diffusion_model, NetworkConfig(**config))


def test_an_image_is_learned(family, trained):
    assert len(trained.losses) == 12 and all(math.isfinite(loss) for loss in trained.losses)
    assert denoising_loss(family, trained.model) < 0.95 * denoising_loss(family, family.model)


def test_every_layer_that_reaches_the_prediction_learns(family, trained):
    idle = {key for key, tensor in trained.lora.items() if key.endswith("lora_up.weight") and not tensor.any()}
    assert idle == {f"lora_unet_transformer_blocks_1_{name}.lora_up.weight" for name in IDLE.get(family.name, ())}


def test_the_lora_changes_samples_and_leaves_the_model_as_it_was(family, trained):
    assert (sample(family, trained.model) - trained.sample_before).abs().max() > 0.01
    assert torch.equal(sample(family, family.model), trained.sample_before)


def test_the_host_places_every_layer_of_a_saved_lora(family, trained, tmp_path):
    save_lora(tmp_path / "a.safetensors", trained.lora, "fp16", 1.0, {})
    from_file = comfy.utils.load_torch_file(str(tmp_path / "a.safetensors"))
    patched, _ = comfy.sd.load_lora_for_models(family.model, None, from_file, 1.0, 0.0)
    assert set(patched.patches) == {f"diffusion_model.{layer}.weight" for layer in adaptable_layers(family)}
    assert all(len(patches) == 1 for patches in patched.patches.values())


def test_kohyas_names_for_sd1_at_its_full_depth_are_the_hosts():
    depths = {"num_res_blocks": [2] * 4, "channel_mult": [1, 2, 4, 4], "transformer_depth": [1] * 6 + [0] * 2}
    sizes = {**FAMILIES["SD1"].sizes, **depths, "transformer_depth_output": [1] * 9 + [0] * 3}
    network = UNetModel(**sizes, device="meta", operations=comfy.ops.disable_weight_init)
    weights = {f"diffusion_model.{key}": tensor for key, tensor in network.state_dict().items()}
    model = SimpleNamespace(model_config=comfy.supported_models.SD15(sizes), state_dict=lambda: weights)
    key_of, known = host.lora_key_of(SimpleNamespace(model=model)), comfy.lora.model_lora_keys_unet(model, {})
    layers = choose_layers(network, NetworkConfig(network_type="c3lier"))
    assert len(layers) == 192 + 50 and all(known[key_of(name)] == f"diffusion_model.{name}.weight" for name in layers)
    last = key_of("output_blocks.11.1.transformer_blocks.0.attn1.to_q")
    assert last == "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_attn1_to_q"


def test_the_other_methods_train(family, tmp_path):
    other = family.picture.clone()
    other[:, :16] = 1 - other[:, :16]
    prompt, blue = make_prompt(family.name, "red"), make_prompt(family.name, "blue", tokens=7)
    size = {"width": WIDTH, "height": HEIGHT, "denoise_steps": 2, "guidance": 1.0}
    results = [train(TrainILECO, family, tmp_path, original=prompt, target=blue, **size)]
    picture = {"vae": family.vae, "conditioning": prompt}
    results.append(train(TrainCopyMachine, family, tmp_path, image=family.picture, **picture))
    copy = results[-1][1]
    results.append(train(TrainDifference, family, tmp_path, image=other, copy_machine=copy, **picture))
    prompts = {"original_conditioning": prompt, "target_conditioning": blue}
    ways = {"swap": False, "difference_mask": True, "alternation_ratio": 1.0, "bands": 10}
    pair = {"vae": family.vae, "original": family.picture, "target": other}
    results.append(train(TrainADDifT, family, tmp_path, **pair, **prompts, **ways))
    ends = {"positive": blue, "negative": prompt, "target": make_prompt(family.name, "green")}
    results.append(train(TrainSlider, family, tmp_path, **ends, **size))
    for model, lora, loss in results:
        assert len(loss["loss"]) == 2 and all(math.isfinite(value) and value > 0 for value in loss["loss"])
        assert len(model.patches) == sum(key.endswith(".alpha") for key in lora) == len(adaptable_layers(family))
        assert sum(tensor.any().item() for key, tensor in lora.items() if key.endswith("lora_up.weight")) > 10
    assert not all(torch.equal(copy[key], results[2][1][key]) for key in copy)


@pytest.mark.parametrize("storage", [{"dtype": torch.float8_e4m3fn}, {"quantized": True}], ids=["cast", "quantized"])
def test_a_model_in_8_bits_learns_and_stays_as_it_was(storage, tmp_path):
    family = load_family("Flux", tmp_path, **storage)
    before = sample(family, family.model)
    inputs = {"vae": family.vae, "image": family.picture, "conditioning": make_prompt("Flux", "red")}
    model, lora, _ = train(TrainCopyMachine, family, tmp_path, steps=8, learning_rate=1e-2, **inputs)
    assert len(model.patches) == len(adaptable_layers(family)) == 26
    assert denoising_loss(family, model) < 0.95 * denoising_loss(family, family.model)
    assert (sample(family, model) - before).abs().max() > 0.01
    assert torch.equal(sample(family, family.model), before)


@pytest.mark.parametrize("network_type", NETWORK_TYPES)
@pytest.mark.parametrize("family", ["SD1", "Flux"], indirect=True)
def test_a_lora_of_each_type_does_on_the_model_and_from_a_file_what_it_did_in_training(family, network_type, tmp_path):
    config = NetworkConfig(network_type, rank=4, alpha=4)
    inputs = {"vae": family.vae, "image": family.picture, "conditioning": make_prompt(family.name, "red")}
    rate = 1e-1 if network_type == "lokr" else 1e-2
    model, lora, _ = train(TrainCopyMachine, family, tmp_path, network=config, learning_rate=rate, **inputs)
    save_lora(tmp_path / "a.safetensors", lora, "fp32", 1.0, {})
    from_file = comfy.utils.load_torch_file(str(tmp_path / "a.safetensors"))
    loaded, _ = comfy.sd.load_lora_for_models(family.model, None, from_file, 1.0, 0.0)
    layers = adaptable_layers(family, network_type=network_type)
    assert len(loaded.patches) == len(layers)
    network = LoRANetwork.create(layers, config, host.lora_key_of(family.model), seed=0)
    tensors = [tensor for key, tensor in lora.items() if not key.endswith("alpha")]
    for parameter, tensor in zip(network.parameters(), tensors, strict=True):
        parameter.data = tensor.clone()
    bare, merged, from_disk = (predict(family, each) for each in (family.model, model, loaded))
    with network.injected():
        adapted = predict(family, family.model)
    assert (adapted - bare).abs().max() > 0.01
    torch.testing.assert_close(merged, adapted, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(from_disk, merged)


def predict(family: Loaded, model: Any) -> torch.Tensor:
    with host.open_model(model) as (denoiser, _), torch.no_grad():
        return denoiser.predict(family.draw_latents(1), torch.tensor([0.5]), family.read_prompts(("red", 5)))


def test_an_unknown_block_gives_an_error_that_lists_the_blocks_of_the_model(family, tmp_path):
    blocks = BLOCKS[family.name].split()
    assert sorted({block_id(layer) for layer in adaptable_layers(family)}) == blocks
    assert {block_id(layer) for layer in adaptable_layers(family, blocks=f"{blocks[0]}, {blocks[-1]}")} == {
        blocks[0],
        blocks[-1],
    }
    inputs = {"vae": family.vae, "image": family.picture, "conditioning": make_prompt(family.name, "red")}
    with pytest.raises(ValueError, match=f"no block 'IN99'.* {', '.join(blocks)}"):
        train(TrainCopyMachine, family, tmp_path, network=NetworkConfig(blocks="IN99"), **inputs)


def test_an_element_is_one_of_two_attentions_or_refused_where_there_is_one(family):
    for element, attention in zip(("CrossAttention", "SelfAttention"), ATTENTIONS.get(family.name, ("", ""))):
        if attention:
            chosen = adaptable_layers(family, element=element)
            assert chosen.keys() == {layer for layer in adaptable_layers(family) if f".{attention}." in layer} != set()
        else:
            with pytest.raises(ValueError, match=f"no separate {element}.*Set element to Full"):
                adaptable_layers(family, element=element)


def test_the_second_attention_of_sd35_is_not_a_cross_attention():
    sizes = {**FAMILIES["SD3"].sizes, "x_block_self_attn_layers": [0, 1]}
    network = MMDiT(**sizes, device="meta", operations=torch.nn)
    assert any("attn2" in layer for layer in choose_layers(network, NetworkConfig()))
    with pytest.raises(ValueError, match="no separate CrossAttention"):
        choose_layers(network, NetworkConfig(element="CrossAttention"))
