"""Training from LoRA files that other programs made: it starts with the effect that they have there, or says why it cannot."""

from __future__ import annotations

import json
import re

import pytest
import torch
from pack.nodes.host.lora_import import create_network
from pack.nodes.host.lora_keys import with_lora
from pack.nodes.load_lora import LoadLoRA
from pack.trainer.config import NetworkConfig
from pack.trainer.lora_file import load_lora, save_lora
from test_loras_of_other_programs import LOKR, MAKERS, MULTIPLIED, Made, by_lycoris, by_peft, make  # noqa: F401
from unets import run_host

NOT_TRAINED = {
    "LyCORIS with norms": "a LoRA with norms",
    "LyCORIS, whole layers": "a LoRA with whole weights",
    "LyCORIS OFT": "an OFT or BOFT",
    "the host's LoRA": "a LoRA with whole weights or biases",
    "the host's LoHa": "a LoRA with whole weights or biases",
    "the host's LoKr": "a LoRA with whole weights or biases",
    "the host's OFT": "a LoRA with whole weights or biases",
}
TRAINED = [name for name in MAKERS if name not in NOT_TRAINED]
MORE = {
    "LyCORIS GLoRA": ("a GLoRA", lambda *to: by_lycoris(*to, network_module="glora")),
    "LyCORIS BOFT": ("an OFT or BOFT", lambda *to: by_lycoris(*to, network_module="boft")),
    "LyCORIS DoRA": ("a DoRA", lambda *to: by_lycoris(*to, weight_decompose=True)),
}
UNREADABLE = {
    "LyCORIS (IA)3": (r"an \(IA\)3", lambda *to: by_lycoris(*to, network_module="ia3")),
    "PEFT DoRA": ("a DoRA in PEFT's names", lambda *to: by_peft(*to, lora_alpha=4, use_dora=True)),
    "PEFT with biases": ("a LoRA with biases", lambda *to: by_peft(*to, lora_alpha=4, lora_bias=True)),
}


def begin(made: Made, lora: dict, config: NetworkConfig | None = None):
    return create_network(config, lora, 0, made.model, None, made.model.model.diffusion_model)


