#!/usr/bin/env bash
# diffusers 0.42.1: a Flux LoRA in kohya's names that has more than the transformer blocks
# One would expect: all the layers of a file are loaded, or a message says which are not; the reader of kohya's names
# has a line for each of them.
# What happens: the layers outside the blocks (img_in, txt_in, time_in, vector_in, guidance_in, final_layer) get their
# diffusers names but not the "transformer." in front, and load_lora_weights goes on with what begins with it. Of a file
# with 12 layers 2 are loaded. Nothing in the log names one of the 10: the only warning, on the text encoder, also comes
# for a file that is loaded whole. The same layers in diffusers' own names are loaded.
# Why it matters: sd-scripts trains the input layers with in_dims, extracted LoRAs have all. The LoRA looks weak in
# diffusers and right elsewhere; on the small model here, with all layers' changes of like size, next to nothing of its
# effect is there. (Pull request 14001 of June 2026 put the reading of final_layer right, which is then not loaded.)
# What to do: convert with FluxPipeline.lora_state_dict, put "transformer." before each key that lacks it, and load the
# dictionary.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 peft==0.21.2 transformers==5.24.0 \
  accelerate==1.15.0 pillow==13.0.0 safetensors==0.8.0
"$work/venv/bin/python" - 2>"$work/warnings" <<'EOF' || { tail -5 "$work/warnings"; exit 1; }
import logging

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel

PARTS = ["scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"]
EMBEDDER = "time_text_embed"
LAYERS = {
    "double_blocks_0_img_attn_proj": "transformer_blocks.0.attn.to_out.0",
    "single_blocks_0_linear2": "single_transformer_blocks.0.proj_out",
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in_in_layer": f"{EMBEDDER}.timestep_embedder.linear_1",
    "time_in_out_layer": f"{EMBEDDER}.timestep_embedder.linear_2",
    "vector_in_in_layer": f"{EMBEDDER}.text_embedder.linear_1",
    "vector_in_out_layer": f"{EMBEDDER}.text_embedder.linear_2",
    "guidance_in_in_layer": f"{EMBEDDER}.guidance_embedder.linear_1",
    "guidance_in_out_layer": f"{EMBEDDER}.guidance_embedder.linear_2",
    "final_layer_adaLN_modulation_1": "norm_out.linear",
    "final_layer_linear": "proj_out",
}
torch.manual_seed(1)
INPUTS = {"hidden_states": torch.randn(1, 16, 4), "encoder_hidden_states": torch.randn(1, 5, 32)}
INPUTS |= {"pooled_projections": torch.randn(1, 32), "timestep": torch.tensor([0.5]), "guidance": torch.tensor([3.5])}
INPUTS |= {"img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(5, 3)}


class Messages(logging.Handler):
    def __init__(self):
        super().__init__()
        self.texts = []

    def emit(self, record):
        self.texts.append(record.getMessage())


messages = Messages()
logging.getLogger("diffusers").addHandler(messages)


def small_flux():
    torch.manual_seed(0)
    heads = {"attention_head_dim": 16, "num_attention_heads": 2, "axes_dims_rope": (4, 4, 8)}
    widths = {"in_channels": 4, "joint_attention_dim": 32, "pooled_projection_dim": 32, "guidance_embeds": True}
    return FluxTransformer2DModel(patch_size=1, num_layers=1, num_single_layers=1, **heads, **widths).eval()


@torch.no_grad()
def output(model):
    return model(**INPUTS, return_dict=False)[0]


def loaded(file):
    """Load a LoRA; return the layers that have one, the output, and what was logged."""
    messages.texts.clear()
    model = small_flux()
    FluxPipeline(transformer=model, **dict.fromkeys(PARTS)).load_lora_weights(file, adapter_name="mine")
    return {name for name, layer in model.named_modules() if hasattr(layer, "lora_A")}, output(model), [*messages.texts]


model, kohya = small_flux(), {}
torch.manual_seed(2)
for name, diffusers_name in LAYERS.items():
    layer = model.get_submodule(diffusers_name)
    kohya[f"lora_unet_{name}.lora_down.weight"] = torch.randn(4, layer.in_features) / layer.in_features**0.5
    kohya[f"lora_unet_{name}.lora_up.weight"] = torch.randn(layer.out_features, 4) * 0.2
    kohya[f"lora_unet_{name}.alpha"] = torch.tensor(4.0)

found, there, log = loaded(kohya)
converted = FluxPipeline.lora_state_dict(dict(kohya))
repaired = {f"transformer.{key.removeprefix('transformer.')}": tensor for key, tensor in converted.items()}
found_repaired, whole, log_repaired = loaded(repaired)
effect = whole - output(model)
share = (((there - output(model)) * effect).sum() / effect.square().sum()).item()
print(f"{len(LAYERS)} layers in the file, {len(found)} loaded: {sorted(found)}")
print(f"with 'transformer.' before all names {len(found_repaired)} loaded; the first has {share:.2f} of their effect")
print("messages of the two:", len(log), len(log_repaired), "equal" if log == log_repaired else "not equal")
assert found == {name for name in LAYERS.values() if "_blocks." in name}, found
assert found_repaired == set(LAYERS.values()), found_repaired
assert log == log_repaired and not any(name in text for text in log for name in LAYERS.values()), log
assert abs(share) < 0.2, share
EOF
