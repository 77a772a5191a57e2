"""Model families that ComfyUI loads and that cannot be trained here, although their prediction is of a known type."""

from __future__ import annotations

from typing import Any

_NEEDS_IMAGE = "it needs an image as input, which a training does not give it"
_NOT_IMAGES = "it does not make images"
# By the host's names of the families.
_REASONS = {
    "SD_X4Upscaler": "it enlarges an image, which a training does not give it",
    "HunyuanImage21Refiner": "it refines an image, which a training does not give it",
    "HunyuanVideo15_SR_Distilled": "it enlarges a video, which a training does not give it",
    "PiD": "it enlarges an image, which a training does not give it",
    "SeedVR2": "it restores an image, which a training does not give it",
    **dict.fromkeys(("LotusD", "SVD_img2vid", "SV3D_u", "SV3D_p", "Stable_Zero123"), _NEEDS_IMAGE),
    **dict.fromkeys(
        ("DepthAnything3", "RT_DETR_v4", "SAM3", "SAM31", "ACEStep", "TripoSplat", "Trellis2"), _NOT_IMAGES
    ),
    **dict.fromkeys(
        ("LTXAV", "MiniMaxH3"), "its latents hold sound beside the image, which a training does not give it"
    ),
    "HiDreamO1": "its image is made inside of a language model, whose layers are in no blocks that LoRA Network knows",
}


def check_family(model: Any) -> None:
    """Raise ValueError with the family's name if a model (comfy.model_base.BaseModel) cannot be trained."""
    family = type(model.model_config).__name__
    reason = _REASONS.get(family)
    if reason is None and model.latent_format.latent_dimensions < 2:  # sound, and shapes in three dimensions
        reason = _NOT_IMAGES
    if reason:
        raise ValueError(
            f"This model ({family}) cannot be trained, because {reason}: use a model that makes images from prompts."
        )
