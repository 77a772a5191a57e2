#!/usr/bin/env bash
# optimum-quanto 0.2.7: writing to the weights of a frozen model, and PEFT 0.21.2 merging into it
# One would expect: freeze() leaves weights that do not ask for a gradient as they are, and who writes to a weight
# changes it or gets an error.
# What happens, without a message, with int8, float8 and int4 alike:
# - add_, mul_ and copy_ on a frozen weight or on its .data, and weight.data += change, do nothing: the operation is
#   done on a copy that is thrown away. The output of the model is the same to the bit.
# - PEFT takes such a layer for an ordinary Linear. merge_and_unload() of a LoRA therefore gives the base model back,
#   and the LoRA is gone; unmerged it acts as trained. (Of bitsandbytes' layers PEFT knows that they are quantized.)
# - freeze() asks for gradients of all the weights it quantizes, also of those for which requires_grad_(False) was
#   called before. An optimizer takes them, memory is kept for gradients and states, and nothing is ever trained.
# Why it matters: requires_grad_(False), quantize, freeze, then a LoRA is the order of most trainers, and merging is how
# several LoRAs are taken together, or how one is taken out of the way for speed.
# What to do: merge before quantizing; set layer.weight = torch.nn.Parameter(layer.weight.dequantize() + change,
# requires_grad=False), which makes an ordinary weight of it; call requires_grad_(False) again after freeze().
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq torch==2.13.0 numpy==2.4.6 peft==0.21.2 transformers==5.24.0 accelerate==1.15.0
"$work/venv/bin/pip" install -qq --no-deps optimum-quanto==0.2.7
"$work/venv/bin/python" - 2>"$work/warnings" <<'EOF' || { tail -5 "$work/warnings"; exit 1; }
import torch
from optimum.quanto import freeze, qfloat8, qint4, qint8, quantize
from peft import LoraConfig, get_peft_model
from torch import nn

torch.set_num_threads(1)
INPUTS = torch.randn(32, 64, generator=torch.Generator().manual_seed(1))
ONES = torch.ones(64, 64)


def frozen(kind):
    torch.manual_seed(0)
    model = nn.ModuleDict({"layer": nn.Linear(64, 64)}).requires_grad_(False)
    if kind:
        quantize(model, weights=kind)
        freeze(model)
    return model


def add_to_data(weight):
    weight.data += ONES


WRITES = {
    "weight.add_": lambda weight: weight.add_(ONES),
    "weight.data.mul_": lambda weight: weight.data.mul_(2),
    "weight.data.copy_": lambda weight: weight.data.copy_(ONES),
    "weight.data +=": add_to_data,
}


def difference(one, other):
    return ((one - other).norm() / other.norm()).item()


class Model(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layer = frozen(kind)["layer"]

    def forward(self, x):
        return self.layer(x)


for kind in (None, qint8, qfloat8, qint4):
    name, asks = getattr(kind, "name", "not quantized"), frozen(kind)["layer"].weight.requires_grad
    written = {}
    for what, write in WRITES.items():
        model = Model(kind)
        with torch.no_grad():
            before = model(INPUTS)
            write(model.layer.weight)
            written[what] = round(difference(model(INPUTS), before), 3)
    print(f"{name}: requires_grad {asks}, what writing changed {written}")
    assert asks == (kind is not None)
    assert (max(written.values()) == 0) if kind else (min(written.values()) > 0.5), written

    model = get_peft_model(Model(kind), LoraConfig(r=4, target_modules=["layer"])).eval()
    with torch.no_grad():
        base = model(INPUTS)
        model.base_model.model.layer.lora_B["default"].weight.normal_(generator=torch.Generator().manual_seed(2))
        active = model(INPUTS)
        merged = model.merge_and_unload()(INPUTS)
    print(f"    a LoRA changes the output by {difference(active, base):.2f}, merged by {difference(merged, base):.2f}")
    assert difference(active, base) > 0.5
    assert difference(merged, base) == 0 if kind else difference(merged, active) < 1e-5

    if kind:
        model = Model(kind)
        with torch.no_grad():
            weight, change = model.layer.weight, 0.1 * ONES
            right = model(INPUTS) + INPUTS @ change.T
            model.layer.weight = nn.Parameter(weight.dequantize() + change, requires_grad=False)
            assert difference(model(INPUTS), right) < 0.1

model = Model(qint8)
optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=0.01)
losses = []
for _ in range(20):
    loss = (model(INPUTS) - 1).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print("20 steps of AdamW on the weights that ask for gradients:", sorted({round(loss, 6) for loss in losses}))
assert len(set(losses)) == 1 and optimizer.state
EOF
