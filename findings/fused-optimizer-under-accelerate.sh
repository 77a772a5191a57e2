#!/usr/bin/env bash
# accelerate 1.15.0 and ema-pytorch 0.8.3 with torch 2.13.0: fused AdamW under a GradScaler
# One would expect: a step whose gradients overflow is skipped, accelerate says so in step_was_skipped, the
# learning rate schedule waits, and an EMA that hangs on the optimizer's post-step hook does not count it.
# So it is with AdamW(foreach=True). With AdamW(fused=True) the weights are left alone all the same, but six
# steps of which the first three overflow give: skipped none of 6 (foreach: 3), schedule at 0.04 (foreach: 0.07),
# EMA updated 6 times (foreach: 3). A fused optimizer gets found_inf handed in and decides inside its own kernel,
# so GradScaler always calls step(), and "was step() called?" is what accelerate and the hooks go by.
# Why it matters: fp16 training starts with several overflows while the loss scale comes down. A short LoRA
# training of 30 to 100 steps loses that part of its warmup or of its cosine, and only if fused is on.
# What to do: compare the scale before and after update(), or optimizer.state[p]["step"], which is right in both.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq torch==2.13.0 numpy==2.4.6 accelerate==1.15.0 ema-pytorch==0.8.3
"$work/venv/bin/python" - <<'EOF'
import warnings

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.scheduler import AcceleratedScheduler
from ema_pytorch import EMA

warnings.filterwarnings("ignore")
Accelerator(cpu=True)


def train(**kind):
    """Train six steps of which the first three overflow; say what each party thinks has happened."""
    model = torch.nn.Linear(4, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    plain = torch.optim.AdamW(model.parameters(), lr=0.1, **kind)
    ema = EMA(model, beta=0.9, update_after_step=0, update_every=1)
    ema.add_to_optimizer_post_step_hook(plain)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = AcceleratedOptimizer(plain, device_placement=False, scaler=scaler)
    schedule = AcceleratedScheduler(torch.optim.lr_scheduler.LinearLR(plain, 1.0, 0.0, 10), optimizer)
    skipped = unchanged = 0
    for step in range(6):
        before = model.weight.detach().clone()
        optimizer.zero_grad()
        loss = model(torch.ones(2, 4)).square().mean() * (float("inf") if step < 3 else 1.0)
        scaler.scale(loss).backward()
        optimizer.step()
        schedule.step()
        skipped += optimizer.step_was_skipped
        unchanged += torch.equal(before, model.weight)
    own = int(plain.state[model.weight]["step"])
    return unchanged, skipped, round(plain.param_groups[0]["lr"], 3), int(ema.step), own


print("optimizer            steps without change, reported as skipped, learning rate, EMA updates, own count")
foreach, fused = train(foreach=True), train(fused=True)
print("AdamW(foreach=True) ", foreach)
print("AdamW(fused=True)   ", fused)
assert foreach == (3, 3, 0.07, 3, 3), foreach
assert fused == (3, 0, 0.04, 6, 3), fused
EOF
