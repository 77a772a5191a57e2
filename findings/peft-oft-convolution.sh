#!/usr/bin/env bash
# PEFT 0.21.2: OFT on a 3x3 convolution
# One would expect: OFT starts as the identity, so the wrapped model gives what it gave before; and merging the
# adapter changes nothing in the output.
# What happens: a fresh, untrained OFT on a 3x3 Conv2d changes the output at once by 2.9 times its own size (1x1
# and Linear: by nothing). The layer rotates image patches (unfold, rotate, fold) and then convolves, but fold adds
# the overlapping patches up: inside the image each pixel counts nine times, at an edge three, in a corner once.
# merge_adapter() rotates the weight instead, which is right: so the merged model is the base model again, and what
# was trained (against inputs nine times too large) is nowhere to be seen in it.
# Why it matters: whoever puts OFT on the residual blocks of a U-Net trains another model than the one that loads
# the file. The training loss starts far too high and nothing else says so.
# What to do: target only Linear and 1x1 layers with PEFT's OFT; for convolutions take BOFT or LyCORIS' diag-oft,
# and compare the output before and after wrapping: they must be equal.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq torch==2.13.0 numpy==2.4.6 peft==0.21.2 transformers==5.24.0 accelerate==1.15.0
"$work/venv/bin/python" - <<'EOF'
import warnings

import torch
from peft import BOFTConfig, OFTConfig, get_peft_model
from torch import nn

warnings.filterwarnings("ignore")


def change(config, kernel):
    """Return how far a fresh adapter, then the same one merged, moves the output, in units of the output."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(8, 8, kernel, padding=kernel // 2, bias=False)
    images = torch.randn(4, 8, 16, 16)
    with torch.no_grad():
        base = convolution(images)
        model = get_peft_model(nn.Sequential(convolution), config).eval()
        fresh = model(images)
        model.merge_adapter()
        merged = model(images)
    return tuple(round(((output - base).norm() / base.norm()).item(), 3) for output in (fresh, merged))


oft = lambda: OFTConfig(r=0, oft_block_size=4, target_modules=["0"])
boft = lambda: BOFTConfig(boft_block_size=4, target_modules=["0"])
seen = {"OFT 1x1": change(oft(), 1), "OFT 3x3": change(oft(), 3), "BOFT 3x3": change(boft(), 3)}
for name, (fresh, merged) in seen.items():
    print(f"{name:9} fresh adapter moves the output by {fresh}, merged by {merged}")

# The same in pixels: what the convolution is given, for an image of ones.
model = get_peft_model(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1)), oft())
with torch.no_grad():
    given = model.base_model.model[0].oft_R["default"](torch.ones(1, 4, 6, 6))[0, 0]
print("an image of ones, as the convolution gets it:\n", given)
assert seen["OFT 1x1"] == (0, 0) and seen["BOFT 3x3"] == (0, 0), seen
assert 2 < seen["OFT 3x3"][0] < 8 and seen["OFT 3x3"][1] == 0, seen
assert given[3, 3] == 9 and given[0, 0] == 1 and given[0, 3] == 3, given
EOF
