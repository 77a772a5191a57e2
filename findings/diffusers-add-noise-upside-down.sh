#!/usr/bin/env bash
# diffusers 0.42.1: add_noise of DPMSolverMultistep, DPMSolverSinglestep, DEIS and UniPC before set_timesteps()
# One would expect: add_noise(x0, noise, t) gives the noise of timestep t whatever the scheduler, as training needs it.
# So it is with DDPM, DDIM, PNDM, Euler and Heun.
# What happens: with these four, of a fresh object, the noise is that of timestep 999 - t. SD's schedule, t = 0: the
# noise has a share of 0.998 where 0.029 is right, t = 100: 0.993 for 0.325, t = 999: 0.029 for 0.998. Only about t = 500
# is right. No message. The constructor lists timesteps from 999 down and sigmas from small to large, and add_noise goes
# by the place in the list. After set_timesteps(20) both go down, and each of the 20 timesteps is right; a timestep that
# is not among them gets another one's noise, off by up to 0.78.
# Why it matters: a training that takes its scheduler from a pipeline where one of these four was set tells the model
# "nearly clean" and shows it noise, and the other way round.
# What to do: train with DDPMScheduler.from_config(pipeline.scheduler.config).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq torch==2.13.0 numpy==2.4.6 diffusers==0.42.1
"$work/venv/bin/python" - 2>"$work/warnings" <<'PYTHON' || { tail -5 "$work/warnings"; exit 1; }
import diffusers
import torch

SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
NAMES = ["DDPM", "DDIM", "PNDM", "EulerDiscrete", "HeunDiscrete"]
TURNED = ["DPMSolverMultistep", "DPMSolverSinglestep", "DEISMultistep", "UniPCMultistep"]
TIMESTEPS = [0, 100, 500, 999]

# The noise's share of a variance-preserving mixture, from the definition and not from any scheduler.
betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
expected = (1 - torch.cumprod(1 - betas, 0)).sqrt()


def scheduler(name):
    return getattr(diffusers, name + "Scheduler")(**SCHEDULE)


def noise_share(made, timesteps):
    """Return the share of noise, of an image and noise that are each 1, scaled as variance-preserving, per timestep."""
    timesteps = torch.as_tensor(timesteps)
    one, none = torch.ones(len(timesteps), 1), torch.zeros(len(timesteps), 1)
    image, noise = made.add_noise(one, none, timesteps), made.add_noise(none, one, timesteps)
    return (noise / (noise.square() + image.square()).sqrt()).flatten().double()


print(f"{'share of noise at t =':24}", TIMESTEPS, "largest error of all t | if t were 999 - t")
print(f"{'by definition':24}", [round(expected[t].item(), 3) for t in TIMESTEPS])
everything = range(1000)
errors, turned_errors = {}, {}
for name in NAMES + TURNED:
    share = noise_share(scheduler(name), everything)
    errors[name] = (share - expected).abs().max().item()
    turned_errors[name] = (share - expected.flip(0)).abs().max().item()
    shares = [round(share[t].item(), 3) for t in TIMESTEPS]
    print(f"{name:24}", shares, f"{errors[name]:.5f} | {turned_errors[name]:.5f}")
assert max(errors[name] for name in NAMES) < 1e-3, errors
assert min(errors[name] for name in TURNED) > 0.9, errors
assert max(turned_errors[name] for name in TURNED) < 1e-3, turned_errors

for name in TURNED:
    made = scheduler(name)
    made.set_timesteps(20)
    own = (noise_share(made, made.timesteps) - expected[made.timesteps.long()]).abs().max().item()
    others = (noise_share(made, everything) - expected).abs().max().item()
    print(f"{name:24} after set_timesteps(20): off by {own:.5f} at these 20, by up to {others:.3f} at the others")
    assert own < 1e-3 and others > 0.7, (own, others)
PYTHON
