"""Still more families of the host, of which as much is tested as of those in other_families; and families that are refused."""

from __future__ import annotations

import torch
from comfy.ldm.cascade.stage_c import StageC
from comfy.ldm.cosmos.predict2 import MiniTrainDIT
from comfy.ldm.flux.model import Flux
from comfy.ldm.hidream_o1.model import HiDreamO1Transformer
from comfy.ldm.hunyuan_video.model import HunyuanVideo
from comfy.ldm.hydit.models import HunYuanDiT
from comfy.ldm.lumina.model import NextDiTPixelSpace
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.ldm.pixart.pixartms import PixArtMS
from comfy.ldm.pixeldit.model import PixDiT_T2I
from other_families import _HUNYUAN, _PIXART
from tiny_families import _ANIMA, _COSMOS, _FLUX, _NEXT_DIT, _SD2, _SDXL, _Z_IMAGE, CHECKPOINT, Family, _unet

_PIXART_ALPHA = {**_PIXART, "hidden_size": 192}  # a multiple of 3, for its embedders of sizes
_HYDIT = {"text_states_dim": 24, "text_states_dim_t5": 16, "text_len": 5, "text_len_t5": 7, "num_heads": 2}
_HYDIT_PROMPT = {"conditioning_mt5xl": (7, 16), "attention_mask_mt5xl": (7,)}
_HYDIT_1 = {**_HYDIT, "num_heads": 16, "mlp_ratio": 0.25, "size_cond": True, "use_style_cond": True}
_Z_PIXEL = {**_Z_IMAGE, "in_channels": 3, "patch_size": 8, "decoder_in_channels": 192}
_Z_PIXEL |= {"decoder_hidden_size": 64, "decoder_num_res_blocks": 2, "decoder_max_freqs": 8}
_PIXELDIT = {"hidden_size": 64, "num_groups": 2, "pixel_attn_hidden_size": 32, "pixel_num_groups": 1}
_PIXELDIT |= {"patch_depth": 2, "pixel_depth": 2, "txt_embed_dim": 24}
_O1_TEXT = {"vocab_size": 100, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
_O1_VISION = {"hidden_size": 64, "num_heads": 1, "intermediate_size": 64, "depth": 1, "num_position_embeddings": 16}
_O1 = {"text_config_overrides": _O1_TEXT, "vision_config_overrides": _O1_VISION}
_CASCADE = {"c_cond": 64, "c_hidden": [64, 64], "nhead": [1, 1], "blocks": [[1, 1], [1, 1]]}


MORE = {
    "Segmind Vega": Family(
        UNetModel,
        {**_SDXL, "transformer_depth": [0, 0, 1, 1, 2, 2]},
        "Segmind_Vega",
        2048,
        pooled=1280,
        latent=4,
        prefix=CHECKPOINT,
        matched={"model_channels": 32, "transformer_depth": [0, 0, 1, 1, 2, 2]},
    ),
    "InstructPix2Pix (SDXL)": Family(
        UNetModel,
        {**_SDXL, "in_channels": 8},
        "SDXL_instructpix2pix",
        2048,
        pooled=1280,
        latent=4,
        prefix=CHECKPOINT,
        matched={"model_channels": 32, "transformer_depth": [0, 0, 1, 1, 1, 1]},
    ),
    "SD 2.1 unCLIP": Family(
        UNetModel,
        {**_SD2, "num_classes": "sequential", "adm_in_channels": 1536},
        "SD21UnclipL",
        1024,
        latent=4,
        prefix=CHECKPOINT,
    ),
    "HunyuanDiT": Family(
        HunYuanDiT,
        {**_HYDIT, "hidden_size": 128, "depth": 4},
        "HunyuanDiT",
        24,
        pooled=1024,
        latent=4,
        masked=True,
        padded=False,
        more=_HYDIT_PROMPT,
        fixed=_HYDIT,
    ),
    "HunyuanDiT 1.1": Family(
        HunYuanDiT,
        {**_HYDIT_1, "hidden_size": 1408, "depth": 2},  # the host knows it by its width
        "HunyuanDiT1",
        24,
        pooled=1024,
        latent=4,
        masked=True,
        padded=False,
        more=_HYDIT_PROMPT,
        fixed=_HYDIT_1,
    ),
    "Z-Image on pixels": Family(
        NextDiTPixelSpace,
        {**_NEXT_DIT, "dim": 256, **_Z_PIXEL},
        "ZImagePixelSpace",
        24,
        latent=3,
        masked=True,
        fixed=_Z_PIXEL,
        matched={"image_model": "lumina2", "dim": 256},
    ),
    "PixelDiT": Family(
        PixDiT_T2I,
        _PIXELDIT,
        "PixelDiTT2I",
        24,
        latent=3,
        markers={"core.pixel_embedder.proj.weight": 0.1 * torch.ones(16, 3)},
        fixed=_PIXELDIT,
    ),
    "PixArt Alpha": Family(
        PixArtMS,
        {**_PIXART_ALPHA, "depth": 2, "input_size": 64, "pe_interpolation": 1, "micro_condition": True},
        "PixArtAlpha",
        24,
        latent=4,
        fixed=_PIXART_ALPHA,
    ),
    "Ovis-Image": Family(
        Flux,
        {
            **_FLUX,
            "vec_in_dim": None,
            "guidance_embed": False,
            "txt_ids_dims": [1, 2],
            "yak_mlp": True,
            "txt_norm": True,
        },
        "FluxSchnell",
        24,
    ),
}
REFUSED = {
    "Lotus": Family(
        UNetModel,
        {
            **_unet(1024, num_head_channels=64, use_linear_in_transformer=True),
            "num_classes": "sequential",
            "adm_in_channels": 4,
        },
        "LotusD",
        1024,
        latent=4,
        prefix=CHECKPOINT,
    ),
    "SD x4 upscaler": Family(
        UNetModel,
        {
            **_unet(1024, num_heads=8, use_linear_in_transformer=True),
            "model_channels": 256,
            "in_channels": 7,
            "num_classes": 1000,
            "disable_self_attentions": [True],
        },
        "SD_X4Upscaler",
        1024,
        latent=4,
        prefix=CHECKPOINT,
        fixed={"disable_self_attentions": [True]},
    ),
    "HunyuanImage 2.1 refiner": Family(
        HunyuanVideo,
        {**_HUNYUAN, "in_channels": 128, "patch_size": [1, 1, 1], "axes_dim": [16, 56, 56], "num_heads": 1},
        "HunyuanImage21Refiner",
        24,
        frames=True,
        latent=64,
    ),
    "Cosmos Predict2": Family(MiniTrainDIT, _ANIMA, "CosmosT2IPredict2", 64, frames=True, fixed=_COSMOS),
    "HiDream-O1": Family(HiDreamO1Transformer, _O1, "HiDreamO1", 64, latent=3, fixed=_O1),
    "Stable Cascade": Family(StageC, _CASCADE, "Stable_Cascade_C", 1280, fixed=_CASCADE, prefix=CHECKPOINT),
}
