#!/usr/bin/env bash
# LyCORIS 4.1.3: dropout and rank_dropout
# One would expect: a rate of 0.1 takes a tenth of what is trained away at each step, or a message says it does nothing.
# What happens, in training with 0.1 (what is left on average, over 500 forward passes):
# - dropout does nothing for any method (every pass is the same), LoRA too, though the log says "Use Dropout value: 0.1"
#   and the README's example for LoCon sets it. Only LoHa and LoKr warn. LoRA with bypass_mode has it (1.00, varying).
# - rank_dropout is right for LoRA, LoHa, LoKr and full (0.90). It does nothing for BOFT and GLoRA.
# - The other way round, 0.1 left and 0.9 dropped: train_norm (with any method), and GLoRA in bypass mode, which is what
#   quantized layers take by themselves. In eval mode the layers then act ten times as strong as they were trained.
# - Diag-OFT drops parts of the rotation and not of its difference from none, so it takes weights of the base model: an
#   adapter fresh from its start moves the output by 0.3 of its size (sqrt(0.1 / 0.9) by theory), and after training too.
# Why it matters: "a little dropout" is the first thing against overfitting. It is either missing, or a model with a tenth
# of the norms or without a tenth of the base model is trained, and the loss shows no more than that it is higher.
# What to do: rank_dropout with LoRA, LoHa, LoKr and full, without train_norm; module_dropout, which is right everywhere.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq torch==2.13.0 numpy==2.4.6
"$work/venv/bin/pip" install -qq --no-deps lycoris-lora==4.1.3 einops==0.8.2 toml==0.10.2 \
  safetensors==0.8.0 tqdm==4.70.1
"$work/venv/bin/python" - 2>"$work/warnings" <<'EOF' || { tail -5 "$work/warnings"; exit 1; }
import logging

import torch
from lycoris import create_lycoris
from torch import nn

logging.disable(logging.WARNING)
torch.set_num_threads(1)
PASSES = 500


def trained(algo, bypass, **dropout):
    """Return how far a fresh adapter moves the output, then the share that is left of one with weights, and its spread."""
    torch.manual_seed(0)
    if norm := algo == "norm":
        layer, images = nn.GroupNorm(4, 32), torch.randn(2, 32, 4, 4)
        algo, dropout = "lora", {**dropout, "train_norm": True}
    else:
        layer, images = nn.Linear(32, 32, bias=False), torch.randn(4, 32)
    model = nn.ModuleDict({"layer": layer})
    with torch.no_grad():
        base = layer(images)
        if bypass:
            dropout["bypass_mode"] = True
        network = create_lycoris(model, 1.0, linear_dim=8, linear_alpha=8, algo=algo, **dropout)
        network.apply_to()
        network.train()
        change = lambda: model["layer"](images) - base
        fresh = sum((change().norm() / base.norm()).item() for _ in range(PASSES)) / PASSES
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        network.eval()
        whole = change()
        network.train()
        left = torch.stack([(change() * whole).sum() / whole.square().sum() for _ in range(PASSES)])
    return round(fresh, 2), round(left.mean().item(), 2), bool(left.std() > 1e-3)


found = {}
for algo in ("lora", "loha", "lokr", "full", "glora", "diag-oft", "boft", "norm"):
    for bypass in (False, True):
        if bypass and algo not in ("lora", "glora"):
            continue
        for kind in ("dropout", "rank_dropout", "module_dropout"):
            fresh, left, varies = found[algo, bypass, kind] = trained(algo, bypass, **{kind: 0.1})
            text = f"{left:.2f} left, {'varies' if varies else 'always the same'}"
            way = "bypass" if bypass else ""
            print(f"{algo:8} {way:6} {kind:14} 0.1: {text}; a fresh adapter moves the output by {fresh}")

nothing = (0.0, 1.0, False)
for algo in ("lora", "loha", "lokr", "full", "glora", "diag-oft", "boft", "norm"):
    assert found[algo, False, "dropout"] == nothing, algo
    assert abs(found[algo, False, "module_dropout"][1] - 0.9) < 0.05, algo
assert found["lora", True, "dropout"] == (0.0, 1.0, True)
for algo in ("lora", "loha", "lokr", "full"):
    assert abs(found[algo, False, "rank_dropout"][1] - 0.9) < 0.02, algo
assert found["boft", False, "rank_dropout"] == found["glora", False, "rank_dropout"] == nothing
for turned in (("norm", False), ("glora", True)):
    assert abs(found[*turned, "rank_dropout"][1] - 0.1) < 0.02, turned
assert 0.25 < found["diag-oft", False, "rank_dropout"][0] < 0.35
assert all(fresh == 0 for (algo, _, _), (fresh, _, _) in found.items() if algo != "diag-oft")
EOF
