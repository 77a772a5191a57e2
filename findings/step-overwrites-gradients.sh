#!/usr/bin/env bash
# schedulefree 1.4.1 and pytorch-optimizer 4.1.0: what is in p.grad after step()
# One would expect: step() reads the gradients and leaves them as they are, as every optimizer of torch does.
# What happens: AdamWScheduleFree (both packages) divides them in place by its second moment "for memory efficiency".
# On a LoRA pair of 128 numbers the gradient's norm is 0.749, 0.804, 0.680 before three steps and 11.3, 11.2, 11.1
# after them: in the first step exactly sqrt(128), the number of weights, and nothing of the gradient.
# In pytorch-optimizer Ranger, StableSPAM, NovoGrad, Adalite, GrokFastAdamW, LARS and SCIONLight write there too,
# each something else (LARS 0.003, NovoGrad 1.4); AdamW, CAME, Lion, Prodigy, ScheduleFreeSGD and RAdam do not.
# Why it matters: a gradient norm logged after step() is a flat line that tells the size of the LoRA, norms by block
# taken there are the optimizer's, and a backward without zero_grad() in between adds to normalised numbers.
# What to do: take the norm that clip_grad_norm_ returns, before step(); never read p.grad afterwards.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq torch==2.13.0 numpy==2.4.6
"$work/venv/bin/pip" install -qq --no-deps pytorch-optimizer==4.1.0 schedulefree==1.4.1
"$work/venv/bin/python" - <<'EOF'
import pytorch_optimizer
import schedulefree
import torch

images = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
wanted = images @ torch.randn(16, 16, generator=torch.Generator().manual_seed(2)) * 0.3


def norms(optimizer_class):
    """Return the gradient's norm before and after each of three steps of a LoRA of rank 4."""
    torch.manual_seed(0)
    down, up = (torch.nn.Parameter(torch.randn(*shape) * std) for shape, std in (((4, 16), 0.3), ((16, 4), 0.1)))
    optimizer = optimizer_class([down, up], lr=1e-2)
    if hasattr(optimizer, "train"):
        optimizer.train()
    seen = []
    for step in range(3):
        batch = slice(8 * step, 8 * step + 8)
        optimizer.zero_grad()
        (images[batch] @ down.T @ up.T - wanted[batch]).square().mean().backward()
        before = torch.nn.utils.get_total_norm([down.grad, up.grad]).item()
        optimizer.step()
        seen.append((before, torch.nn.utils.get_total_norm([down.grad, up.grad]).item()))
    return seen


mine = ["AdamW", "CAME", "Lion", "Prodigy", "RAdam", "ScheduleFreeSGD", "ScheduleFreeRAdam", "ScheduleFreeAdamW"]
mine += ["Ranger", "StableSPAM", "NovoGrad", "Adalite", "GrokFastAdamW", "LARS", "SCIONLight"]
classes = {"torch.optim.AdamW": torch.optim.AdamW, "schedulefree.AdamWScheduleFree": schedulefree.AdamWScheduleFree}
classes |= {"schedulefree.SGDScheduleFree": schedulefree.SGDScheduleFree}
classes |= {name: getattr(pytorch_optimizer, name) for name in mine}
changed = {}
for name, optimizer_class in classes.items():
    seen = norms(optimizer_class)
    print(f"{name:31}", "   ".join(f"{before:.3f} -> {after:.4g}" for before, after in seen))
    if any(before != after for before, after in seen):
        changed[name] = seen
expected = {"schedulefree.AdamWScheduleFree", "ScheduleFreeAdamW", "Ranger", "StableSPAM", "NovoGrad", "Adalite"}
expected |= {"GrokFastAdamW", "LARS", "SCIONLight"}
assert set(changed) == expected, set(changed) ^ expected
for name in ("schedulefree.AdamWScheduleFree", "ScheduleFreeAdamW"):
    assert abs(changed[name][0][1] - 128**0.5) < 0.01, changed[name]
EOF
