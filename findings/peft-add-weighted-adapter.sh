#!/usr/bin/env bash
# PEFT 0.21.2: add_weighted_adapter, which makes one adapter of several
# One would expect: one adapter with weight 1.0 gives that adapter again, and the model and the adapters that were there
# before stay what they are. With a plain LoRA it is so.
# What happens, without a message: the new adapter gets the configuration of the first one with r and alpha changed, and
# is made from the beginning by it before the weights are put in. By combination_type "cat" and "svd" alike:
# - PiSSA and OLoRA take their parts out of the base model's weights once more. Afterwards the model without adapters is
#   off by 6.8 and 5.4 times the effect of an adapter (two layers of 32 x 32, rank 4), and the adapter that was there
#   before by 7.2 and 5.7 times, though nobody touched it. It stays so when the new adapter is deleted.
# - rsLoRA: sqrt(r) times too strong, 2 times at rank 4, 4 times at rank 16, 8 times at rank 64.
# - DoRA: the magnitudes are those of the base model, off by 94 % of its effect. lora_bias: the biases are zero, off by
#   71 %.
# - The first adapter's layers_to_transform and exclude_modules hold for all: a second adapter loses each layer that the
#   first one did not have. ["style", "person"] gives one layer, ["person", "style"] both.
# Why it matters: merging a style and a person is what the function is for, and a rank of 64 that is 8 times too strong
# looks like an overfitted LoRA. What the base model lost is gone for all that is done in the session.
# What to do: add the changes of the weights (get_delta_weight of each adapter's layer) and take the singular value
# decomposition of the sum; PiSSA and OLoRA converted to LoRA by path_initial_model_for_weight_conversion first.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq torch==2.13.0 numpy==2.4.6 peft==0.21.2 transformers==5.24.0 accelerate==1.15.0
"$work/venv/bin/python" - 2>"$work/warnings" <<'EOF' || { tail -5 "$work/warnings"; exit 1; }
import warnings

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

torch.set_num_threads(1)
INPUTS = torch.randn(64, 32, generator=torch.Generator().manual_seed(5))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict({"to_q": nn.Linear(32, 32)}) for _ in range(2)])

    def forward(self, x):
        for layer in self.layers:
            x = x + layer["to_q"](x)
        return x


@torch.no_grad()
def outcome(combination, first, second=None, rank=4):
    """Return what adding did, as shares of the first adapter's effect, and the messages of adding."""
    torch.manual_seed(0)
    base = Model()
    before = base(INPUTS)
    configs = [LoraConfig(r=rank, lora_alpha=rank, target_modules=["to_q"], **kind) for kind in (first, second or {})]
    model = get_peft_model(base, configs[0], "style").eval()
    if second is not None:
        model.add_adapter("person", configs[1])
    for name, weight in model.named_parameters():  # as if trained
        if "lora_B" in name:
            weight += 0.02 * torch.randn_like(weight)
        elif "magnitude" in name:
            weight *= 1 + 0.1 * torch.randn_like(weight)

    def effect(adapter):
        model.set_adapter(adapter)
        return model(INPUTS) - before

    def bare():
        with model.disable_adapter():
            return model(INPUTS) - before

    alone, without = effect("style"), bare()
    with warnings.catch_warnings(record=True) as messages:
        warnings.simplefilter("always")
        model.add_weighted_adapter(["style"], [1.0], "same", combination_type=combination)
    found = {"strength": effect("same").norm() / alone.norm(), "off": (effect("same") - alone).norm() / alone.norm()}
    model.delete_adapter("same")
    found["itself"] = (effect("style") - alone).norm() / alone.norm()
    found["base"] = (bare() - without).norm() / alone.norm()
    if second is not None:
        for name, order in {"both": ["style", "person"], "turned": ["person", "style"]}.items():
            model.add_weighted_adapter(order, [1.0, 1.0], name, combination_type=combination)
            layers = [module for module in model.modules() if hasattr(module, "lora_A")]
            found["layers of " + "+".join(order)] = sum(name in layer.lora_A for layer in layers)
    return {what: round(float(value), 2) for what, value in found.items()}, messages


for combination in ("cat", "svd"):
    for kind, options in {
        "LoRA": {},
        "PiSSA": {"init_lora_weights": "pissa"},
        "OLoRA": {"init_lora_weights": "olora"},
        "rsLoRA": {"use_rslora": True},
        "DoRA": {"use_dora": True},
        "lora_bias": {"lora_bias": True},
    }.items():
        found, messages = outcome(combination, options)
        print(f"{combination} {kind:10} {found}")
        assert not messages, messages
        assert (found["off"] > 0.5) == (kind != "LoRA"), kind
        assert (found["base"] > 1 and found["itself"] > 0.9) == (kind in ("PiSSA", "OLoRA")), kind
        assert kind in ("PiSSA", "OLoRA") or found["base"] == found["itself"] == 0, kind
    strong, _ = outcome(combination, {"use_rslora": True}, rank=16)
    print(f"{combination} rsLoRA of rank 16, strength {strong['strength']}")
    assert 3.5 < strong["strength"] < 4.5
    for options in ({"layers_to_transform": [0], "layers_pattern": "layers"}, {"exclude_modules": ["layers.1.to_q"]}):
        found, messages = outcome(combination, options, second={})
        print(f"{combination} style has {options}, person both layers: {found}")
        assert (found["layers of style+person"], found["layers of person+style"]) == (1, 2) and not messages, found
EOF
