"""What the trainer asks of its host, and the conventions of signs and scales: they stand here once.

x0          clean latents (B, C, H, W) in the model's own scale (about unit variance)
noise       Gaussian noise of unit variance, shaped like x0
t           timestep, float tensor (B,) in [0, 1000); 0 is clean, 1000 is noise
sigma       noise level (B,). Noise and v models: x_t = x0 + sigma * noise, sigma from about 0.03 to 14.6.
            Flow models: x_t = (1 - sigma) * x0 + sigma * noise, sigma from 0 to 1
prediction  what the network itself predicts: the noise, v, or the flow's velocity; losses are taken there
"""

from __future__ import annotations

from typing import Any, Protocol, Sequence

import torch

Conditioning = Any  # a prompt as the host encodes it; the trainer only hands it back

TIMESTEPS = 1000


class Denoiser(Protocol):
    """A loaded diffusion model, ready for training."""

    device: torch.device
    dtype: torch.dtype  # of the network's activations, as it is loaded
    parameterization: Parameterization

    def sigma_at(self, t: torch.Tensor) -> torch.Tensor:
        """Return the noise level of each timestep, both (B,)."""

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Return x_t, the noisy latents."""

    def predict(self, x_t: torch.Tensor, sigma: torch.Tensor, conditioning: Sequence[Conditioning]) -> torch.Tensor:
        """Return the network's prediction (float32, shaped like x_t); example i has conditioning[i]."""


class TextEncoder(Protocol):
    """A loaded text encoder."""

    def encode(self, captions: Sequence[str]) -> list[Conditioning]:
        """Return each caption's conditioning, with gradients where the encoder is trained."""


class Parameterization(Protocol):
    """What a family of models predicts."""

    logit_normal_timesteps: bool  # whether training draws t around the middle (flow) or evenly

    def target(self, x_t: torch.Tensor, x0: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Return what the network should predict at x_t if the clean latents are x0."""

    def scale_noise(self, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Return the x_t made of noise alone that reaches the network at unit variance."""

    def slope(self, x_t: torch.Tensor, prediction: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Return dx_t / dsigma, along which sampling goes from noise to picture (Karras et al. 2022, arXiv 2206.00364)."""

    def min_snr_weight(self, sigma: torch.Tensor, gamma: float) -> torch.Tensor:
        """Return the loss weight (B,) of min-SNR (Hang et al. 2023, arXiv 2303.09556) in prediction space."""


class NoisePrediction:
    """SD1, SDXL and most of their kind."""

    logit_normal_timesteps = False

    def target(self, x_t, x0, sigma):
        return (x_t - x0) / match_dims(sigma, x_t)

    def scale_noise(self, noise, sigma):
        return noise * (match_dims(sigma, noise) ** 2 + 1).sqrt()

    def slope(self, x_t, prediction, sigma):
        return prediction

    def min_snr_weight(self, sigma, gamma):
        snr = sigma**-2
        return snr.clamp(max=gamma) / snr


class VPrediction:
    """SD2 at 768 and the v variants of SDXL (Salimans and Ho 2022, arXiv 2202.00512)."""

    logit_normal_timesteps = False

    def target(self, x_t, x0, sigma):
        sigma = match_dims(sigma, x_t)
        return (x_t / (sigma**2 + 1) - x0) * (sigma**2 + 1).sqrt() / sigma

    def scale_noise(self, noise, sigma):
        return noise * (match_dims(sigma, noise) ** 2 + 1).sqrt()

    def slope(self, x_t, prediction, sigma):
        sigma = match_dims(sigma, x_t)
        return (x_t * sigma / (sigma**2 + 1).sqrt() + prediction) / (sigma**2 + 1).sqrt()

    def min_snr_weight(self, sigma, gamma):
        snr = sigma**-2
        return snr.clamp(max=gamma) / (snr + 1)


class FlowPrediction:
    """SD3, Flux and later models: the velocity from the clean latents to the noise."""

    logit_normal_timesteps = True

    def target(self, x_t, x0, sigma):
        return (x_t - x0) / match_dims(sigma, x_t)

    def scale_noise(self, noise, sigma):
        return noise

    def slope(self, x_t, prediction, sigma):
        return prediction

    def min_snr_weight(self, sigma, gamma):
        return torch.ones_like(sigma)


def match_dims(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """View values (B,) as (B, 1, ..., 1) with as many dimensions as `like`."""
    return values.view(-1, *[1] * (like.ndim - 1))
