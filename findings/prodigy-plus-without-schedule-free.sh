#!/usr/bin/env bash
# prodigy-plus-schedule-free 2.0.1: use_cautious and use_adopt together with use_schedulefree=False
# One would expect: a cautious update leaves out what disagrees with the gradient, ADOPT exchanges the order of two
# steps, and both go down the gradient all the same; with schedule-free, which is the default, they do.
# What happens, without a message, with a matrix of 8 x 8 that is to become another one in 300 steps (loss 1.07, and
# 0.00 at the end with neither, with use_grams, and with either under schedule-free):
# - use_cautious computes the mask and does not use it. The update is the gradient times its average in the place of the
#   average alone, which is not negative where the two agree: nearly all weights go down whatever the sign of their
#   gradient, half of them away from the aim. The loss stays at 1.07, or rises to 1.11 with d0=0.01.
# - use_adopt takes steps of the length d * d instead of d: with the default d0 of 0.000001 the weights have moved by
#   0.00006 after 300 steps, which should be 0.8, so that d does not grow either. With d0=0.01 it trains.
# Why it matters: use_schedulefree=False is for those who want a schedule of their own, and a LoRA that has drifted a
# little and learned nothing is taken for a learning rate that is too small.
# What to do: neither of the two without schedule-free; use_grams works.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq torch==2.13.0 numpy==2.4.6
"$work/venv/bin/pip" install -qq --no-deps prodigy-plus-schedule-free==2.0.1
"$work/venv/bin/python" - 2>"$work/warnings" <<'EOF' || { tail -5 "$work/warnings"; exit 1; }
import contextlib
import io

import torch
from prodigyplus import ProdigyPlusScheduleFree

torch.set_num_threads(1)


def trained(**options):
    """Return the loss at the end, how far the weights moved in the mean, and which share of them went down."""
    torch.manual_seed(0)
    wanted = torch.randn(8, 8)
    weight = torch.nn.Parameter(wanted + torch.randn(8, 8))
    start = weight.detach().clone()
    with contextlib.redirect_stdout(io.StringIO()) as messages:
        optimizer = ProdigyPlusScheduleFree([weight], **options)
        optimizer.train()
        for _ in range(300):
            loss = (weight - wanted).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        optimizer.eval()
    assert "cautious" not in messages.getvalue() and "adopt" not in messages.getvalue()
    moved = weight.detach() - start
    loss, down = (weight.detach() - wanted).square().mean().item(), (moved < 0).float().mean().item()
    found = loss, moved.abs().mean().item(), down, optimizer.param_groups[0]["d"]
    print(f"{options}\n    loss {loss:.4f}, moved by {found[1]:.5f}, {down:.0%} of the weights down, d {found[3]:.2g}")
    return found


for schedulefree in (True, False):
    for option in ("", "use_grams", "use_cautious", "use_adopt"):
        loss, moved, down, d = trained(use_schedulefree=schedulefree, **({option: True} if option else {}))
        fails = not schedulefree and option in ("use_cautious", "use_adopt")
        assert (loss > 1.05) == fails and (loss < 0.01) != fails, (option, loss)
        assert (d < 0.001) == fails, (option, d)
        assert (down > 0.9) == (fails and option == "use_cautious"), (option, down)
        assert (moved < 0.001) == (fails and option == "use_adopt"), (option, moved)
loss, moved, down, d = trained(use_schedulefree=False, use_cautious=True, d0=0.01)
assert loss > 1.1 and down == 1, (loss, down)
loss, moved, down, d = trained(use_schedulefree=False, use_adopt=True, d0=0.01)
assert loss < 0.01, loss
EOF
