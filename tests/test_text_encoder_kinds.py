"""Text encoders of every kind in training: gradients as transformers has them, and a LoRA that the host places."""

from __future__ import annotations

from typing import Any

import comfy.sd
import pytest
import torch
import transformers_encoders
from comfy.text_encoders import jina_clip_2, llama
from pack.nodes import host
from pack.nodes.host.encoding import tokenize
from pack.trainer.config import NetworkConfig
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from text_encoder_runs import CAPTION, Trained, assert_close, backward, encode, run
from tiny_host import TinyHost
from tiny_models import load_model
from tiny_text_encoders import KINDS, load_clip
from transformers_encoders import ENCODERS

pytestmark = pytest.mark.usefixtures("one_thread")

# Layers after the last that the prompt is taken from.
IDLE = {"Z-Image": 7, "Lumina 2": 7, "Lumina 2, Gemma 3": 7, "Krea 2": 7}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Any:
    """A MODEL, which a session has, too."""
    return load_model("SD3", tmp_path_factory.mktemp("model"), False, {})


@pytest.fixture(scope="module", params=KINDS)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def clip(name, tmp_path_factory) -> Any:
    return load_clip(name, tmp_path_factory.mktemp("clip"))


def weight_of(layer: str) -> str:
    return f"{layer.removeprefix('BASE.')}.weight"


def added_by(trained: Trained) -> dict[str, torch.Tensor]:
    """Return what a LoRA adds to each weight."""
    each = trained.adapters.items()
    return {weight_of(layer): (adapter.up @ adapter.down).detach() * adapter.scale for layer, adapter in each}


def compare_gradients(trained: Trained, weights: dict[str, torch.Tensor]) -> None:
    """Compare gradients with those that follow from the gradients of the weights by the chain rule."""
    for layer, adapter in trained.adapters.items():
        outer = weights[weight_of(layer)].grad
        outer = torch.zeros(adapter.shape) if outer is None else outer * adapter.scale
        for ours, theirs in (
            (adapter.up.grad, outer @ adapter.down.detach().T),
            (adapter.down.grad, adapter.up.detach().T @ outer),
        ):
            assert_close(torch.zeros_like(theirs) if ours is None else ours, theirs)


def in_place(block: torch.nn.Module, x: torch.Tensor, **options: Any) -> tuple:
    """Compute a block as newer versions of the host do, which write its result into its input."""
    output, with_norms = x, hasattr(block, "pre_feedforward_layernorm")
    if getattr(block, "transformer_type", "") == "gemma3":
        options["freqs_cis"] = options["freqs_cis"][1]  # of a block that looks at its surroundings
    attended, cache = block.self_attn(hidden_states=block.input_layernorm(x), **options)
    x = x + (block.post_attention_layernorm(attended) if with_norms else attended)
    if with_norms:
        fed = block.post_feedforward_layernorm(block.mlp(block.pre_feedforward_layernorm(x)))
    else:
        fed = block.mlp(block.post_attention_layernorm(x))
    return torch.add(x, fed, out=output), cache


@pytest.mark.parametrize("writes", [False, True], ids=["", "in place"])
def test_outputs_and_gradients_are_those_of_transformers(name, clip, model, writes, monkeypatch):
    if writes:
        for block in (llama.TransformerBlock, llama.TransformerBlockGemma2):
            monkeypatch.setattr(block, "forward", in_place)
    trained = run(model, clip)
    outputs, weights = transformers_encoders.encode(name, clip, CAPTION, added_by(trained))
    outputs[0] = outputs[0][:, -trained.outputs[0].shape[1] :]  # some kinds leave out the start of their template
    for ours, theirs in zip(trained.outputs, outputs, strict=True):
        assert_close(ours, theirs)
    backward(outputs)
    compare_gradients(trained, weights)
    idle = [
        layer for layer, adapter in trained.adapters.items() if adapter.up.grad is None or not adapter.up.grad.any()
    ]
    assert len(idle) == IDLE.get(name, 0)


def test_the_host_places_every_tensor_of_the_lora_with_the_effect_that_it_had_in_training(name, clip, model, caplog):
    trained = run(model, clip)
    _, loaded = comfy.sd.load_lora_for_models(None, clip, trained.lora, 0.0, 1.0)
    assert not [record.message for record in caplog.records if "loaded" in record.message.lower()]
    assert set(loaded.patcher.patches) == {weight_of(layer) for layer in trained.adapters}
    for ours, theirs in zip(trained.outputs, encode(loaded)):
        assert_close(ours, theirs)


def test_peft_reads_the_lora_by_the_names_of_transformers(model, tmp_path):
    """Kohya's key of a layer is its name in transformers, with underscores."""
    clip = load_clip("Anima", tmp_path)
    trained = run(model, clip)
    theirs, _ = transformers_encoders.load_encoder(KINDS["Anima"].files[0], ENCODERS["Anima"][0], clip, {})
    targets = sorted({layer.split(".")[-1] for layer in trained.adapters})
    wrapped, state = get_peft_model(theirs, LoraConfig(r=4, lora_alpha=2, target_modules=targets)), {}
    for name in (name for name, module in theirs.named_modules() if isinstance(module, LoraLayer)):
        for part, ours in (("lora_A", "lora_down"), ("lora_B", "lora_up")):
            key = f"lora_te_{name.replace('.', '_')}.{ours}.weight"
            state[f"base_model.model.{name}.{part}.weight"] = trained.lora[key]
    assert len(state) == 2 * len(trained.adapters)
    assert not set_peft_model_state_dict(wrapped, state).unexpected_keys
    ids = torch.tensor([[token for token, _ in tokenize(clip, CAPTION)["qwen3_06b"][0]]])
    with torch.no_grad():
        assert_close(trained.outputs[0], wrapped(input_ids=ids).last_hidden_state)


def test_a_training_of_both_leaves_the_clip_as_it_was(name, clip, tmp_path):
    tiny, prompt = TinyHost(tmp_path, KINDS[name].family), encode(clip)[0]  # this also takes other LoRAs off
    before = {key: tensor.clone() for key, tensor in clip.cond_stage_model.state_dict().items()}
    network = NetworkConfig(rank=4, blocks="all, BASE")
    _, trained, lora, loss = tiny.train("LoRA", clip=clip, network=network, steps=2)
    assert torch.tensor(loss["loss"]).isfinite().all()
    text = {key: tensor for key, tensor in lora.items() if host.has_text_encoder({key: tensor})}
    learned = sum(tensor.any().item() for key, tensor in text.items() if key.endswith("lora_up.weight"))
    assert learned == len(trained.patcher.patches) - IDLE.get(name, 0) == len(text) // 3 - IDLE.get(name, 0)
    assert (encode(trained)[0] - prompt).abs().max() > 1e-4 and torch.equal(encode(clip)[0], prompt)
    after = clip.cond_stage_model.state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())


def test_what_a_layer_has_kept_from_sampling_does_not_stop_a_training(clip, model):
    """As the rotary embeddings of Jina CLIP, which are computed once, in inference mode."""
    rotary = jina_clip_2.RotaryEmbedding(16, 10000.0)
    clip.cond_stage_model.rotary, q = rotary, torch.randn(1, 3, 2, 16)
    with torch.inference_mode():
        expected = rotary(q, q)[0].clone()
    with host.open_model(model, clip=clip):
        leaf = q.clone().requires_grad_()
        ours = rotary(leaf * 1.0, leaf * 1.0)[0]
        ours.sum().backward()
    del clip.cond_stage_model.rotary
    assert torch.equal(ours, expected) and leaf.grad.any()
