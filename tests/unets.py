"""U-Nets of the host and of diffusers: of the real shapes without weights, and small ones with the same weights."""

from __future__ import annotations

import comfy.model_detection
import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from pack.tools.bench.subjects import SD1, SDXL
from pack.trainer.adapters import Adapter, LoHaLayer, LoKrLayer, LoRALayer
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

CPU = torch.device("cpu")
FAMILIES = ("SD1", "SDXL")
KINDS = {"lierla": LoRALayer, "c3lier": LoRALayer, "loha": LoHaLayer, "lokr": LoKrLayer}
STRENGTHS = {"loha": 0.4, "lokr": 0.2}  # of random weights: products of more factors are smaller

# What the models' config.json has beside diffusers' defaults.
REAL = {
    "SD1": SD1,
    "SD2": {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
    "SDXL": SDXL,
}

# Two levels, in SD1 the first with attention, in SDXL the second, which is twice as deep. The host gives SD1 8 heads,
# and SDXL heads of 64 channels.
SMALL = {
    "SD1": {
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 8,
    },
    "SDXL": {
        "block_out_channels": (64, 128),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2),
        "attention_head_dim": (1, 2),
        "use_linear_projection": True,
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": 40,
    },
}
SMALL_ON_HOST = {
    "SD1": {
        "model_channels": 32,
        "transformer_depth": [1, 1, 0, 0],
        "transformer_depth_output": [1, 1, 1, 0, 0, 0],
        "transformer_depth_middle": 1,
        "use_linear_in_transformer": False,
        "adm_in_channels": None,
    },
    "SDXL": {
        "model_channels": 64,
        "transformer_depth": [0, 0, 2, 2],
        "transformer_depth_output": [0, 0, 0, 2, 2, 2],
        "transformer_depth_middle": 2,
        "use_linear_in_transformer": True,
        "num_classes": "sequential",
        "adm_in_channels": 40,
    },
}


def host_model(family: str) -> ModelPatcher:
    """The host's MODEL of the real shapes; its weights take no memory."""
    with torch.device("meta"):
        names = UNet2DConditionModel(**REAL[family]).state_dict()
    config = comfy.model_detection.model_config_from_diffusers_unet(names)
    return ModelPatcher(config.get_model({}, "", device="meta"), CPU, CPU)


def host_flux() -> ModelPatcher:
    """The host's MODEL of Flux.1 dev, without weights."""
    size = {"hidden_size": 3072, "num_heads": 24, "depth": 19, "depth_single_blocks": 38, "mlp_ratio": 4.0}
    inputs = {"in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": 768, "context_in_dim": 4096}
    rest = {"axes_dim": [16, 56, 56], "theta": 10000, "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": []}
    config = comfy.supported_models.Flux({"image_model": "flux", **size, **inputs, **rest})
    return ModelPatcher(config.get_model({}, "", device="meta"), CPU, CPU)


def host_clip(family: str) -> comfy.sd.CLIP:
    """The host's CLIP of the real shapes; its weights take no memory."""
    clip = comfy.sd.CLIP(no_init=True)
    kind = {"SD1": comfy.sd1_clip.SD1ClipModel, "SDXL": comfy.sdxl_clip.SDXLClipModel}[family]
    clip.cond_stage_model = kind(device="meta")
    clip.patcher = ModelPatcher(clip.cond_stage_model, CPU, CPU)
    clip.tokenizer = clip.layer_idx = clip.apply_hooks_to_conds = None
    clip.tokenizer_options, clip.use_clip_schedule = {}, False
    return clip


def diffusers_pipeline(family: str, unet: UNet2DConditionModel | None = None) -> StableDiffusionPipeline:
    """What loads a LoRA in diffusers: a pipeline with text encoders; of the real shapes where no U-Net is given.

    The weights of the real shapes are memory that nothing has written to, so they take none.
    """
    with torch.device("meta"):
        unet = unet or UNet2DConditionModel(**REAL[family]).half().to_empty(device=CPU)
        first = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12))
        large = {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20, "num_hidden_layers": 32}
        second = CLIPTextModelWithProjection(CLIPTextConfig(**large))
    parts = {
        "vae": None,
        "unet": unet,
        "scheduler": None,
        "tokenizer": None,
        "text_encoder": first.to_empty(device=CPU),
    }
    if family == "SDXL":
        return StableDiffusionXLPipeline(**parts, text_encoder_2=second.to_empty(device=CPU), tokenizer_2=None)
    return StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def small_pair(family: str) -> tuple[ModelPatcher, UNet2DConditionModel]:
    """A small MODEL of the host and diffusers' U-Net with the same weights."""
    kind = {"SD1": comfy.supported_models.SD15, "SDXL": comfy.supported_models.SDXL}[family]
    shape = {"in_channels": 4, "out_channels": 4, "channel_mult": [1, 2], "num_res_blocks": [2, 2]}
    rest = {"image_size": 32, "context_dim": 24, "use_spatial_transformer": True, "legacy": False}
    model = kind({**shape, **rest, **SMALL_ON_HOST[family]}).get_model({}, "", device="cpu")
    torch.manual_seed(0)
    for parameter in model.diffusion_model.parameters():
        nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    theirs = UNet2DConditionModel(cross_attention_dim=24, **SMALL[family])
    weights = model.diffusion_model.state_dict()
    names = comfy.utils.unet_to_diffusers(model.model_config.unet_config)
    theirs.load_state_dict({name: weights[names[_as_sdxl_names(name)]] for name in theirs.state_dict()})
    return ModelPatcher(model, CPU, CPU), theirs


def run_host(patcher: ModelPatcher) -> torch.Tensor:
    """The output of the host's U-Net, with what is patched on it, for a fixed input."""
    x, t, context, y = _inputs()
    unet = patcher.model.diffusion_model
    patcher.patch_model(CPU, force_patch_weights=True)
    try:
        with torch.no_grad():
            return unet(x, t, context, y=y if unet.num_classes else None)
    finally:
        patcher.unpatch_model(CPU)


def run_diffusers(unet: UNet2DConditionModel) -> torch.Tensor:
    """The output of diffusers' U-Net for the same input."""
    x, t, context, y = _inputs()
    with torch.no_grad():
        return unet(x, t, context, class_labels=y if unet.config.class_embed_type else None).sample


def random_adapter(kind: str, layer: nn.Module) -> Adapter:
    """An adapter that does something; of 3x3 convolutions with another rank and alpha than of the rest."""
    rank, alpha = (3, 2.0) if layer.weight.shape[2:] == (3, 3) else (2, 4.0)
    adapter = KINDS[kind](layer, rank, alpha, torch.Generator()).to_empty(device=CPU)
    for parameter in adapter.parameters():
        nn.init.normal_(parameter, std=STRENGTHS.get(kind, 0.1))
    return adapter


def _inputs() -> tuple[torch.Tensor, ...]:
    rng = torch.Generator().manual_seed(1)
    x, context, y = (torch.randn(shape, generator=rng) for shape in ((2, 4, 8, 12), (2, 5, 24), (2, 40)))
    return x, torch.tensor([37.0, 805.0]), context, y


def _as_sdxl_names(name: str) -> str:
    return name.replace("class_embedding", "add_embedding")
