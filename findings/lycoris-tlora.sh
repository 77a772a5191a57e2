#!/usr/bin/env bash
# LyCORIS 4.1.3: T-LoRA (algo=tlora), its file, its options and max norm
# One would expect: a file does what was trained, options of the documentation are used, and a limit makes norms smaller.
# What happens, all without a message:
# - sig_type=last (or middle) and use_data_init=False, which the documentation gives as network args, are not passed on:
#   both create functions make "principal" always. They can be set in a preset only.
# - The file holds the trained matrices but not what they started from nor which sig_type. The reader takes the principal
#   ones of the model at hand and subtracts them: files of "last" and "middle" act 5 times as strong as was trained.
# - A file of "principal" on another checkpoint (here 5 % away, as a fine-tuned one is) takes that one's own principal
#   parts out and puts the first one's in: off by 48 % of what was trained.
# - scale_weight_norms (apply_max_norm) multiplies the singular values, not their change, so it pulls the model's own
#   largest parts down: to be halved, the change became 2.2 times as large, to be quartered 3.2 times.
# Why it matters: the file looks and loads like any other, and LoRAs are mostly used on other checkpoints.
# What to do: save P diag(lambda) Q - P0 diag(lambda0) Q0 from the network in training, as a LoRA of twice the rank; no
# max norm with T-LoRA.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq torch==2.13.0 numpy==2.4.6
"$work/venv/bin/pip" install -qq --no-deps lycoris-lora==4.1.3 einops==0.8.2 toml==0.10.2 \
  safetensors==0.8.0 tqdm==4.70.1
"$work/venv/bin/python" - 2>"$work/warnings" <<'EOF' || { tail -5 "$work/warnings"; exit 1; }
import copy
import logging

import torch
from lycoris import LycorisNetwork, create_lycoris, create_lycoris_from_weights
from lycoris.kohya import create_network
from torch import nn

logging.disable(logging.WARNING)
torch.set_num_threads(1)
torch.manual_seed(0)
IMAGES, WANTED = torch.randn(256, 64), 0.02 * torch.randn(64, 64)
BASE = nn.Linear(64, 64, bias=False).weight.detach()


def model_of(weight):
    model = nn.ModuleDict({"layer": nn.Linear(64, 64, bias=False)})
    model["layer"].weight.data.copy_(weight)
    return model


def change(model, weight):
    with torch.no_grad():
        return model["layer"](IMAGES) - IMAGES @ weight.T


def trained(sig_type):
    """Return a model with a T-LoRA of this kind, which stands in a preset, after 100 steps."""
    model = model_of(BASE)
    LycorisNetwork.apply_preset({"module_algo_map": {"Linear": {"algo": "tlora", "sig_type": sig_type}}})
    network = LycorisNetwork(model, 1.0, lora_dim=8, alpha=8, network_module="tlora")
    network.apply_to()
    assert network.loras[0].sig_type == sig_type and change(model, BASE).norm() < 1e-3
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(100):
        optimizer.zero_grad()
        (model["layer"](IMAGES) - IMAGES @ (BASE + WANTED).T).square().mean().backward()
        optimizer.step()
    return model, network


def loaded(state, weight):
    model = model_of(weight)
    network, _ = create_lycoris_from_weights(1.0, None, model, weights_sd=state)
    network.apply_to()
    return change(model, weight)


another = BASE + 0.05 * BASE.std() * torch.randn_like(BASE)
strengths, limits = {}, {}
for sig_type in ("principal", "middle", "last"):
    model, network = trained(sig_type)
    state, whole = {key: value.clone() for key, value in network.state_dict().items()}, change(model, BASE)
    read = loaded(state, BASE)
    strengths[sig_type] = round((read.norm() / whole.norm()).item(), 1)
    print(f"{sig_type:9} keys {[key.split('.', 1)[1] for key in state]}, loaded {strengths[sig_type]} times as strong")
    if sig_type == "principal":
        assert (read - whole).norm() < 1e-3 * whole.norm()
        elsewhere = ((loaded(state, another) - whole).norm() / whole.norm()).item()
        print(f"          on another checkpoint: off by {elsewhere:.0%} of what was trained")
        norm = network.loras[0].get_diff_weight()[0].norm().item()
        for share in (0.5, 0.25):
            limited = copy.deepcopy(network)
            limited.apply_max_norm_regularization(share * norm, "cpu")
            limits[share] = round(limited.loras[0].get_diff_weight()[0].norm().item() / norm, 1)
        print("          max norm, share of the present norm: what it became", limits)
assert strengths["principal"] == 1 and strengths["middle"] > 3 and strengths["last"] > 3, strengths
assert elsewhere > 0.3 and all(became > 1.5 for became in limits.values()), (elsewhere, limits)

LycorisNetwork.apply_preset({"module_algo_map": {}})
Transformer2DModel = type("Transformer2DModel", (nn.ModuleDict,), {})  # a class that create_network looks for
model = nn.ModuleDict({"block": Transformer2DModel({"layer": nn.Linear(64, 64)})})
asked = {
    "create_lycoris": create_lycoris(model, 1.0, 8, 8, algo="tlora", sig_type="last"),
    "create_network": create_network(1.0, 8, 8, None, None, model, algo="tlora", sig_type="last"),
}
for name, network in asked.items():
    print(f"{name}(sig_type='last') gives", network.loras[0].sig_type)
    assert network.loras[0].sig_type == "principal"
EOF
