#!/usr/bin/env bash
# PEFT 0.21.2: convert_to_lora and save_as_lora of a DoRA
# One would expect: the conversion keeps what the adapter does, up to the rank, or says that it cannot: its docstring
# promises a TypeError for layers that do not support it, and HiRA is refused so.
# What happens: DoRA counts as supported. What is converted is up @ down alone, without the magnitudes and without the
# normalisation, which is what keeps up @ down of any size harmless in a DoRA. One trained from a loss of 0.69 (the base
# model) down to 0.0004 gives a LoRA with a loss of 22.8 at every rank, the full one included. The only message says that
# there is typically no need to convert what is a LoRA already. LoHa, LoKr and a plain LoRA are exact at full rank.
# Why it matters: taking a DoRA to a program that knows no DoRA is the reason to convert one.
# What to do: subtract the weights before and after merge_and_unload() and take the singular value decomposition of that:
# at full rank it has the loss of the DoRA.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq torch==2.13.0 numpy==2.4.6 peft==0.21.2 transformers==5.24.0 accelerate==1.15.0
"$work/venv/bin/python" - 2>"$work/warnings" <<'EOF' || { tail -5 "$work/warnings"; exit 1; }
import copy
import tempfile
import warnings

import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.conversion import save_as_lora
from torch import nn

torch.set_num_threads(1)
torch.manual_seed(0)
IMAGES = torch.randn(256, 32)
BASE = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 32))
with torch.no_grad():  # what is wanted: other lengths of the rows of both layers, and a change of rank 4
    ideal = copy.deepcopy(BASE)
    for layer in (ideal[0], ideal[2]):
        layer.weight *= torch.rand(32, 1) * 3
        layer.weight += torch.randn(32, 4) @ torch.randn(4, 32) / 20
    WANTED = ideal(IMAGES)


def loss(model):
    return (model(IMAGES) - WANTED).square().mean()


def trained(config):
    torch.manual_seed(0)
    model = get_peft_model(copy.deepcopy(BASE), config)
    optimizer = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad], lr=0.02)
    for _ in range(400):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def converted(model, rank):
    """Return the loss of the adapter saved as a LoRA and loaded, its distance in effects, and PEFT's warnings."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        save_as_lora(folder, model, rank=rank)
        again = PeftModel.from_pretrained(copy.deepcopy(BASE), folder).eval()
    wanted, base = model(IMAGES), BASE(IMAGES)
    off = ((again(IMAGES) - wanted).norm() / (wanted - base).norm()).item()
    return loss(again).item(), off, [str(warning.message) for warning in said if "onvert" in str(warning.message)]


layers = {"target_modules": ["0", "2"]}
print(f"the base model: loss {loss(BASE).item():.3f}")
found = {}
for name, config in {
    "LoRA": LoraConfig(r=8, lora_alpha=8, **layers),
    "LoHa": LoHaConfig(r=8, alpha=8, **layers),
    "LoKr": LoKrConfig(r=8, alpha=8, **layers),
    "DoRA": LoraConfig(r=8, lora_alpha=8, use_dora=True, **layers),
}.items():
    model = trained(config)
    for rank in (8, 32):
        after, off, said = found[name, rank] = converted(model, rank)
        text = f"as LoRA of rank {rank}: {after:.3f}, off by {off:.1%} of its effect; warnings: {said}"
        print(f"{name}: loss {loss(model).item():.4f}, {text}")
before = loss(model).item()
assert all(found[name, 32][1] < 1e-3 for name in ("LoRA", "LoHa", "LoKr")), found
assert all(after > 10 * before and off > 0.5 for after, off, _ in (found["DoRA", 8], found["DoRA", 32])), found
assert all("typically no need" in said for said in found["DoRA", 32][2])

# What the difference of the weights gives.
with torch.no_grad():
    merged = copy.deepcopy(model).merge_and_unload()
    for rank in (8, 32):
        model = copy.deepcopy(BASE)
        for place in (0, 2):
            u, s, v = torch.linalg.svd(merged[place].weight - BASE[place].weight)
            model[place].weight += (u[:, :rank] * s[:rank]) @ v[:rank]
        print(f"the difference of the weights at rank {rank}: loss {loss(model).item():.3f}")
    assert abs(loss(model).item() - before) < 1e-3
EOF
