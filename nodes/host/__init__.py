"""The bridge between ComfyUI's models and the trainer: the only package that knows ComfyUI's MODEL, CLIP and VAE.

It prepares them for training, and applies trained LoRAs to them.
"""

from .distilled import has_guidance_input, with_guidance
from .encoding import (
    HostTextEncoder,
    encode_images,
    latent_shape,
    read_conditioning,
    scale_latents,
)
from .loading import open_model
from .lora_import import check_network
from .lora_keys import is_large, lora_key_of, with_lora
from .prompt_tokens import blank_prompt, join_prompts
from .sampling import Preview, Sample, Sampling, check_sampling, decode_image, encode_prompt, sample_latent
from .session import Job, Session, open_session
from .similarity import image_similarities
from .text_encoder import TrainedTextEncoder, clip_with_lora, has_text_encoder, trainable_clip
from .text_keys import text_key_of

__all__ = [
    "HostTextEncoder",
    "Job",
    "Preview",
    "Sample",
    "Sampling",
    "Session",
    "TrainedTextEncoder",
    "blank_prompt",
    "check_network",
    "check_sampling",
    "clip_with_lora",
    "decode_image",
    "encode_images",
    "encode_prompt",
    "has_guidance_input",
    "has_text_encoder",
    "image_similarities",
    "is_large",
    "join_prompts",
    "latent_shape",
    "lora_key_of",
    "open_model",
    "open_session",
    "read_conditioning",
    "sample_latent",
    "scale_latents",
    "text_key_of",
    "trainable_clip",
    "with_guidance",
    "with_lora",
]
