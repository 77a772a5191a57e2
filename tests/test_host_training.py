"""Training inside the host on the demonstration model: what comes out, and that what went in stays as it was."""

from __future__ import annotations

import gc
import random

import comfy.lora
import comfy.model_management
import comfy.sample
import comfy.sd
import pytest
import torch
from comfy.model_management import InterruptProcessingException
from pack.nodes import host
from pack.tools.shapes.scenes import random_scene
from pack.tools.shapes.train_shapes import pixels
from pack.trainer.blocks import choose_layers
from pack.trainer.config import NETWORK_TYPES, NetworkConfig, TrainingConfig
from pack.trainer.dataset.batches import draw_batches
from pack.trainer.lora_file import save_lora
from pack.trainer.methods.denoise import Denoise
from pack.trainer.network import LoRANetwork
from pack.trainer.training_example import TrainingExample
from train_job import train_job

CAPTIONS = ["a red circle", "blue square", "a green triangle on a black background", "yellow"]


@pytest.fixture(scope="module")
def examples(shapes) -> list[TrainingExample]:
    model, clip, vae = shapes
    rng = random.Random(0)
    pictures = list(pixels([random_scene(rng).draw() for _ in CAPTIONS]).movedim(1, -1))
    with torch.inference_mode():  # as the executor runs nodes
        latents = host.encode_images(vae, model, pictures)
        conditionings = host.HostTextEncoder(clip).encode(CAPTIONS)
    return [TrainingExample(*pair) for pair in zip(latents, conditionings)]


def run_training(
    model, examples, on_step=lambda _: None, network=NetworkConfig(rank=4), save=lambda _: None, **settings
):
    config = TrainingConfig(**{"steps": 4, "batch_size": 2, "learning_rate": 1e-3, "seed": 5, **settings})
    batches = draw_batches(
        [e.latent.shape for e in examples], config.batch_size, torch.Generator().manual_seed(config.seed)
    )
    with torch.inference_mode():
        job = host.Job(model, network, config, Denoise(examples, batches, config), {})
        return train_job(job, on_step, save)


@pytest.fixture(scope="module")
def prompts(shapes) -> tuple:
    """Positive and negative CONDITIONING."""
    clip = shapes[1]
    with torch.inference_mode():
        return tuple(clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("a red circle", ""))


def sample(model, prompts, steps: int = 4) -> torch.Tensor:
    with torch.inference_mode():
        latent = torch.zeros(1, 4, 8, 8)
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(3))
        return comfy.sample.sample(
            model, noise, steps, 4.0, "euler", "normal", *prompts, latent, disable_pbar=True, seed=3
        ).clone()


def everything(shapes) -> dict[str, torch.Tensor]:
    """The bytes of all parameters and buffers of MODEL, CLIP and VAE: those that are in no file, such as a CLIP's text projection,
    may be NaN."""
    model, clip, vae = shapes
    modules = {"model": model.model, "clip": clip.cond_stage_model, "vae": vae.first_stage_model}
    return {
        f"{name}.{key}": tensor.flatten().view(torch.uint8).clone()
        for name, module in modules.items()
        for key, tensor in module.state_dict().items()
    }


def flags(shapes) -> dict:
    modules = [
        m for part in (shapes[0].model, shapes[1].cond_stage_model, shapes[2].first_stage_model) for m in part.modules()
    ]
    return {
        "in_training": comfy.model_management.in_training,
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "hooks": sum(len(m._forward_hooks) for m in modules),
        "patched": sum("forward" in vars(m) for m in modules),
        "training": sum(m.training for m in modules),
        "needs grad": sum(p.requires_grad for m in modules for p in m.parameters(False)),
        "rng": torch.get_rng_state().tolist(),
    }


class Broken(Exception):
    pass


def raise_at(step, error):
    def on_step(reached):
        if reached.number == step:
            raise error

    return on_step


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize("ending", ["finished", "interrupted", "failed", "interrupted in the first forward pass"])
def test_model_clip_and_vae_are_bit_for_bit_what_they_were(shapes, examples, prompts, ending, gradient_checkpointing):
    model = shapes[0]
    picture, values, before = sample(model, prompts), everything(shapes), flags(shapes)
    settings = {"gradient_checkpointing": gradient_checkpointing}
    if ending == "finished":
        run_training(model, examples, **settings)
    elif ending == "interrupted in the first forward pass":
        handle = model.model.diffusion_model.out[2].register_forward_pre_hook(raise_in_hook)
        with pytest.raises(InterruptProcessingException):
            run_training(model, examples, **settings)
        handle.remove()
    else:
        error = InterruptProcessingException if ending == "interrupted" else Broken
        with pytest.raises(error):
            run_training(model, examples, raise_at(2, error()), **settings)
    assert flags(shapes) == before
    now = everything(shapes)
    assert now.keys() == values.keys() and all(torch.equal(now[key], value) for key, value in values.items())
    assert torch.equal(sample(model, prompts), picture)


