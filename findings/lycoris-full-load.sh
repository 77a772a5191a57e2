#!/usr/bin/env bash
# LyCORIS 4.1.3: loading into a network of algo=full that is not fresh
# One would expect: load_state_dict sets the weights to what the file holds, whatever they were; so it is with LoRA, LoHa,
# LoKr, GLoRA, OFT and BOFT. Above all, network.load_state_dict(network.state_dict()) changes nothing.
# What happens: the file holds the difference from the base model, and loading adds it to the weights of now, which have
# the base model and what was trained in them already. Loading its own state once doubles what was trained, twice makes
# it four times, then eight. A file loaded into a fresh network is right, the same file loaded a second time acts twice.
# Going back to an earlier state in the same run (here: after 40 steps to the state after 20) gives the earlier and the
# last together: a loss of 0.90, where the state gone back to has 0.06 and an untrained network 0.95. No message.
# Why it matters: --network_weights with resuming from a state, going back to the best epoch, and swapping averaged
# weights in and out by state dict all load into a network that is not fresh.
# What to do: before loading set every module's weight and bias to the base model's:
# module.weight.data.copy_(module.org_weight), module.bias.data.copy_(module.org_bias[0]).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq torch==2.13.0 numpy==2.4.6
"$work/venv/bin/pip" install -qq --no-deps lycoris-lora==4.1.3 einops==0.8.2 toml==0.10.2 \
  safetensors==0.8.0 tqdm==4.70.1
"$work/venv/bin/python" - 2>"$work/warnings" <<'EOF' || { tail -5 "$work/warnings"; exit 1; }
import logging
import os
import tempfile

import torch
from lycoris import create_lycoris
from torch import nn

logging.disable(logging.WARNING)
torch.set_num_threads(1)
torch.manual_seed(0)
IMAGES, WANTED = torch.randn(256, 16), torch.randn(16, 16) / 4
BASE = nn.Linear(16, 16).state_dict()


def fresh(algo):
    model = nn.ModuleDict({"layer": nn.Linear(16, 16)})
    model["layer"].load_state_dict(BASE)
    network = create_lycoris(model, 1.0, linear_dim=4, linear_alpha=4, algo=algo)
    network.apply_to()
    return model["layer"], network


def train(layer, network, steps):
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        (layer(IMAGES) - base - IMAGES @ WANTED).square().mean().backward()
        optimizer.step()


def strength(layer, whole):
    """Return how many times a change of the output is in it, by least squares."""
    with torch.no_grad():
        return round((((layer(IMAGES) - base) * whole).sum() / whole.square().sum()).item(), 3)


def loss(layer):
    with torch.no_grad():
        return round((layer(IMAGES) - base - IMAGES @ WANTED).square().mean().item(), 3)


with torch.no_grad():
    base = nn.functional.linear(IMAGES, BASE["weight"], BASE["bias"])
own, twice = {}, {}
for algo in ("lora", "loha", "lokr", "glora", "diag-oft", "boft", "full"):
    layer, network = fresh(algo)
    train(layer, network, 20)
    with torch.no_grad():
        whole = layer(IMAGES) - base
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "trained.safetensors")
        network.save_weights(file, None, {})
        other, second = fresh(algo)
        twice[algo] = []
        for _ in range(2):
            second.load_weights(file)
            twice[algo].append(strength(other, whole))
    own[algo] = []
    for _ in range(3):
        network.load_state_dict({key: value.clone() for key, value in network.state_dict().items()}, strict=False)
        own[algo].append(strength(layer, whole))
    print(f"{algo:8} a file loaded into a fresh network, and again: {twice[algo]}; its own state three times: {own[algo]}")
    assert twice[algo] == ([1, 2] if algo == "full" else [1, 1]), algo
    assert own[algo] == ([2, 4, 8] if algo == "full" else [1, 1, 1]), algo

layer, network = fresh("full")
losses = {"untrained": loss(layer)}
train(layer, network, 20)
best, losses["best"] = {key: value.clone() for key, value in network.state_dict().items()}, loss(layer)
train(layer, network, 20)
losses["last"] = loss(layer)
network.load_state_dict(best, strict=False)
losses["back to the best"] = loss(layer)
for module in network.loras:  # the way around it
    module.weight.data.copy_(module.org_weight)
    module.bias.data.copy_(module.org_bias[0])
network.load_state_dict(best, strict=False)
losses["from the base"] = loss(layer)
print("loss:", losses)
assert losses["from the base"] == losses["best"], losses
assert losses["back to the best"] > 10 * losses["best"], losses
EOF
