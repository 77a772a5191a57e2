#!/usr/bin/env bash
# diffusers 0.42.1 with PEFT 0.21.2: the weight of set_adapters, the scale of a call and the scale of fuse_lora
# One would expect: a scale given for one call holds for that call, and unfuse_lora() "reverses the effect of"
# fuse_lora(), as its docstring says.
# What happens, all three without a message:
# - One call with joint_attention_kwargs={"scale": 0.0} (a picture without the LoRA, to compare) sets the weight to 1
#   for all later calls: a LoRA at 0.5 by set_adapters acts at 1.0 afterwards. After a scale of 0.25 or 2 it does not.
# - fuse_lora(lora_scale=0.5) multiplies the LoRA's own scale, unfuse_lora() leaves it there. The LoRA goes on at 0.5,
#   and fusing with 0.5 again fuses 0.25, then 0.125.
# - set_adapters between fuse_lora() and unfuse_lora(): unfusing subtracts at the weight of now. Fused at 1, set to
#   0.25, unfused, LoRA unloaded: 0.75 of the LoRA stays in the base model until it is read from disk again.
# Why it matters: comparisons of LoRA strengths in one session measure other strengths than they print.
# What to do: call set_adapters with the weight again after a call at scale 0 and after unfuse_lora(), never between
# fusing and unfusing; or use disable_lora() and enable_lora() for a picture without.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 peft==0.21.2 transformers==5.24.0 \
  accelerate==1.15.0 pillow==13.0.0 safetensors==0.8.0
"$work/venv/bin/python" - 2>"$work/warnings" <<'EOF' || { tail -5 "$work/warnings"; exit 1; }
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

PARTS = ["scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"]
torch.manual_seed(1)
INPUTS = {"hidden_states": torch.randn(1, 16, 4), "encoder_hidden_states": torch.randn(1, 5, 32)}
INPUTS |= {"pooled_projections": torch.randn(1, 32), "timestep": torch.tensor([0.5])}
INPUTS |= {"img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(5, 3)}


def small_flux():
    torch.manual_seed(0)
    heads = {"attention_head_dim": 16, "num_attention_heads": 2, "axes_dims_rope": (4, 4, 8)}
    widths = {"in_channels": 4, "joint_attention_dim": 32, "pooled_projection_dim": 32}
    return FluxTransformer2DModel(patch_size=1, num_layers=1, num_single_layers=1, **heads, **widths).eval()


@torch.no_grad()
def output(model, scale=None):
    attention = {} if scale is None else {"joint_attention_kwargs": {"scale": scale}}
    return model(**INPUTS, **attention, return_dict=False)[0]


# The LoRA is on the last layer, so that the output is linear in its strength.
base = output(small_flux())
trained = small_flux()
trained.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules="proj_out", init_lora_weights=False))
FILE = {f"transformer.{key}": tensor.clone() for key, tensor in get_peft_model_state_dict(trained).items()}
effect = output(trained) - base


def loaded(weight):
    pipeline = FluxPipeline(transformer=small_flux(), **dict.fromkeys(PARTS))
    pipeline.load_lora_weights(FILE, adapter_name="mine")
    pipeline.set_adapters("mine", weight)
    return pipeline


def strength(pipeline, scale=None):
    """Return how much of the LoRA is in the output."""
    change = output(pipeline.transformer, scale) - base
    share = (change * effect).sum() / effect.square().sum()
    assert (change - share * effect).norm() < 1e-3 * effect.norm()
    return round(share.item(), 3)


for scale, after in ((0.25, 0.5), (2.0, 0.5), (0.0, 1.0)):
    pipeline = loaded(0.5)
    found = strength(pipeline), strength(pipeline, scale), strength(pipeline)
    print(f"set_adapters to 0.5: {found[0]}; one call with scale {scale}: {found[1]}; the next without: {found[2]}")
    assert found == (0.5, 0.5 * scale, after), found

pipeline, found = loaded(1.0), []
for _ in range(3):
    pipeline.fuse_lora(lora_scale=0.5)
    found.append(strength(pipeline))
    pipeline.unfuse_lora()
    found.append(strength(pipeline))
print("set_adapters to 1, then three times fuse_lora(lora_scale=0.5) and unfuse_lora():", found)
assert found == [0.5, 0.5, 0.25, 0.25, 0.125, 0.125], found

found = []
for weight in (1.0, 0.25):
    pipeline = loaded(1.0)
    pipeline.fuse_lora()
    pipeline.set_adapters("mine", weight)
    found.append(strength(pipeline))
    pipeline.unfuse_lora()
    pipeline.unload_lora_weights()
    found.append(strength(pipeline))
    print(f"fused at 1, set_adapters to {weight}: {found[-2]}; unfused and unloaded: {found[-1]}")
assert found == [1.0, 0.0, 1.0, 0.75], found
EOF
