#!/usr/bin/env bash
# LyCORIS 4.1.3: a trained DyLoRA, and the file that it saves
# One would expect: the file has the effect that was trained, and a network in eval mode gives one answer.
# What happens: training scales by alpha / (number of blocks in use), the file is an ordinary LoRA and is read with
# alpha / dim, so it comes out block_size times too weak. dim 16, alpha 16, block_size 4, a loss of 0.580 to start
# with: trained 0.001 or less at every rank, the saved file loaded again (by LyCORIS itself) 0.328, and the same
# file at multiplier 4 0.0006. The file holds no block_size, so no reader can know.
# Besides, each forward draws the rank from Python's random, in eval mode too: twelve forwards of one input give four
# different answers. torch.utils.checkpoint keeps torch's random state only and so draws another rank in the second
# run: 25 of 40 backward passes raise CheckpointError; with use_reentrant=True none, with gradients of another rank.
# Why it matters: previews while training look right (now and then different), the file looks untrained.
# What to do: multiply the .alpha entries of the file by block_size (or load it at that strength); make previews from a
# loaded file, not from the network in training; no gradient checkpointing.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq torch==2.13.0 numpy==2.4.6
"$work/venv/bin/pip" install -qq --no-deps lycoris-lora==4.1.3 einops==0.8.2 toml==0.10.2 \
  tqdm==4.70.1 safetensors==0.8.0
"$work/venv/bin/python" - 2>"$work/warnings" <<'EOF' || { tail -5 "$work/warnings"; exit 1; }
import logging
import random

import torch
from lycoris import LycorisNetwork, create_lycoris, create_lycoris_from_weights
from torch import nn
from torch.utils.checkpoint import CheckpointError, checkpoint

DIM, BLOCK = 16, 4


def base_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 32))


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


logging.getLogger("LyCORIS").setLevel(logging.ERROR)
LycorisNetwork.apply_preset({"target_name": [".*"]})
random.seed(0)
model, inputs = base_model(), draw(1, 256, 32)
wanted = (model(inputs) + inputs @ draw(2, 32, 2) @ draw(3, 2, 32) * 0.1).detach()


def loss(network):
    return (network(inputs) - wanted).square().mean()


start = loss(model).item()
dylora = create_lycoris(model, 1.0, linear_dim=DIM, linear_alpha=DIM, algo="dylora", block_size=BLOCK)
dylora.apply_to()
optimizer = torch.optim.Adam(dylora.parameters(), lr=2e-3)
for _ in range(600):
    optimizer.zero_grad()
    loss(model).backward()
    optimizer.step()
model.eval(), dylora.eval()
trained = [loss(model).item() for _ in range(12)]
file = {key: tensor.detach().clone() for key, tensor in dylora.state_dict().items()}


def loaded(multiplier):
    fresh = base_model()
    with torch.no_grad():
        network, _ = create_lycoris_from_weights(multiplier, None, fresh, weights_sd=file)
    network.apply_to()
    return loss(fresh.eval()).item()


once, by_block = loaded(1.0), loaded(float(BLOCK))
print(f"untrained {start:.4f}")
print("trained, twelve forwards in eval mode", [round(value, 4) for value in trained])
print(f"file loaded at 1: {once:.4f}, at block_size {BLOCK}: {by_block:.4f}; its keys: {sorted(file)}")

failures = {}
for reentrant in (False, True):
    failures[reentrant] = 0
    for _ in range(40):
        try:
            checkpoint(model, inputs.clone().requires_grad_(), use_reentrant=reentrant).sum().backward()
        except CheckpointError:
            failures[reentrant] += 1
print("CheckpointError in 40 backward passes, by use_reentrant:", failures)
assert 20 < failures[False] < 40 and failures[True] == 0, failures
assert max(trained) < 0.005, trained
assert 1 < len(set(trained)) <= DIM // BLOCK, trained
assert abs(once / start - (1 - 1 / BLOCK) ** 2) < 0.02, once / start
assert by_block < 0.005, by_block
EOF
