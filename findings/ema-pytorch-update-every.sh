#!/usr/bin/env bash
# ema-pytorch 0.8.3: update_every, and the width of the average that comes out
# One would expect: to update the average only every 10th step saves time and changes next to nothing, as the README
# says ("to save on compute"); sigma_rel of Karras et al. 2023 is the width of the average in shares of the training.
# What happens: the decay is that of one step and is applied once per update, so every update counts as one step, and
# the average lags behind the more, the less often it is updated. No message. After 10000 steps:
# - KarrasEMA, sigma_rel 0.05 asked for: with update_every=1 it is 0.050, with 10 (the README's example) 0.246, with 100
#   (the default) 0.242, and there 66 % of the average are weights of the first tenth of the training. It is no matter
#   of a short training: after 1000 steps it is 0.245.
# - PostHocEMA, which is to give any width afterwards, asked for 0.1: the synthesized model has 0.100, 0.349 and 0.181,
#   with 0 %, 42 % and 84 % from the first tenth.
# - EMA with power=1, "a simple average" by its docstring: the averaged weights are on average those of 50 % of the
#   training with update_every=1, of 9 % with 10, which is the default.
# Why it matters: the average looks like a model that has hardly learned, which one puts down to the training.
# What to do: update_every=1. KarrasEMA alone has the width asked for with update_every=n, too, if gamma + 1 is
# multiplied by n: KarrasEMA(model, gamma=n * (sigma_rel_to_gamma(sigma_rel) + 1) - 1, update_every=n).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq torch==2.13.0 numpy==2.4.6
"$work/venv/bin/pip" install -qq --no-deps ema-pytorch==0.8.3
"$work/venv/bin/python" - "$work" <<'EOF'
import sys
from pathlib import Path

import torch
from ema_pytorch import EMA, KarrasEMA, PostHocEMA
from ema_pytorch.post_hoc_ema import sigma_rel_to_gamma

torch.set_num_threads(1)


def average_of(make, steps=10000):
    """Return the mean and the deviation, in shares of the training, of the times whose weights were averaged."""
    # The weights are the time, its square, and whether it lies in the first tenth, so their averages tell all.
    model = torch.nn.ParameterDict({"weights": torch.zeros(3, dtype=torch.float64)})
    ema = make(model)
    for step in range(1, steps + 1):
        time = step / steps
        model["weights"].data.copy_(torch.tensor([time, time**2, time <= 0.1]))
        ema.update()
    averaged = ema.synthesize_ema_model(sigma_rel=0.1) if isinstance(ema, PostHocEMA) else ema
    mean, square, early = averaged.ema_model["weights"].tolist()
    return round(mean, 3), round(max(square - mean**2, 0) ** 0.5, 3), round(early, 2)


def show(name, asked, found):
    print(f"{name:44} {asked:28} mean {found[0]:5.3f}, deviation {found[1]:5.3f}, first tenth {found[2]:4.0%}")
    return found


def karras(**kind):
    return lambda model: KarrasEMA(model, **kind)


for sigma_rel in (0.05, 0.1):
    gamma, found = sigma_rel_to_gamma(sigma_rel), {}
    asked = f"asked {(gamma + 1) / (gamma + 2):.3f} and {sigma_rel}"
    for every in (1, 10, 100):
        name = f"KarrasEMA, update_every={every}"
        found[every] = show(name, asked, average_of(karras(sigma_rel=sigma_rel, update_every=every)))
        mended = average_of(karras(gamma=every * (gamma + 1) - 1, update_every=every))
        show(f"{name}, gamma mended", asked, mended)
        assert abs(mended[1] - sigma_rel) < 0.05 * sigma_rel, mended
    assert found[1][1] == sigma_rel and abs(found[1][0] - (gamma + 1) / (gamma + 2)) < 1e-3 and found[1][2] == 0, found
    assert found[10][1] > 2.4 * sigma_rel and found[10][0] < 0.7, found
    assert found[100][0] < 0.2 and found[100][2] > 0.6, found
    assert average_of(karras(sigma_rel=sigma_rel)) == found[100]  # the default
    short = average_of(karras(sigma_rel=sigma_rel, update_every=10), steps=1000)
    show("KarrasEMA, update_every=10, 1000 steps", asked, short)
    assert abs(short[0] - found[10][0]) < 0.01, short

for every, (least, most) in {1: (0.098, 0.102), 10: (0.3, 0.4), 100: (0.15, 0.25)}.items():
    kind = {"sigma_rels": (0.05, 0.28), "update_every": every, "checkpoint_dtype": torch.float64}
    folder = Path(sys.argv[1], str(every))
    found = average_of(lambda model: PostHocEMA(model, **kind, checkpoint_folder=str(folder)))
    show(f"PostHocEMA, update_every={every}", "asked 0.888 and 0.1", found)
    assert least < found[1] < most and (found[2] > 0.3) == (every > 1), found

means = {}
for every in (1, 10):
    kind = {"power": 1.0, "beta": 1 - 1e-9, "update_after_step": 0, "update_every": every}
    found = average_of(lambda model: EMA(model, **kind))
    show(f"EMA, power=1, update_every={every}", "asked 0.500 and 0.289", found)
    means[every] = found[0]
assert means[1] == 0.5 and means[10] < 0.15, means
EOF
