"""The bridge to ComfyUI's models: the only place that knows them.

Everything the trainer needs is made here out of the host's MODEL, CLIP and VAE, and a trained LoRA goes back onto them.
"""

from .inputs import HostTextEncoder, encode_images, latent_shape, read_conditioning
from .lora import is_large, lora_key_of, with_lora
from .training import check_network, open_training, train_lora

__all__ = [
    "HostTextEncoder",
    "check_network",
    "encode_images",
    "is_large",
    "latent_shape",
    "lora_key_of",
    "open_training",
    "read_conditioning",
    "train_lora",
    "with_lora",
]