def raise_in_hook(*_):
    raise InterruptProcessingException


def test_four_captions_in_a_batch_are_four_single_predictions(shapes, examples):
    with host.open_model(shapes[0]) as (denoiser, _), torch.no_grad():
        x0 = torch.stack([e.latent for e in examples])
        sigma = torch.tensor([0.1, 1.0, 4.0, 14.0])
        x_t = denoiser.add_noise(x0, torch.randn(x0.shape, generator=torch.Generator().manual_seed(0)), sigma)
        conditions = [e.conditioning for e in examples]
        together = denoiser.predict(x_t, sigma, conditions)
        single = [denoiser.predict(x_t[i : i + 1], sigma[i : i + 1], [conditions[i]]) for i in range(4)]
        torch.testing.assert_close(together, torch.cat(single), rtol=1e-4, atol=1e-4)
        swapped = denoiser.predict(x_t, sigma, conditions[::-1])
        assert (swapped - together).abs().max() > 0.05  # the captions do matter


def test_captions_of_unequal_length_keep_their_places_in_the_batch(shapes, examples):
    long = host.HostTextEncoder(shapes[1]).encode(["a red circle, " * 120])[0]
    assert long[0].shape[1] > examples[0].conditioning[0].shape[1] * 4  # the host repeats up to 4 times
    conditions = [examples[0].conditioning, long, examples[1].conditioning]
    with host.open_model(shapes[0]) as (denoiser, _), torch.no_grad():
        x_t, sigma = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([1.0, 2.0, 3.0])
        together = denoiser.predict(x_t, sigma, conditions)
        single = [denoiser.predict(x_t[i : i + 1], sigma[i : i + 1], [conditions[i]]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(single), rtol=1e-4, atol=1e-4)


def test_the_prediction_is_the_networks_own_output_for_sd1(shapes, examples):
    """eps(x_t / sqrt(1 + sigma^2), t), straight from the U-Net, at the sigmas of SD1's published schedule."""
    alphas = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
    with host.open_model(shapes[0]) as (denoiser, unet), torch.no_grad():
        t = torch.tensor([10.0, 500.0, 999.0])
        sigma = denoiser.sigma_at(t)
        torch.testing.assert_close(sigma.double(), ((1 - alphas) / alphas).sqrt()[t.long()], rtol=1e-4, atol=1e-5)
        x_t = (
            torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
            * (1 + sigma.view(-1, 1, 1, 1) ** 2).sqrt()
        )
        context = examples[0].conditioning[0].expand(3, -1, -1)
        direct = unet(x_t / (1 + sigma.view(-1, 1, 1, 1) ** 2).sqrt(), t, context=context)
        ours = denoiser.predict(x_t, sigma, [examples[0].conditioning] * 3)
    torch.testing.assert_close(ours, direct, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("network_type", NETWORK_TYPES)
def test_every_layer_of_the_lora_finds_its_place_in_the_host(shapes, examples, network_type, tmp_path):
    model = shapes[0]
    lora, losses = run_training(model, examples, network=NetworkConfig(network_type=network_type, rank=4))
    layers = sum(key.endswith(".alpha") for key in lora)
    assert len(losses) == 4 and layers == (4 * 12 if network_type == "lierla" else 4 * 12 + 5 * 2)
    assert all(tensor.any() for tensor in lora.values())  # what starts at zero, too: each layer has learned
    save_lora(tmp_path / "a.safetensors", lora, "fp16", 1.0, lora.metadata)
    from_file = comfy.utils.load_torch_file(str(tmp_path / "a.safetensors"))
    patched, _ = comfy.sd.load_lora_for_models(model, None, from_file, 1.0, 0.0)
    assert len(patched.patches) == layers
    assert {key for key in patched.patches} == {key for key in host.with_lora(model, lora).patches}


def test_the_wired_model_the_native_loader_and_the_saved_file_sample_alike(shapes, examples, prompts, tmp_path):
    from comfy_extras.nodes_train import LoraModelLoader

    model = shapes[0]
    lora, _ = run_training(model, examples, steps=30, learning_rate=3e-3)
    wired = sample(host.with_lora(model, lora), prompts)
    assert (wired - sample(model, prompts)).abs().max() > 0.1  # it does something
    with torch.inference_mode():
        native = LoraModelLoader.execute(model, lora, 1.0).args[0]
    torch.testing.assert_close(sample(native, prompts), wired)
    save_lora(tmp_path / "a.safetensors", lora, "fp16", 1.0, {})
    loaded, _ = comfy.sd.load_lora_for_models(
        model, None, comfy.utils.load_torch_file(str(tmp_path / "a.safetensors")), 1.0, 0.0
    )
    # fp16 keeps three digits; four steps of CFG 4 may grow that tenfold, and a wrong layer would be off by ones
    torch.testing.assert_close(sample(loaded, prompts), wired, rtol=0, atol=0.05)


@pytest.mark.parametrize("network_type", NETWORK_TYPES)
def test_the_model_out_of_training_predicts_as_the_network_did_in_training(shapes, examples, network_type):
    model, config = shapes[0], NetworkConfig(network_type=network_type, rank=4)
    lora, _ = run_training(model, examples, network=config, steps=10, learning_rate=1e-2)
    x_t, sigma = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5, 5.0])
    conditions = [e.conditioning for e in examples[:2]]
    with host.open_model(host.with_lora(model, lora)) as (denoiser, _), torch.no_grad():
        merged = denoiser.predict(x_t, sigma, conditions)
    with host.open_model(model) as (denoiser, layers), torch.no_grad():
        bare = denoiser.predict(x_t, sigma, conditions)
        network = LoRANetwork.create(choose_layers(layers, config), config, host.lora_key_of(model), seed=5)
        fill(network, lora)
        with network.injected():
            adapted = denoiser.predict(x_t, sigma, conditions)
    assert (merged - bare).abs().max() > 0.05
    torch.testing.assert_close(merged, adapted, rtol=1e-3, atol=1e-3)


