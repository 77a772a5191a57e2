"""The models that are timed: the shapes of real ones with random weights, and what they are trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.model_detection
import comfy.ops
import comfy.sd
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

EXAMPLES = 8  # latents, each with a prompt of its own
TOKENS = 77

SD1 = {"cross_attention_dim": 768, "attention_head_dim": 8}  # beside diffusers' defaults
SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
# SD3 medium's width and depth: one DiT that fits every card, of a family that diffusers has too.
SD3 = {
    "input_size": None,
    "in_channels": 16,
    "depth": 24,
    "num_patches": 36864,
    "pos_embed_max_size": 192,
    "adm_in_channels": 2048,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 1536}},
}


@dataclass(frozen=True, eq=False)
class Subject:
    """A loaded model and its examples.

    diffusers: sizes of the same U-Net in diffusers, None where it is not compared
    latents: (EXAMPLES, C, h, w) as a VAE makes them
    prompts: one CONDITIONING for each
    """

    name: str
    model: Any
    diffusers: dict[str, Any] | None
    latents: torch.Tensor
    prompts: list[list]


def load_subject(name: str, folder: Path, side: int, dtype: torch.dtype) -> Subject:
    """Load a model for images of side x side pixels; its file is written at the first time.

    name: "Shapes" takes the demonstration model, "SD1.5", "SDXL" and "SD3" random weights
    folder: where the files are
    """
    sizes = {"SD1.5": SD1, "SDXL": SDXL}.get(name)
    with torch.inference_mode():  # as the executor loads them
        if name == "Shapes":
            model = comfy.sd.load_checkpoint_guess_config(str(folder / "shapes.safetensors"), False, False)[0]
        else:
            path = folder / f"{name}.safetensors"
            if not path.is_file():
                _write(path, _sd3_shapes() if name == "SD3" else _unet_shapes(sizes))
            model = comfy.sd.load_diffusion_model(str(path), model_options={"dtype": dtype})
        rng = torch.Generator().manual_seed(0)
        layout = model.model.latent_format
        edge = side // layout.spacial_downscale_ratio
        latents = torch.randn(EXAMPLES, layout.latent_channels, edge, edge, generator=rng)
        width, pooled = {"SDXL": (2048, 1280), "SD3": (4096, 2048)}.get(name, (768, 0))
        prompts = [_draw_prompt(width, pooled, rng) for _ in range(EXAMPLES)]
    return Subject(name, model, sizes, latents, prompts)


def _draw_prompt(width: int, pooled: int, rng: torch.Generator) -> list:
    extra = {"pooled_output": torch.randn(1, pooled, generator=rng)} if pooled else {}
    return [[torch.randn(1, TOKENS, width, generator=rng), extra]]


def _unet_shapes(sizes: dict[str, Any]) -> dict[str, torch.Size]:
    with torch.device("meta"):
        names = UNet2DConditionModel(**sizes).state_dict()
    config = comfy.model_detection.model_config_from_diffusers_unet(names)
    return _shapes(config.get_model({}, "", device="meta").diffusion_model)


def _sd3_shapes() -> dict[str, torch.Size]:
    layers = comfy.ops.disable_weight_init
    network = comfy.model_base.OpenAISignatureMMDITWrapper(**SD3, device="meta", operations=layers)
    return {f"model.diffusion_model.{key}": shape for key, shape in _shapes(network).items()}


def _shapes(network: torch.nn.Module) -> dict[str, torch.Size]:
    return {key: tensor.shape for key, tensor in network.state_dict().items()}


def _write(path: Path, shapes: dict[str, torch.Size]) -> None:
    """Write random weights, in half precision, that keep the scale of what goes through them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = torch.Generator().manual_seed(0)

    def draw(key: str, shape: torch.Size) -> torch.Tensor:
        if len(shape) > 1:
            return (torch.randn(shape, generator=rng) / shape[1:].numel() ** 0.5).half()
        return torch.full(shape, 1.0 if key.endswith("weight") else 0.0).half()

    save_file({key: draw(key, shape) for key, shape in shapes.items()}, path)
