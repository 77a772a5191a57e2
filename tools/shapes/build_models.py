"""The demonstration model's parts, built from the host's own modules.

Needs ComfyUI on `sys.path`.
"""

from __future__ import annotations

import numpy as np
import torch

# What the host detects as SD1: 320 channels and a text width of 768. One level with one block is enough.
UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "channel_mult": [1],
    "num_res_blocks": [1],
    "transformer_depth": [1],
    "transformer_depth_output": [1, 1],
    "transformer_depth_middle": 1,
    "num_heads": 8,
    "context_dim": 768,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "legacy": False,
}
LATENT_SCALE = 0.18215  # SD1's factor between the autoencoder's latents and the network's


def build_unet() -> torch.nn.Module:
    """Build the U-Net on the CPU in float32, its parameters not yet initialised."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    return UNetModel(**UNET, dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init)


def build_autoencoder() -> torch.nn.Module:
    """Build the autoencoder (TAESD's shape) on the CPU in float32, its parameters not yet initialised."""
    from comfy.taesd.taesd import TAESD

    return TAESD(latent_channels=4)


def build_text_encoder(dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """Build the host's CLIP-L with weights that depend on nothing but this function.

    Every layer adds zero to its input, so a token's encoding is its own random vector plus a little of its place:
    the U-Net learns what the words mean, and the encoder needs no training and no file. The layers inside are random,
    so an adapter on them has something to work with.
    """
    from comfy.sd1_clip import SD1ClipModel

    model = SD1ClipModel(device="cpu", dtype=dtype)
    rng = np.random.RandomState(1)  # its stream is frozen by numpy's policy, torch's is not
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_initial_value(name, parameter.shape, rng))
    return model


def _initial_value(name: str, shape: torch.Size, rng: np.random.RandomState) -> torch.Tensor:
    if name.endswith("logit_scale"):
        return torch.tensor(4.6055)
    if "layer_norm" in name:
        return torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
    if name.endswith("bias") or "out_proj" in name or "fc2" in name:
        return torch.zeros(shape)
    if "text_projection" in name:
        return torch.eye(*shape)
    scale = 1.0 if "token_embedding" in name else 0.1 if "position_embedding" in name else 0.02
    return torch.from_numpy(rng.standard_normal(tuple(shape)).astype(np.float32)) * scale
