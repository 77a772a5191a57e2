#!/usr/bin/env bash
# diffusers 0.42.1: convert_state_dict_to_kohya of a LoRA made by PEFT 0.21.2
# One would expect: the function that its docstring offers for A1111, ComfyUI and others keeps the effect of a LoRA.
# What happens: it writes the rank as every alpha, whatever lora_alpha was (a state dict does not hold it, and there
# is no argument for it). With rank 16 and lora_alpha 8 the file comes out at twice its strength, with rank 4 and
# lora_alpha 1 at four times, with rank 8 and lora_alpha 16 at half. Read back by diffusers: scaling 1.0, not 0.5.
# A DoRA fares worse: its branch for the magnitude (dora_scale) stands behind one that every U-Net key takes, so the
# key comes out half converted, "..._attn1.to_q.lora_magnitude_vector", a name in nobody's format: diffusers'
# own loader refuses the file.
# Why it matters: diffusers' own training scripts save through it (--output_kohya_format), and so do many others.
# The LoRA is too strong or too weak in every other program, and people turn the learning rate instead.
# What to do: train with lora_alpha equal to the rank; or set the .alpha entries to lora_alpha after converting, and
# rename X.lora_magnitude_vector to X.dora_scale with shape (out, 1).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 peft==0.21.2 transformers==5.24.0 \
  accelerate==1.15.0 pillow==13.0.0
"$work/venv/bin/python" - 2>"$work/warnings" <<'EOF' || { tail -5 "$work/warnings"; exit 1; }
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_kohya
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def small_unet():
    blocks = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    sizes = {"block_out_channels": (32,), "cross_attention_dim": 32, "norm_num_groups": 8, "attention_head_dim": 8}
    return UNet2DConditionModel(sample_size=8, layers_per_block=1, **blocks, **sizes)


def converted(rank, alpha, dora=False):
    """Return the converted file and the change of weight that one layer had before."""
    unet = small_unet()
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, use_dora=dora, target_modules=["to_q"]))
    layer = unet.get_submodule(LAYER)
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    tensors = {f"unet.{key}": tensor for key, tensor in get_peft_model_state_dict(unet).items()}
    return convert_state_dict_to_kohya(tensors), layer.get_delta_weight("default")


name = "lora_unet_" + LAYER.replace(".", "_")
ratios = []
for rank, alpha in ((16, 8), (4, 1), (8, 16)):
    file, delta = converted(rank, alpha)
    read = file[f"{name}.lora_up.weight"] @ file[f"{name}.lora_down.weight"] * (file[f"{name}.alpha"] / rank)
    ratios.append(round((read.norm() / delta.norm()).item(), 3))
    print(f"rank {rank}, lora_alpha {alpha}: alpha in the file {file[f'{name}.alpha']}, strength times {ratios[-1]}")

file, _ = converted(16, 8)
again = small_unet()
tensors, alphas = StableDiffusionPipeline.lora_state_dict(file)
StableDiffusionPipeline.load_lora_into_unet(tensors, alphas, again, adapter_name="again")
scaling = again.get_submodule(LAYER).scaling["again"]
print("rank 16, lora_alpha 8, read back by diffusers: scaling", scaling, "where it was 0.5")

file, _ = converted(16, 16, dora=True)
magnitudes = [key for key in file if "dora" in key or "magnitude" in key]
print("DoRA's magnitude:", magnitudes[0])
try:
    StableDiffusionPipeline.lora_state_dict(file)
    refusal = ""
except ValueError as error:
    refusal = str(error)
print("diffusers on its own file:", refusal.strip().splitlines()[0])
assert ratios == [2.0, 4.0, 0.5], ratios
assert scaling == 1.0, scaling
assert magnitudes[0] == name.removesuffix("_to_q") + ".to_q.lora_magnitude_vector", magnitudes
assert refusal.startswith("The following keys have not been correctly renamed"), refusal
EOF
