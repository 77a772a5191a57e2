"""The bridge to ComfyUI's models: the only place that knows them.

Everything the trainer needs is made here out of the host's MODEL, CLIP and VAE, and a trained LoRA goes back onto them.
"""

from .inputs import HostTextEncoder, encode_images, latent_shape, read_conditioning, scale_latents
from .loading import open_training
from .lora import is_large, lora_key_of, with_lora
from .network import check_network
from .preview import Preview
from .text_encoder import TrainedTextEncoder, clip_with_lora, has_text_encoder, plain_clip, text_key_of
from .training import Training, train_lora

__all__ = [
    "HostTextEncoder",
    "Preview",
    "TrainedTextEncoder",
    "Training",
    "check_network",
    "clip_with_lora",
    "encode_images",
    "has_text_encoder",
    "is_large",
    "latent_shape",
    "lora_key_of",
    "open_training",
    "plain_clip",
    "read_conditioning",
    "scale_latents",
    "text_key_of",
    "train_lora",
    "with_lora",
]
