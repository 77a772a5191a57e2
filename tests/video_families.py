"""Video model families of the host, trained on images: on videos of one frame."""

from __future__ import annotations

from comfy.ldm.cogvideo.model import CogVideoXTransformer3DModel
from comfy.ldm.genmo.joint_model.asymm_models_joint import AsymmDiTJoint
from comfy.ldm.hunyuan_video.model import HunyuanVideo
from comfy.ldm.kandinsky5.model import Kandinsky5
from comfy.ldm.lightricks.model import LTXVModel
from comfy.ldm.wan.model import WanModel
from other_families import _HUNYUAN, _KANDINSKY
from tiny_families import Family

_VIDEO = {**_HUNYUAN, "in_channels": 16, "out_channels": 16, "patch_size": [1, 2, 2], "axes_dim": [16, 56, 56]}
_VIDEO_15 = {**_VIDEO, "in_channels": 65, "out_channels": 32, "patch_size": [1, 1, 1], "vision_in_dim": 64}
_MOCHI = {
    "depth": 2,
    "hidden_size_x": 128,
    "hidden_size_y": 64,
    "num_heads": 1,
    "t5_feat_dim": 24,
    "mlp_ratio_x": 96.0,
    "mlp_ratio_y": 96.0,
    "qk_norm": True,
}
_MOCHI_KIND = {"learn_sigma": False, "in_channels": 12, "use_t5": True, "timestep_scale": 1000.0}
_LTXV = {"num_attention_heads": 2, "attention_head_dim": 64, "caption_channels": 24}
_COG = {"text_embed_dim": 24, "use_rotary_positional_embeddings": True}

VIDEOS = {
    "HunyuanVideo": Family(
        HunyuanVideo,
        {**_VIDEO, "vec_in_dim": 768, "guidance_embed": True},
        "HunyuanVideo",
        24,
        pooled=768,
        frames=True,
    ),
    "HunyuanVideo 1.5": Family(
        HunyuanVideo,
        {**_VIDEO_15, "meanflow_sum": True, "use_cond_type_embedding": True},
        "HunyuanVideo15",
        24,
        pooled=32,  # which it does not use
        latent=32,
        frames=True,
        matched={"vision_in_dim": 64},
    ),
    "Kandinsky 5 Video": Family(
        Kandinsky5,
        {
            **_KANDINSKY,
            "model_dim": 128,
            "ff_dim": 128,
            "time_dim": 32,
            "visual_embed_dim": 132,
            "num_text_blocks": 1,
            "num_visual_blocks": 2,
        },
        "Kandinsky5",
        24,
        pooled=32,
        frames=True,
        fixed=_KANDINSKY,
    ),
    "LTX-Video": Family(
        LTXVModel,
        {**_LTXV, "cross_attention_dim": 128, "num_layers": 2},
        "LTXV",
        24,
        latent=128,
        frames=True,
        masked=True,
        fixed=_LTXV,
    ),
    "Mochi": Family(
        AsymmDiTJoint, {**_MOCHI_KIND, **_MOCHI}, "GenmoMochi", 24, latent=12, frames=True, masked=True, fixed=_MOCHI
    ),
    "Wan 2.2 5B": Family(
        WanModel,
        {"dim": 128, "num_heads": 1, "ffn_dim": 256, "num_layers": 2, "in_dim": 48, "out_dim": 48},
        "WAN22_T2V",
        4096,
        latent=48,
        frames=True,
    ),
}
REFUSED_VIDEOS = {
    "CogVideoX": Family(
        CogVideoXTransformer3DModel,
        {**_COG, "num_attention_heads": 2, "num_layers": 2, "time_embed_dim": 32},
        "CogVideoX_T2V",
        24,
        frames=True,
        fixed=_COG,
    ),
}
