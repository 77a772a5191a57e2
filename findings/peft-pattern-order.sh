#!/usr/bin/env bash
# PEFT 0.21.2: alpha_pattern with patterns that overlap
# One would expect: a saved adapter, loaded again, does what it did when it was trained.
# What happens: of several patterns that match a layer the first one counts, and save_pretrained sorts them by name.
# {"to_q": 8, "attn.*": 2} trains attn.to_q at alpha 8; from_pretrained reads attn.* first and applies it at alpha 2:
# a quarter of the effect, without a warning. Which way it goes depends on the alphabet.
# Why it matters: a general pattern beside an exception is what patterns are for.
# What to do: write patterns that do not overlap, or compare the `scaling` of all layers before and after loading.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq torch==2.13.0 numpy==2.4.6 peft==0.21.2 transformers==5.24.0 accelerate==1.15.0
"$work/venv/bin/python" - "$work/adapter" <<'EOF'
import sys
import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

warnings.filterwarnings("ignore")


def base_model():
    torch.manual_seed(0)
    return nn.ModuleDict({"to_q": nn.Linear(8, 8), "attn": nn.ModuleDict({"to_q": nn.Linear(8, 8)})})


def added(model):
    """Return what the adapter adds to the output of attn.to_q."""
    layer = model.base_model.model["attn"]["to_q"]
    return layer(torch.ones(1, 8)) - layer.base_layer(torch.ones(1, 8))


patterns = {"to_q": 8, "attn.*": 2}
config = LoraConfig(r=2, lora_alpha=4, target_modules=["to_q"], alpha_pattern=patterns, init_lora_weights=False)
trained = get_peft_model(base_model(), config)
trained.save_pretrained(sys.argv[1])
loaded = PeftModel.from_pretrained(base_model(), sys.argv[1])
saved = loaded.peft_config["default"].alpha_pattern
ratio = (added(loaded) / added(trained)).detach()
print("patterns as given", patterns, "as saved", saved)
print("effect on attn.to_q after loading, of that before:", ratio.mean().item())
assert list(saved) == ["attn.*", "to_q"], saved
assert torch.allclose(ratio, torch.full_like(ratio, 0.25), rtol=1e-3), ratio
EOF
