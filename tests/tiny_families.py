"""The image model families of the host, each with numbers that make a tiny network of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from comfy.ldm.anima.model import Anima
from comfy.ldm.chroma.model import Chroma
from comfy.ldm.flux.model import Flux
from comfy.ldm.krea2.model import SingleStreamDiT
from comfy.ldm.lumina.model import NextDiT
from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel
from comfy.ldm.wan.model import WanModel

CHECKPOINT = "model.diffusion_model."  # before the keys of a network in a checkpoint


@dataclass(frozen=True)
class Family:
    """How to build a tiny model of a family, and what goes into it.

    network, sizes: the host's class of the network, and the sizes that its weights then have in the file
    config: the host's name of the family
    text, pooled: channels of a prompt's tokens, and of its pooled output, if it has one
    latent: channels of its latents
    frames: whether its latents have a dimension of time
    masked: whether its prompts come with an attention mask
    padded: whether that mask has padding
    t5: whether its prompts come with the numbers and weights of T5's tokens
    more: shapes of further tensors that its prompts come with
    prefix: before the network's keys in the file; with one the file is a checkpoint
    renamed: how a key ends in the host -> how it ends in the file
    markers: tensors in the file by which the host knows a variant
    fixed: sizes that the host does not read from the file but sets to the real model's; these take their place while
        a tiny model is loaded
    matched: the same of sizes that the host knows the family by
    adapter: sizes of the network that Anima has for its prompts, which the host sets to the real model's
    real: the real model's sizes in the places of `fixed` and `matched`
    """

    network: type
    sizes: dict[str, Any]
    config: str
    text: int
    pooled: int = 0
    latent: int = 16
    frames: bool = False
    masked: bool = False
    padded: bool = True
    t5: bool = False
    more: dict[str, tuple[int, ...]] = field(default_factory=dict)
    prefix: str = ""
    renamed: dict[str, str] = field(default_factory=dict)
    markers: dict[str, torch.Tensor] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)
    matched: dict[str, Any] = field(default_factory=dict)
    adapter: dict[str, Any] = field(default_factory=dict)
    real: dict[str, Any] = field(default_factory=dict)


def _unet(context: int, **sizes: Any) -> dict[str, Any]:
    """Return the sizes of a U-Net of one level and one block: the host knows SD1 and SD2 by the 320 channels."""
    level = {"num_res_blocks": [1], "channel_mult": [1], "transformer_depth": [1], "transformer_depth_output": [1, 1]}
    shape = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "context_dim": context}
    kind = {"use_spatial_transformer": True, "legacy": False, "transformer_depth_middle": 1}
    return {**level, **shape, **kind, **sizes}


_SD1 = _unet(768, num_heads=8)
_SD2 = _unet(1024, num_head_channels=64, use_linear_in_transformer=True)
# Three levels, as the real one, for its attention stands in the lower two.
_SDXL = _unet(
    2048,
    model_channels=32,
    num_head_channels=64,
    use_linear_in_transformer=True,
    num_res_blocks=[2, 2, 2],
    channel_mult=[1, 2, 4],
    transformer_depth=[0, 0, 1, 1, 1, 1],
    transformer_depth_output=[0, 0, 0, 1, 1, 1, 1, 1, 1],
    num_classes="sequential",
    adm_in_channels=2816,
)
_SD3 = {
    "input_size": None,
    "in_channels": 16,
    "depth": 2,
    "num_patches": 256,
    "pos_embed_max_size": 16,
    "adm_in_channels": 32,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 24, "out_features": 128}},
}
_FLUX = {
    "in_channels": 16,
    "out_channels": 16,
    "hidden_size": 128,
    "num_heads": 1,
    "axes_dim": [16, 56, 56],
    "context_in_dim": 24,
    "depth": 2,
    "depth_single_blocks": 2,
    "mlp_ratio": 4.0,
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "txt_ids_dims": [],
}
_FLUX2 = {
    **_FLUX,
    "in_channels": 128,
    "out_channels": 128,
    "axes_dim": [32, 32, 32, 32],
    "theta": 2000,
    "mlp_ratio": 3.0,
    "patch_size": 1,
    "qkv_bias": False,
    "ops_bias": False,
    "txt_ids_dims": [3],
    "global_modulation": True,
    "mlp_silu_act": True,
}
_CHROMA = {"out_dim": 128, "hidden_dim": 64, "n_layers": 1}
_LUMINA = {
    "n_refiner_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 1,
    "axes_dims": [8, 12, 12],
    "axes_lens": [300, 512, 512],
    "ffn_dim_multiplier": 1.0,
    "rope_theta": 10000.0,
}
_Z_IMAGE = {
    "n_refiner_layers": 1,
    "n_heads": 8,
    "n_kv_heads": 8,
    "axes_dims": [8, 12, 12],
    "axes_lens": [1536, 512, 512],
    "ffn_dim_multiplier": 1.0,
    "rope_theta": 256.0,
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}
_NEXT_DIT = {"in_channels": 16, "cap_feat_dim": 24, "n_layers": 2, "qk_norm": True}
_QWEN = {"num_attention_heads": 1, "joint_attention_dim": 24}
_COSMOS = {"num_blocks": 2, "num_heads": 1, "crossattn_emb_channels": 64, "adaln_lora_dim": 16}
_COSMOS_SIZE = {"max_img_h": 240, "max_img_w": 240, "max_frames": 128, "patch_spatial": 2, "patch_temporal": 1}
_COSMOS_ROPE = {"pos_emb_cls": "rope3d", "rope_h_extrapolation_ratio": 4.0, "rope_w_extrapolation_ratio": 4.0}
_COSMOS_KIND = {"use_adaln_lora": True, "rope_enable_fps_modulation": False, "in_channels": 16, "out_channels": 16}
_ANIMA = {**_COSMOS_SIZE, **_COSMOS_ROPE, **_COSMOS_KIND, **_COSMOS, "model_channels": 128}
_KREA2_TEXT = {"txtheads": 1, "txtkvheads": 1}
_KREA2 = {"features": 128, "heads": 1, "kvheads": 1, "layers": 2, "txtdim": 12, "txtlayers": 2, **_KREA2_TEXT}
_SCALE = {"_norm.weight": "_norm.scale"}  # as Black Forest Labs name the weights of norms

FAMILIES = {
    "SD1": Family(UNetModel, _SD1, "SD15", 768, latent=4, prefix=CHECKPOINT),
    "SD2": Family(
        UNetModel,
        _SD2,
        "SD20",
        1024,
        latent=4,
        prefix=CHECKPOINT,
        # SD2 predicts v where this bias, of a block that the tiny one has not, is spread wide.
        markers={"output_blocks.11.1.transformer_blocks.0.norm1.bias": torch.tensor([-1.0, 1.0])},
    ),
    "SDXL": Family(
        UNetModel,
        _SDXL,
        "SDXL",
        2048,
        pooled=1280,
        latent=4,
        prefix=CHECKPOINT,
        matched={"model_channels": 32, "transformer_depth": [0, 0, 1, 1, 1, 1]},
        real={"model_channels": 320, "transformer_depth": [0, 0, 2, 2, 10, 10]},
    ),
    "SD3": Family(MMDiT, _SD3, "SD3", 24, pooled=32, prefix=CHECKPOINT),
    "Flux": Family(Flux, {**_FLUX, "vec_in_dim": 32, "guidance_embed": True}, "Flux", 24, pooled=32, renamed=_SCALE),
    "Flux2": Family(
        Flux, {**_FLUX2, "vec_in_dim": None, "guidance_embed": True}, "Flux2", 24, latent=128, renamed=_SCALE
    ),
    "Chroma": Family(
        Chroma,
        {**_FLUX, "in_channels": 64, "out_channels": 64, "in_dim": 64, "vec_in_dim": None, **_CHROMA},
        "Chroma",
        24,
        renamed=_SCALE,
        fixed=_CHROMA,
        real={"hidden_size": 3072, "num_heads": 24, "out_dim": 3072, "hidden_dim": 5120, "n_layers": 5},
    ),
    "Lumina2": Family(
        NextDiT,
        {**_NEXT_DIT, "dim": 64, **_LUMINA},
        "Lumina2",
        24,
        masked=True,
        fixed=_LUMINA,
        real={"dim": 2304, "n_heads": 24, "n_kv_heads": 8, "axes_dims": [32, 32, 32], "ffn_dim_multiplier": 4.0},
    ),
    "Z-Image": Family(
        NextDiT,
        {**_NEXT_DIT, "dim": 256, **_Z_IMAGE},  # its modulation has 256 channels in any width
        "ZImage",
        24,
        masked=True,
        fixed=_Z_IMAGE,
        matched={"dim": 256},
        real={"dim": 3840, "n_heads": 30, "n_kv_heads": 30, "axes_dims": [32, 48, 48], "ffn_dim_multiplier": 8 / 3},
    ),
    "Qwen-Image": Family(
        QwenImageTransformer2DModel,
        {"num_layers": 2, **_QWEN},
        "QwenImage",
        24,
        frames=True,
        masked=True,
        fixed=_QWEN,
        real={"num_attention_heads": 24, "joint_attention_dim": 3584},
    ),
    "Wan": Family(
        WanModel, {"dim": 128, "num_heads": 1, "ffn_dim": 256, "num_layers": 2}, "WAN21_T2V", 4096, frames=True
    ),
    "Anima": Family(
        Anima,
        _ANIMA,
        "Anima",
        32,
        frames=True,
        t5=True,
        fixed=_COSMOS,
        adapter={"source_dim": 32, "target_dim": 64, "model_dim": 32, "num_layers": 1, "num_heads": 1},
        real={"model_channels": 2048, "num_blocks": 28, "num_heads": 16, "crossattn_emb_channels": 1024},
    ),
    "Krea 2": Family(
        SingleStreamDiT,
        _KREA2,
        "Krea2",
        24,
        frames=True,
        fixed=_KREA2_TEXT,
        real={"features": 6144, "heads": 48, "kvheads": 12, "txtheads": 20, "txtkvheads": 20, "txtdim": 2560},
    ),
}
