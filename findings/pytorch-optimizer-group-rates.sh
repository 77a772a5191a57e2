#!/usr/bin/env bash
# pytorch-optimizer 4.1.0: Prodigy and the five D-Adaptation optimizers with a learning rate per parameter group
# One would expect: each group is trained at its own rate, as with every other optimizer, or refused as the original
# packages do (prodigyopt 1.1.2, dadaptation 3.2: "only supported for values of 0").
# What happens: the rate of the first group counts for all, without a message, 0 included, which in the originals means
# that a group is left alone. 50 steps of two equal matrices towards one aim:
# - rates 1 and 0.5: both move by the distance of rate 1 (Prodigy 16.1). Rates 0.5 and 1: both by that of 0.5 (17.0).
# - rates 1 and 0: the group with rate 0 is trained at full speed.
# - rates 0 and 1: nothing is trained at all.
# In dadaptation itself AdaGrad and Adan do the same. Adam, Lion and SGD refuse other rates; 0 is kept to by Adam and SGD,
# while Lion trains that group too.
# ApolloDQN takes the constructor's rate for all groups, whatever theirs and whatever a schedule says, as long as its own
# warmup lasts, which is 500 steps.
# Why it matters: a text encoder at half the rate, or frozen after an epoch by setting its rate to 0, is trained like the
# rest; a schedule for one group only holds for all or for none, by the order of the groups.
# What to do: the originals, which refuse; to freeze weights leave them out, or set requires_grad to False.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq torch==2.13.0 numpy==2.4.6 pytorch-optimizer==4.1.0 prodigyopt==1.1.2 setuptools==84.2.1
"$work/venv/bin/pip" install -qq --no-build-isolation dadaptation==3.2
"$work/venv/bin/python" - 2>"$work/warnings" <<'EOF' || { tail -5 "$work/warnings"; exit 1; }
import dadaptation
import prodigyopt
import pytorch_optimizer
import torch

torch.set_num_threads(1)
ADAPTIVE = ["DAdaptAdam", "DAdaptLion", "DAdaptSGD", "DAdaptAdaGrad", "DAdaptAdan"]
START = torch.randn(16, 16, generator=torch.Generator().manual_seed(99))
WANTED = START + torch.randn(16, 16, generator=torch.Generator().manual_seed(1))


def distances(kind, rates):
    """Return how far each of two equal matrices has moved, or None if the rates are refused."""
    weights = [torch.nn.Parameter(START.clone()) for _ in rates]
    optimizer = kind([{"params": [weight], "lr": rate} for weight, rate in zip(weights, rates)])
    try:
        for _ in range(50):
            for weight in weights:
                weight.grad = (weight - WANTED).detach()
            optimizer.step()
    except RuntimeError as error:
        assert "different lr values in different parameter groups" in str(error)
        return None
    return [float(f"{(weight - START).norm().item():.4g}") for weight in weights]


def shown(package, name):
    kind, found = getattr(package, name), {}
    for rates in ((1.0, 1.0), (0.5, 0.5), (1.0, 0.5), (0.5, 1.0), (1.0, 0.0), (0.0, 1.0)):
        found[rates] = distances(kind, rates)
    text = ", ".join(f"{rates}: {moved or 'refused'}" for rates, moved in found.items())
    print(f"{package.__name__:17} {name:14} {text}")
    return found


for name in ["Prodigy", *ADAPTIVE]:
    found = shown(pytorch_optimizer, name)
    assert found[1.0, 0.5] == found[1.0, 0.0] == found[1.0, 1.0] and found[1.0, 1.0][0] > 0, name
    assert found[0.5, 1.0] == found[0.5, 0.5] != found[1.0, 1.0], name
    assert found[0.0, 1.0] == [0, 0], name
found = shown(pytorch_optimizer, "ApolloDQN")
assert len({tuple(moved) for moved in found.values()}) == 1 and found[1.0, 0.0][1] > 0

# The originals.
for package, name in [(prodigyopt, "Prodigy"), *((dadaptation, name) for name in ADAPTIVE)]:
    found = shown(package, name)
    if name in ("DAdaptAdaGrad", "DAdaptAdan"):
        assert found[1.0, 0.5] == found[1.0, 0.0] == found[1.0, 1.0] and found[0.0, 1.0] == [0, 0], name
    else:
        assert found[1.0, 0.5] is found[0.5, 1.0] is None, name
        left_alone = found[1.0, 0.0][1] == found[0.0, 1.0][0] == 0 < found[1.0, 0.0][0]
        assert left_alone if name != "DAdaptLion" else found[1.0, 0.0] == found[0.0, 1.0] == found[1.0, 1.0], name

# For comparison.
found = shown(pytorch_optimizer, "AdamW")
assert found[1.0, 0.0][1] == 0 < found[1.0, 0.0][0] and found[1.0, 0.5][0] != found[1.0, 0.5][1]
EOF
