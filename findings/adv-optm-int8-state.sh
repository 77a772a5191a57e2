#!/usr/bin/env bash
# adv_optm 2.5.16 (the optimizers of OneTrainer): state_precision="int8_sr"
# One would expect: eight bits cost a little accuracy, and load_state_dict(state_dict()) gives back the state.
# What happens, without a message:
# - Resuming spoils the momentum. It is kept as signed bytes, torch's load_state_dict makes them floating point,
#   adv_optm makes them bytes again, but unsigned ones: -3 becomes 253. What was below zero turns round and becomes up
#   to 255 times as large, and as the state stays unsigned nothing below zero can be kept ever after. A layer of 32 x 32
#   at a learning rate of 0.001, stopped after 100 of 200 steps, loss at the stop, at the end without and with the stop:
#   Adopt_adv 0.089, 0.030, over a million; SignSGD_adv 0.045, 0.003, 0.013; Muon_adv 0.226, 0.146, 0.245. All other
#   precisions go on as if nothing had been.
# - AdamW_adv and Prodigy_adv need no stop: the second moments of 2048 weights share one scale and have even steps, so
#   that a small one becomes 0, and the update is divided by eps. With AdamW_adv the same layer goes from 0.33 to 270
#   or, in another run, 240000 (0.014 in fp32), with Prodigy_adv a LoRA from 0.080 to over a million (0.040).
# Why it matters: it is the setting for those who are short of memory, or who train for days and have to stop.
# What to do: "bf16_sr" or "factored". To resume Adopt_adv and the others take the bytes as signed again after
# load_state_dict, which is exact: state["exp_avg"] = state["exp_avg"].view(torch.int8), or "momentum_buffer".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq torch==2.13.0 numpy==2.4.6
"$work/venv/bin/pip" install -qq --no-deps adv_optm==2.5.16
"$work/venv/bin/python" - 2>"$work/warnings" <<'EOF' || { tail -5 "$work/warnings"; exit 1; }
import copy

import adv_optm
import torch

torch.set_num_threads(1)
STEPS, STOP = 200, 100
IMAGES = torch.randn(256, 32, generator=torch.Generator().manual_seed(1))
START = 0.1 * torch.randn(32, 32, generator=torch.Generator().manual_seed(2))
WANTED = START + 0.1 * torch.randn(32, 32, generator=torch.Generator().manual_seed(3))


def momentum_of(state):
    return "exp_avg" if "exp_avg" in state else "momentum_buffer"


def mended(optimizer):
    for state in optimizer.state.values():
        name = momentum_of(state)
        state[name] = state[name].view(torch.int8)


def losses(make, stop=False, after_loading=lambda optimizer: None):
    """Return the losses of a training, which may stop half way and be resumed, and the types of the momentum."""
    weight = torch.nn.Parameter(START.clone())
    optimizer, found, types = make([weight]), [], []
    for step in range(STEPS):
        if stop and step == STOP:
            weight, state = torch.nn.Parameter(weight.detach().clone()), copy.deepcopy(optimizer.state_dict())
            (before,) = optimizer.state.values()
            types.append(before[momentum_of(before)].dtype)
            optimizer = make([weight])
            optimizer.load_state_dict(state)
            after_loading(optimizer)
            types.append(optimizer.state[weight][momentum_of(optimizer.state[weight])].dtype)
        loss = (IMAGES @ (weight - WANTED).T).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found, types


def optimizer_of(name, precision, lr=1e-3):
    return lambda weights: getattr(adv_optm, name)(weights, lr=lr, state_precision=precision)


for name in ("Adopt_adv", "SignSGD_adv", "Muon_adv"):
    for precision in ("auto", "fp32", "bf16_sr", "int8_sr"):
        make = optimizer_of(name, precision)
        whole, _ = losses(make)
        resumed, types = losses(make, stop=True)
        print(f"{name:11} {precision:7} loss {whole[0]:.3f} / {whole[STOP]:.4f} / {whole[-1]:.4f}", end=", ")
        print(f"resumed {resumed[-1]:.4f}, momentum {types[0]}, then {types[1]}")
        spoilt = resumed[-1] > 1.5 * whole[-1]
        assert spoilt == (types[0] != types[1]) == (precision == "int8_sr"), (name, precision)
    assert types == [torch.int8, torch.uint8] and (name != "Adopt_adv" or resumed[-1] > 1000), name
    again, types = losses(make, stop=True, after_loading=mended)
    print(f"{name:11} int8_sr, signed again, {again[-1]:.4f}")
    assert abs(again[-1] - whole[-1]) < 0.05 * whole[-1] and types == [torch.int8] * 2, name


def lora_losses(make):
    torch.manual_seed(0)
    images, wanted = torch.randn(64, 32), 0.05 * torch.randn(32, 32)
    down, up = torch.nn.Parameter(0.3 * torch.randn(4, 32)), torch.nn.Parameter(torch.zeros(32, 4))
    optimizer, found = make([down, up]), []
    for _ in range(STEPS):
        loss = (images @ down.T @ up.T - images @ wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


for name, lr, training in [
    ("AdamW_adv", 1e-3, lambda make: losses(make)[0]),
    ("Prodigy_adv", 1.0, lora_losses),
    ("Adopt_adv", 1e-3, lora_losses),
]:
    ends = {}
    for precision in ("fp32", "bf16_sr", "factored", "int8_sr"):
        found = training(optimizer_of(name, precision, lr))
        ends[precision] = found[-1]
        print(f"{name:11} {precision:8} not stopped, loss {found[0]:.3f} / {found[-1]:.4g}")
    assert all(ends[precision] < found[0] for precision in ("fp32", "bf16_sr", "factored")), ends
    assert (ends["int8_sr"] > 100 * found[0]) == (name != "Adopt_adv"), ends
EOF
