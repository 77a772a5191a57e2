#!/usr/bin/env bash
# pytorch-optimizer 4.1.0 and heavyball 3.2.1: the first step of a LoRA
# One would expect: an optimizer that works on other weights works on a LoRA. Its second matrix starts at zero, so the
# gradient of the first matrix is exactly zero in the first step; AdamW, Lion, SOAP, Muon and most others do not mind.
# What happens, on a LoRA of rank 4 for a 16 x 16 layer, weights of 0.24 in the mean, learning rate 0.001, 60 steps:
# - ADOPT of heavyball divides the second gradient by the root of the first one squared, which is 0: in the third step
#   the first matrix moves by 10 in the mean, and the loss goes from 1.46 to 900000. pytorch-optimizer's is limited: 1.28.
# - AdaShift (pytorch-optimizer) does the same with the gradient of ten steps ago: 180 after 13 steps, then NaN.
# - RACS (pytorch-optimizer) lets the length of an update grow by 1 % a step, from 1e-10 here: the first matrix does not
#   change by one bit for 392 steps, and takes 1635 to get as far as the second one gets in 60.
# - HyperBallAdamW (heavyball) keeps the length of each matrix, and that of the second one is 0: nothing is trained at
#   all, and the LoRA that is saved does nothing.
# None has a message. With the second matrix from 0.01 * randn the first three train: 1.28, 1.40, 1.44 (AdamW 1.29). The
# fourth moves then, and keeps a length of 0.01.
# Why it matters: trainers take optimizers by name, and a loss that falls slowly or not at all looks like a learning rate
# that is too small; raising it does not help where the length or its growth is what holds.
# What to do: another optimizer, or a start of the second matrix from small random numbers (not with HyperBallAdamW).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq torch==2.13.0 numpy==2.4.6 pytorch-optimizer==4.1.0 heavyball==3.2.1
"$work/venv/bin/python" - 2>"$work/warnings" <<'EOF' || { tail -5 "$work/warnings"; exit 1; }
import heavyball
import heavyball.utils
import pytorch_optimizer
import torch

heavyball.utils.compile_mode = None  # the results are the same compiled, which takes a compiler and minutes
torch.set_num_threads(1)
IMAGES = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
WANTED = IMAGES @ torch.randn(16, 16, generator=torch.Generator().manual_seed(2)) * 0.3
NAMES = [(heavyball, "AdamW"), (heavyball, "ADOPT"), (heavyball, "HyperBallAdamW")]
NAMES += [(pytorch_optimizer, name) for name in ("AdamW", "Lion", "ADOPT", "AdaShift", "RACS")]


def trained(kind, zeros, steps=60):
    """Return the loss before and after, and the mean change of both matrices after each step."""
    torch.manual_seed(0)
    down = torch.nn.Parameter(0.3 * torch.randn(4, 16))
    up = torch.nn.Parameter(torch.zeros(16, 4) if zeros else 0.01 * torch.randn(16, 4))
    starts = [down.detach().clone(), up.detach().clone()]
    optimizer = kind([down, up], lr=1e-3)
    loss = lambda: (IMAGES @ down.T @ up.T - WANTED).square().mean()
    before, changes = loss().item(), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        changes.append([(now - start).abs().mean().item() for now, start in zip((down, up), starts)])
    return before, loss().item(), changes


seen = {}
for package, name in NAMES:
    for zeros in (True, False):
        before, after, changes = seen[package.__name__, name, zeros] = trained(getattr(package, name), zeros)
        (third, _), (later, _), (last, up) = changes[2], changes[12], changes[-1]
        start = "zeros" if zeros else "0.01 "
        text = f"loss {before:.2f} to {after:.4g}, down changed by {third:.2g}, {later:.2g}, {last:.2g}, up by {up:.2g}"
        print(f"{package.__name__:17} {name:14} up starts at {start}: {text}")
for package, name in NAMES:
    before, after, _ = seen[package.__name__, name, False]
    assert after < before or name == "HyperBallAdamW", name
for key in (("heavyball", "AdamW"), ("pytorch_optimizer", "AdamW"), ("pytorch_optimizer", "Lion")):
    assert seen[*key, True][1] < 1.3, key
assert seen["pytorch_optimizer", "ADOPT", True][1] < 1.3
_, after, changes = seen["heavyball", "ADOPT", True]
assert after > 1e4 and 5 < changes[2][0] < 20, after
_, after, changes = seen["pytorch_optimizer", "AdaShift", True]
assert after != after and changes[12][0] > 50, after
assert seen["heavyball", "HyperBallAdamW", True][2][-1] == [0, 0]
assert min(seen["heavyball", "HyperBallAdamW", False][2][-1]) > 1e-4

_, _, changes = trained(pytorch_optimizer.RACS, zeros=True, steps=3000)
still = sum(down == 0 for down, _ in changes)
ready = next(step for step, (down, _) in enumerate(changes) if down > changes[59][1])
assert 300 < still < 500 and 1400 < ready < 1900, (still, ready)
print(f"RACS: down stands still for {still} steps, and after {ready} it has moved as far as up in the first 60")
EOF
