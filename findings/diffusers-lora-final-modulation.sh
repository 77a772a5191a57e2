#!/usr/bin/env bash
# diffusers 0.42.1: LoRAs of final_layer.adaLN_modulation.1, the last modulation of Flux.2, Flux Control, HunyuanVideo
# One would expect: a LoRA in the names of the original model changes the same numbers as it does in the original.
# What happens: the original puts (shift, scale) in this layer's output, diffusers (scale, shift), so the halves have to
# change places: in the LoRA's second matrix, lora_B or lora_up. Each reading of the file does it in another way:
# - Flux.2, as LoRA and as LoKr: not at all. What was trained as shift is applied as scale and the other way round.
# - Flux Control (the format of FLUX.1-Canny-dev-lora and FLUX.1-Depth-dev-lora) and HunyuanVideo: in both matrices. In
#   lora_A this exchanges ranks 1..r/2 with r/2+1..r, so each goes with another one's output.
# - kohya's names for Flux: right (pull request 14001 of June 2026 removed the same fault there, and only there).
# Against the same LoRA merged into the original first and converted by diffusers' own reader of whole checkpoints,
# which does it right, the change of weight is off by 1.4 to 1.5 times its own size, as far as a random one. No message.
# Why it matters: this layer sets the brightness and contrast of the whole latent at every step.
# What to do: put the file through the pipeline's lora_state_dict, exchange the halves of
# transformer.norm_out.linear.lora_B (Flux.2) or lora_A (the other two) in the result, and load that dictionary.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 peft==0.21.2 transformers==5.24.0 \
  accelerate==1.15.0 pillow==13.0.0 safetensors==0.8.0
"$work/venv/bin/python" - 2>"$work/warnings" <<'EOF' || { tail -5 "$work/warnings"; exit 1; }
import torch
from diffusers import Flux2Pipeline, FluxPipeline, HunyuanVideoPipeline
from diffusers.loaders import single_file_utils

NAME, RANK, WIDTH = "final_layer.adaLN_modulation.1", 4, 3072
torch.manual_seed(0)
A, B = torch.randn(RANK, WIDTH), torch.randn(2 * WIDTH, RANK)
W1, W2 = torch.randn(4, 4), torch.randn(2 * WIDTH // 4, WIDTH // 4)


def change(tensors):
    """Return the change of weight that a converted LoRA or LoKr stands for."""
    tensors = {key.removeprefix("transformer."): tensor for key, tensor in tensors.items()}
    if "norm_out.linear.lokr_w1" in tensors:
        return torch.kron(tensors["norm_out.linear.lokr_w1"], tensors["norm_out.linear.lokr_w2"])
    return tensors["norm_out.linear.lora_B.weight"] @ tensors["norm_out.linear.lora_A.weight"]


def whole_checkpoint(reader, delta):
    """Return what becomes of a change of weight that is part of a whole checkpoint of the original."""
    return reader({f"{NAME}.weight": delta.clone()})["norm_out.linear.weight"]


def control_lora():
    """Return a file that has all the layers of a Flux Control LoRA in their sizes, zero but for the one in question."""
    mlp, sizes = 4 * WIDTH, {"img_in": (WIDTH, 128), "txt_in": (WIDTH, 4096), "final_layer.linear": (64, WIDTH)}
    for part, width in (("time_in", 256), ("guidance_in", 256), ("vector_in", 768)):
        sizes |= {f"{part}.in_layer": (WIDTH, width), f"{part}.out_layer": (WIDTH, WIDTH)}
    norms = []
    for block in (f"double_blocks.{i}.{stream}_" for i in range(19) for stream in ("img", "txt")):
        sizes |= {f"{block}mod.lin": (6 * WIDTH, WIDTH), f"{block}attn.qkv": (3 * WIDTH, WIDTH)}
        sizes |= {f"{block}attn.proj": (WIDTH, WIDTH), f"{block}mlp.0": (mlp, WIDTH), f"{block}mlp.2": (WIDTH, mlp)}
        norms.append(f"{block}attn.norm")
    for block in (f"single_blocks.{i}." for i in range(38)):
        sizes |= {f"{block}linear1": (3 * WIDTH + mlp, WIDTH), f"{block}linear2": (WIDTH, WIDTH + mlp)}
        sizes |= {f"{block}modulation.lin": (3 * WIDTH, WIDTH)}
        norms.append(f"{block}norm")
    file = {f"{norm}.{kind}_norm.scale": torch.ones(128) for norm in norms for kind in ("query", "key")}
    for layer, (out, into) in sizes.items():
        file |= {f"{layer}.lora_A.weight": torch.zeros(1).expand(RANK, into)}
        file |= {f"{layer}.lora_B.weight": torch.zeros(1).expand(out, RANK)}
    return file | {f"{NAME}.lora_A.weight": A, f"{NAME}.lora_B.weight": B}


lora = {f"{NAME}.lora_A.weight": A, f"{NAME}.lora_B.weight": B}
lokr = {f"diffusion_model.{NAME}.lokr_w1": W1, f"diffusion_model.{NAME}.lokr_w2": W2}
kohya = {"lora_unet_final_layer_adaLN_modulation_1.lora_down.weight": A}
kohya |= {"lora_unet_final_layer_adaLN_modulation_1.lora_up.weight": B}
flux2 = single_file_utils.convert_flux2_transformer_checkpoint_to_diffusers
hunyuan = single_file_utils.convert_hunyuan_video_transformer_to_diffusers
right = whole_checkpoint(flux2, B @ A)
assert torch.equal(right, whole_checkpoint(hunyuan, B @ A)) and not torch.equal(right, B @ A)

prefixed = {f"diffusion_model.{key}": tensor for key, tensor in lora.items()}
QKV = "diffusion_model.double_blocks.0.img_attn_qkv"  # by this layer HunyuanVideo's original names are recognised
video = prefixed | {f"{QKV}.lora_A.weight": torch.zeros(RANK, 6), f"{QKV}.lora_B.weight": torch.zeros(18, RANK)}
loaded = {
    "Flux, kohya's names": (FluxPipeline, kohya, right),
    "Flux Control": (FluxPipeline, control_lora(), right),
    "Flux.2": (Flux2Pipeline, prefixed, right),
    "Flux.2, LoKr": (Flux2Pipeline, lokr, whole_checkpoint(flux2, torch.kron(W1, W2))),
    "HunyuanVideo": (HunyuanVideoPipeline, video, right),
}
errors = {}
for name, (pipeline, file, expected) in loaded.items():
    errors[name] = ((change(pipeline.lora_state_dict(dict(file))) - expected).norm() / expected.norm()).item()
    print(f"{name:20} change of weight off by {errors[name]:.3f} of its size")
wrong = {name for name, error in errors.items() if error > 1e-5}
assert wrong == set(loaded) - {"Flux, kohya's names"}, wrong
assert all(1.2 < errors[name] < 1.6 for name in wrong), errors

# Which exchange it is that is missing, or too much.
up, down = B.roll(WIDTH, 0), A.roll(RANK // 2, 0)
assert torch.equal(change(Flux2Pipeline.lora_state_dict(dict(prefixed))), B @ A)
assert torch.equal(change(FluxPipeline.lora_state_dict(control_lora())), up @ down)
assert torch.equal(change(HunyuanVideoPipeline.lora_state_dict(dict(video))), up @ down)
EOF