def fill(network: LoRANetwork, lora: dict[str, torch.Tensor]) -> None:
    """Copy the tensors of a LoRA into a network's parameters, in their common order."""
    tensors = [tensor for key, tensor in lora.items() if not key.endswith("alpha")]
    for parameter, tensor in zip(network.parameters(), tensors, strict=True):
        parameter.data = tensor.clone()


def test_what_a_stopped_training_has_learned_is_saved(shapes, examples):
    saved = []
    with pytest.raises(InterruptProcessingException):
        run_training(
            shapes[0],
            examples,
            raise_at(2, InterruptProcessingException()),
            steps=9,
            save=lambda session: saved.append((session.lora(), session.history, session.state())),
        )
    ((lora, history, state),) = saved
    assert lora.metadata["ss_seed"] == "5" and lora.metadata["traintrain_step"] == "2" and len(history) == 2
    assert (state["losses"], state["learning_rates"]) == (history.losses, history.learning_rates)
    assert all(lora[key].any() for key in lora if key.endswith("lora_up.weight"))


def test_the_same_seed_gives_the_same_lora(shapes, examples):
    first, _ = run_training(shapes[0], examples)
    second, _ = run_training(shapes[0], examples)
    other, _ = run_training(shapes[0], examples, seed=6)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_a_training_leaves_no_tensor_behind(shapes, examples):
    def tensors() -> int:
        gc.collect()
        return sum(1 for thing in gc.get_objects() if isinstance(thing, torch.Tensor))

    run_training(shapes[0], examples)
    before = tensors()
    for _ in range(2):
        run_training(shapes[0], examples)
    assert tensors() <= before


def test_a_lora_of_another_model_is_refused(shapes, examples):
    lora, _ = run_training(shapes[0], examples, steps=1)
    alien = {key.replace("down_blocks_0", "down_blocks_3"): tensor for key, tensor in lora.items()}
    with pytest.raises(RuntimeError, match="of the LoRA's 48 layers"):
        host.with_lora(shapes[0], alien)


def test_an_image_size_that_is_not_a_multiple_of_eight_is_refused(shapes):
    model, _, vae = shapes
    with pytest.raises(ValueError, match="60x64.*multiples of 8"):
        host.encode_images(vae, model, [torch.zeros(64, 60, 3), torch.zeros(64, 64, 3)])


def test_each_caption_is_encoded_once(shapes):
    clip = shapes[1]
    calls = []
    original = clip.encode_from_tokens_scheduled
    clip.encode_from_tokens_scheduled = lambda tokens, **k: calls.append(1) or original(tokens, **k)
    try:
        encoded = host.HostTextEncoder(clip).encode(["a", "b", "a", "a"])
    finally:
        del clip.encode_from_tokens_scheduled
    assert len(calls) == 2 and encoded[0] is encoded[2] and not encoded[0][0].is_inference()


def test_streamed_weights_have_no_buffers_that_a_later_layer_uses_again(shapes, monkeypatch):
    """Where weights stay in main memory, each cast must be a tensor of its own until the backward pass has used it."""
    monkeypatch.setattr(comfy.model_management, "NUM_STREAMS", 2)
    with host.open_model(shapes[0]):
        assert comfy.model_management.get_offload_stream(torch.device("cuda")) is None
    assert comfy.model_management.NUM_STREAMS == 2