@pytest.mark.parametrize("name", TRAINED)
def test_training_starts_with_the_effect_that_the_file_had_where_it_was_made(make, name):  # noqa: F811
    made = make(name, "SD1")
    network = begin(made, load_lora(made.path))
    with network.injected():
        torch.testing.assert_close(run_host(made.model), made.predicted, rtol=0, atol=1e-3)
    saved = run_host(with_lora(made.model, network.weights()))
    torch.testing.assert_close(saved, made.predicted, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", NOT_TRAINED)
def test_what_cannot_be_trained_on_is_named_with_what_to_do(make, name):  # noqa: F811
    made = make(name, "SD1")
    with pytest.raises(ValueError, match=rf"because it is {NOT_TRAINED[name]}.*Load LoRA and train a new one\.$"):
        begin(made, load_lora(made.path))


@pytest.mark.parametrize("name", MORE)
def test_more_that_cannot_be_trained_on_is_named(make, tmp_path, name):  # noqa: F811
    kind, maker = MORE[name]
    made = maker(tmp_path, "SD1")
    assert with_lora(made.model, load_lora(made.path)).patches
    with pytest.raises(ValueError, match="cannot be changed: save it with strength 1"):
        save_lora(tmp_path / "b.safetensors", load_lora(made.path), "fp32", 2.0, {})
    with pytest.raises(ValueError, match=rf"because it is {kind} .*Load LoRA and train a new one\.$"):
        begin(made, load_lora(made.path))


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_comfyui_cannot_apply_is_named_as_such(make, tmp_path, name):  # noqa: F811
    kind, maker = UNREADABLE[name]
    made = maker(tmp_path, "SD1")
    with pytest.raises(ValueError, match="cannot be changed: save it with strength 1"):
        save_lora(tmp_path / "b.safetensors", load_lora(made.path), "fp32", 2.0, {})
    for use, error in ((begin, ValueError), (lambda made, lora: with_lora(made.model, lora), RuntimeError)):
        with pytest.raises(error, match=rf"it is {kind} .*Load LoRA cannot apply either.* train a new one\.$"):
            use(made, load_lora(made.path))


def test_a_lokr_with_tucker_decomposition_does_not_count_as_placed(make):  # noqa: F811
    made = make("LyCORIS LoKr with Tucker decomposition", "SD1")
    with pytest.raises(RuntimeError, match=r"a LoKr with Tucker decomposition \(.*, which ComfyUI fails to compute"):
        with_lora(made.model, load_lora(made.path))


@pytest.mark.parametrize("name", ["LyCORIS LoHa", "LyCORIS LoHa with Tucker decomposition", "LyCORIS LoKr", "kohya"])
def test_a_file_of_a_wider_model_is_refused_by_its_layers(make, name):  # noqa: F811
    """SDXL's small model has layers of the same names and twice the width."""
    made, lora = make("kohya", "SD1"), load_lora(make(name, "SD1").path)
    wide = {
        key: torch.cat([tensor, tensor], -1) if _reads_text(key, tensor) else tensor for key, tensor in lora.items()
    }
    with pytest.raises(RuntimeError, match=r"\d+ of the LoRA's 119 layers do not match .*attn2.to_[kv]"):
        with_lora(made.model, wide)
    with pytest.raises(ValueError, match="Training cannot start from this LoRA: its layer .*attn2.to_[kv] has"):
        begin(made, wide)


def _reads_text(key: str, tensor: torch.Tensor) -> bool:
    return (
        "attn2_to_" in key
        and tensor.ndim == 2
        and key.endswith(("_b", "lora_down.weight", "lokr_w2"))
        and ("to_k" in key or "to_v" in key)
    )


@pytest.mark.parametrize("alpha", [1.0, 16.0, 2.0])
@pytest.mark.parametrize(
    "name, network_type",
    [("kohya", "c3lier"), ("LyCORIS LoHa", "loha"), ("LyCORIS LoKr", "lokr"), ("LyCORIS with rsLoRA", "c3lier")],
)
def test_another_alpha_in_lora_network_leaves_the_effect(make, name, network_type, alpha):  # noqa: F811
    made = make(name, "SD1")
    lora = load_lora(made.path)
    given = {key: tensor for key, tensor in lora.items() if _is_chosen(made, key)}
    config = NetworkConfig(network_type, 4, alpha, 2, 3 * alpha)
    network = begin(made, given, config)
    expected = run_host(with_lora(made.model, given))
    with network.injected():
        torch.testing.assert_close(run_host(made.model), expected, rtol=0, atol=1e-3)
    alphas = {tensor.item() for key, tensor in network.weights().items() if key.endswith(".alpha")}
    assert {alpha, 3 * alpha} <= alphas if network_type != "lokr" else alpha in alphas


def _is_chosen(made: Made, key: str) -> bool:
    """Whether LoRA Network selects the layer of a key: not the first convolution, the last and the embeddings."""
    return not key.startswith(("lora_unet_conv_", "lora_unet_time_embedding")) and not re.search(
        "time_emb_proj|conv_shortcut", key
    )


@pytest.mark.parametrize("alpha", [None, 0.0, -2.0, 7.0])
@pytest.mark.parametrize("config", [None, NetworkConfig("c3lier", 4, 3.0, 2, 1.0)])
def test_files_with_several_alphas_or_none_keep_their_effect(make, alpha, config):  # noqa: F811
    made = make("kohya", "SD1")
    given = {key: tensor for key, tensor in load_lora(made.path).items() if _is_chosen(made, key)}
    for key in [key for key in given if key.endswith("to_q.alpha")]:
        del given[key]
        if alpha is not None:
            given[key] = torch.tensor(alpha)
    network, expected = begin(made, given, config), run_host(with_lora(made.model, given))
    with network.injected():
        torch.testing.assert_close(run_host(made.model), expected, rtol=0, atol=1e-3)
    assert all(tensor > 0 for key, tensor in network.weights().items() if key.endswith(".alpha"))


@pytest.mark.parametrize("name", ["PEFT with patterns", "PEFT LoHa"])
def test_a_config_without_its_file_is_not_read(make, tmp_path, name):  # noqa: F811
    """PEFT's config is for files in PEFT's names alone: kohya's beside it are as they are."""
    made, kohya = make(name, "SD1"), make("kohya", "SD1")
    config = made.path.with_name("adapter_config.json")
    (tmp_path / "a.safetensors").write_bytes(kohya.path.read_bytes())
    (tmp_path / config.name).write_bytes(config.read_bytes())
    with_config, without = load_lora(tmp_path / "a.safetensors"), load_lora(kohya.path)
    assert all(torch.equal(with_config[key], without[key]) for key in without)


def test_load_lora_reads_a_file_again_when_peft_config_beside_it_changes(base):
    folder = base / "loras" / "style"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"")
    seen = [LoadLoRA.fingerprint_inputs("style/adapter_model.safetensors")]
    for text in ("{}", '{"r": 4}'):
        (folder / "adapter_config.json").write_text(text)
        seen.append(LoadLoRA.fingerprint_inputs("style/adapter_model.safetensors"))
    assert len(set(seen)) == 3


def test_a_config_of_another_lora_is_named(make, tmp_path):  # noqa: F811
    made = make("PEFT", "SD1")
    config = json.loads(made.path.with_name("adapter_config.json").read_text())
    (tmp_path / "a.safetensors").write_bytes(made.path.read_bytes())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "r": 8}))
    with pytest.raises(
        ValueError, match="adapter_config.json beside a.safetensors is of another LoRA: .*rank 8 .*rank 4"
    ):
        load_lora(tmp_path / "a.safetensors")
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match="adapter_config.json beside a.safetensors cannot be parsed"):
        load_lora(tmp_path / "a.safetensors")
