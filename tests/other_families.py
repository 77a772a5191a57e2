"""More image model families of the host, of which less is tested than of those in tiny_families."""

from __future__ import annotations

import torch
from comfy.ldm.aura.mmdit import MMDiT as AuraMMDiT
from comfy.ldm.boogu.model import BooguTransformer2DModel
from comfy.ldm.chroma_radiance.model import ChromaRadiance
from comfy.ldm.ernie.model import ErnieImageModel
from comfy.ldm.flux.model import Flux
from comfy.ldm.hidream.model import HiDreamImageTransformer2DModel
from comfy.ldm.hunyuan_video.model import HunyuanVideo
from comfy.ldm.ideogram4.model import Ideogram4Transformer2DModel
from comfy.ldm.joyimage.model import JoyImageTransformer3DModel
from comfy.ldm.kandinsky5.model import Kandinsky5
from comfy.ldm.lens.model import LensTransformer2DModel
from comfy.ldm.mage_flow.model import MageFlowTransformer2DModel
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.ldm.omnigen.omnigen2 import OmniGen2Transformer2DModel
from comfy.ldm.pixart.pixartms import PixArtMS
from tiny_families import _CHROMA, _FLUX, _SD1, _SDXL, CHECKPOINT, Family

_AURA = {"dim": 256, "n_heads": 1, "global_conddim": 256}
_PIXART = {"hidden_size": 128, "num_heads": 2, "caption_channels": 24}
_OMNIGEN = {
    "hidden_size": 120,
    "num_attention_heads": 1,
    "num_kv_heads": 1,
    "num_layers": 2,
    "num_refiner_layers": 1,
    "text_feat_dim": 24,
    "multiple_of": 32,
    "axes_dim_rope": [40, 40, 40],
    "axes_lens": [1024, 1664, 1664],
}
_HIDREAM = {
    "num_layers": 1,
    "num_single_layers": 1,
    "num_attention_heads": 1,
    "caption_channels": [24, 24],
    "text_emb_dim": 32,
    "llama_layers": [0, 1],
    "patch_size": 2,
    "attention_head_dim": 128,
    "axes_dims_rope": [64, 32, 32],
    "num_routed_experts": 2,
    "num_activated_experts": 1,
}
_BOOGU = {"num_attention_heads": 1, "num_kv_heads": 1, "multiple_of": 32}
_IDEOGRAM = {
    "num_attention_heads": 1,
    "attention_head_dim": 256,
    "intermediate_size": 128,
    "adaln_dim": 32,
    "llm_features_dim": 24,
    "mrope_section": [24, 20, 20],
}
_KANDINSKY = {"in_text_dim": 24, "in_text_dim2": 32, "axes_dims": (32, 48, 48), "rope_scale_factor": (1.0, 1.0, 1.0)}
_ERNIE = {
    "hidden_size": 128,
    "num_attention_heads": 1,
    "num_layers": 2,
    "ffn_hidden_size": 128,
    "text_in_dim": 24,
}
_HUNYUAN = {
    "in_channels": 64,
    "out_channels": 64,
    "vec_in_dim": None,
    "context_in_dim": 24,
    "hidden_size": 128,
    "mlp_ratio": 4.0,
    "num_heads": 1,
    "depth": 2,
    "depth_single_blocks": 2,
    "axes_dim": [64, 64],
    "theta": 256,
    "patch_size": [1, 1],
    "qkv_bias": True,
    "guidance_embed": False,
    "byt5": False,
    "meanflow": False,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
    "meanflow_sum": False,
}
_JOY = {"hidden_size": 128, "num_attention_heads": 1, "text_dim": 24, "num_layers": 2, "rope_dim_list": [16, 56, 56]}
_NERF = {"nerf_hidden_size": 64, "nerf_mlp_ratio": 4, "nerf_depth": 4, "nerf_max_freqs": 8, "nerf_tile_size": 512}
_RADIANCE = {**_NERF, "patch_size": 16, "nerf_final_head_type": "conv", "nerf_embedder_dtype": torch.float32}
_RADIANCE |= {"use_x0": False, "use_sequential_txt_ids": False}
OTHERS = {
    "AuraFlow": Family(
        AuraMMDiT,
        {**_AURA, "n_layers": 3, "n_double_layers": 1, "cond_seq_dim": 24, "max_seq": 256},
        "AuraFlow",
        24,
        latent=4,
        fixed=_AURA,
        matched={"cond_seq_dim": 24},
    ),
    "PixArt Sigma": Family(
        PixArtMS,
        {**_PIXART, "depth": 2, "input_size": 64, "pe_interpolation": 1, "micro_condition": False},
        "PixArtSigma",
        24,
        latent=4,
        fixed=_PIXART,
    ),
    "OmniGen2": Family(OmniGen2Transformer2DModel, _OMNIGEN, "Omnigen2", 24, masked=True, padded=False, fixed=_OMNIGEN),
    "HiDream": Family(
        HiDreamImageTransformer2DModel,
        {**_HIDREAM, "in_channels": 16},
        "HiDream",
        24,
        pooled=32,
        more={"conditioning_llama3": (2, 5, 24)},
        fixed=_HIDREAM,
    ),
    "Boogu": Family(
        BooguTransformer2DModel,
        {
            **_BOOGU,
            "hidden_size": 120,
            "num_layers": 2,
            "num_double_stream_layers": 1,
            "num_refiner_layers": 1,
            "instruction_feat_dim": 24,
        },
        "Boogu",
        24,
        masked=True,
        padded=False,
        fixed=_BOOGU,
    ),
    "Ideogram 4": Family(
        Ideogram4Transformer2DModel, {**_IDEOGRAM, "num_layers": 2}, "Ideogram4", 24, latent=128, fixed=_IDEOGRAM
    ),
    "Mage-Flow": Family(
        MageFlowTransformer2DModel,
        {"num_layers": 2, "num_attention_heads": 1},
        "MageFlow",
        2560,
        latent=128,
        fixed={"num_attention_heads": 1},
    ),
    "JoyImage": Family(JoyImageTransformer3DModel, _JOY, "JoyImage", 24, frames=True, masked=True, fixed=_JOY),
    "Lens": Family(
        LensTransformer2DModel,
        {"num_layers": 2, "num_attention_heads": 1, "enc_hidden_dim": 24, "selected_layer_index": (0, 1)},
        "Lens",
        48,
        latent=128,
    ),
    "Kandinsky 5": Family(
        Kandinsky5,
        {
            **_KANDINSKY,
            "model_dim": 128,
            "ff_dim": 128,
            "time_dim": 32,
            "visual_embed_dim": 64,
            "num_text_blocks": 1,
            "num_visual_blocks": 2,
        },
        "Kandinsky5Image",
        24,
        pooled=32,
        fixed=_KANDINSKY,
        matched={"model_dim": 128},
    ),
    "ERNIE-Image": Family(ErnieImageModel, _ERNIE, "ErnieImage", 24, latent=128, fixed=_ERNIE),
    "HunyuanImage 2.1": Family(HunyuanVideo, _HUNYUAN, "HunyuanImage21", 24, latent=64),
    "LongCat-Image": Family(
        Flux,
        {**_FLUX, "vec_in_dim": None, "guidance_embed": False, "txt_ids_dims": [1, 2]},
        "LongCatImage",
        24,
        matched={"context_in_dim": 24, "txt_ids_dims": []},
    ),
    "Flux schnell": Family(
        Flux,
        {**_FLUX, "vec_in_dim": 32, "guidance_embed": False},
        "FluxSchnell",
        24,
        pooled=32,
    ),
    "Flux Fill": Family(
        Flux, {**_FLUX, "vec_in_dim": 32, "guidance_embed": True, "in_channels": 96}, "FluxInpaint", 24, pooled=32
    ),
    "InstructPix2Pix": Family(
        UNetModel, {**_SD1, "in_channels": 8}, "SD15_instructpix2pix", 768, latent=4, prefix=CHECKPOINT
    ),
    "SSD-1B": Family(
        UNetModel,
        {**_SDXL, "transformer_depth": [0, 0, 1, 1, 2, 2]},
        "SSD1B",
        2048,
        pooled=1280,
        latent=4,
        prefix=CHECKPOINT,
        matched={"model_channels": 32, "transformer_depth": [0, 0, 1, 1, 2, 2]},
    ),
    "KOALA": Family(
        UNetModel,
        {
            **_SDXL,
            "num_res_blocks": [1, 1, 1],
            "transformer_depth": [0, 1, 2],
            "transformer_depth_output": [0, 0, 1, 1, 2, 2],
        },
        "KOALA_700M",
        2048,
        pooled=1280,
        latent=4,
        prefix=CHECKPOINT,
        matched={"model_channels": 32, "transformer_depth": [0, 1, 2]},
    ),
    "SDXL Refiner": Family(
        UNetModel,
        {**_SDXL, "context_dim": 1280, "adm_in_channels": 2560},
        "SDXLRefiner",
        1280,
        pooled=1280,
        latent=4,
        prefix=CHECKPOINT,
        matched={"model_channels": 32, "transformer_depth": [0, 0, 1, 1, 1, 1]},
    ),
    "Chroma Radiance": Family(
        ChromaRadiance,
        {**_FLUX, **_CHROMA, **_RADIANCE, "in_channels": 3, "out_channels": 3, "in_dim": 64, "vec_in_dim": None},
        "ChromaRadiance",
        24,
        latent=3,
        fixed=_CHROMA,
    ),
}
