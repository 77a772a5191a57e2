#!/usr/bin/env bash
# diffusers 0.42.1 with PEFT 0.21.2: a Flux LoRA whose last layer has an alpha of its own
# One would expect: every layer gets the alpha that the file holds for it.
# What happens: in a file where all have rank 4 and alpha 4 except the last layer, transformer.proj_out, with alpha 1,
# all the single blocks' proj_out (38 in the real model) are loaded at 1/4 of their strength too. No message.
# diffusers hands the exceptions to PEFT as a pattern, PEFT matches patterns at the end of a name, and "proj_out"
# is the end of "single_transformer_blocks.7.proj_out". For ranks diffusers knows it and puts "^" before each
# (a file with two ranks loads right); the alphas were left out. A file with one alpha for all loads right too, so
# it shows only where alphas differ by layer.
# Why it matters: resizing and merging tools write alphas by layer. proj_out is the way out of both the attention
# and the MLP of every single block: the LoRA looks weak in diffusers and right elsewhere.
# What to do: fold alpha / rank into the weights before saving, or give all layers the same alpha.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 peft==0.21.2 transformers==5.24.0 \
  accelerate==1.15.0 pillow==13.0.0 safetensors==0.8.0
cd "$work"
"$work/venv/bin/python" - 2>"$work/warnings" <<'EOF' || { tail -5 "$work/warnings"; exit 1; }
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from safetensors.torch import save_file

BLOCKS = ["single_transformer_blocks.0.proj_out", "single_transformer_blocks.1.proj_out"]
LAYERS = ["transformer_blocks.0.attn.to_q", *BLOCKS, "proj_out"]


def small_flux():
    heads = {"attention_head_dim": 16, "num_attention_heads": 2, "axes_dims_rope": (4, 4, 8)}
    widths = {"in_channels": 4, "joint_attention_dim": 32, "pooled_projection_dim": 32}
    return FluxTransformer2DModel(patch_size=1, num_layers=1, num_single_layers=2, **heads, **widths)


def scalings(last_rank, last_alpha):
    """Save a LoRA of rank 4 and alpha 4 but for its last layer; return the scalings that diffusers loads."""
    model, tensors = small_flux(), {}
    for name in LAYERS:
        layer = model.get_submodule(name)
        rank, alpha = (last_rank, last_alpha) if name == "proj_out" else (4, 4.0)
        tensors[f"transformer.{name}.lora_A.weight"] = torch.ones(rank, layer.in_features)
        tensors[f"transformer.{name}.lora_B.weight"] = torch.ones(layer.out_features, rank)
        tensors[f"transformer.{name}.alpha"] = torch.tensor(alpha)
    save_file(tensors, "lora.safetensors")
    tensors, alphas = FluxPipeline.lora_state_dict("lora.safetensors", return_alphas=True)
    alphas = {key: alpha.item() for key, alpha in alphas.items()}
    FluxPipeline.load_lora_into_transformer(tensors, alphas, model, adapter_name="lora")
    return {name: model.get_submodule(name).scaling["lora"] for name in LAYERS}


one_alpha, own_alpha, own_rank = scalings(4, 4.0), scalings(4, 1.0), scalings(2, 4.0)
print("layer", " " * 34, "alpha 4 everywhere | proj_out alpha 1 | proj_out rank 2, alpha 4")
for name in LAYERS:
    print(f"{name:40} {one_alpha[name]:<18} | {own_alpha[name]:<16} | {own_rank[name]}")
assert set(one_alpha.values()) == {1.0}, one_alpha
assert own_alpha == {LAYERS[0]: 1.0, BLOCKS[0]: 0.25, BLOCKS[1]: 0.25, "proj_out": 0.25}, own_alpha
assert own_rank == {LAYERS[0]: 1.0, BLOCKS[0]: 1.0, BLOCKS[1]: 1.0, "proj_out": 2.0}, own_rank
EOF
