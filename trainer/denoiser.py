"""What the trainer needs from its host, and the one place that defines signs and scales.

x0          clean latents (B, C, H, W) in the model's own scale (about unit variance)
noise       Gaussian noise of unit variance, shaped like x0
t           timestep, float tensor (B,) in [0, 1000); 0 is clean, 1000 is noise
sigma       noise level (B,). Noise and v models: x_t = x0 + sigma * noise, sigma from about 0.03 to 14.6.
            Flow models: x_t = (1 - sigma) * x0 + sigma * noise, sigma from 0 to 1
prediction  what the network itself predicts, shaped like x_t: the noise, v, or the velocity of a flow. The loss compares these
"""

from __future__ import annotations

from typing import Any, Protocol, Sequence

import torch

Conditioning = Any  # a prompt as the host encodes it; the trainer only passes it back

TIMESTEPS = 1000


class Denoiser(Protocol):
    """Stands for a loaded diffusion model that is ready for training."""

    device: torch.device
    dtype: torch.dtype  # that the model computes in during this training
    parameterization: Parameterization
    pixels_per_latent: int  # along one side

    def sigma_at(self, t: torch.Tensor) -> torch.Tensor:
        """Return the noise levels (B,), on the model's device, of timesteps (B,) on the CPU."""

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Return the noisy latents x_t (B, C, H, W)."""

    def predict(self, x_t: torch.Tensor, sigma: torch.Tensor, conditioning: Sequence[Conditioning]) -> torch.Tensor:
        """Return the prediction, float32 and shaped like x_t (B, C, H, W); example i has the prompt conditioning[i]."""


class TextEncoder(Protocol):
    """Stands for a loaded text encoder."""

    def encode(self, captions: Sequence[str]) -> list[Conditioning]:
        """Return the conditioning of each caption, with gradients if the text encoder is trained."""


class Parameterization(Protocol):
    """Defines what the models of a family predict."""

    logit_normal_timesteps: bool  # whether training draws t from a logit-normal distribution (flow) or a uniform one

    def target(self, x_t: torch.Tensor, x0: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Return what the network should predict at x_t (B, C, H, W) if the clean latents are x0."""

    def scale_noise(self, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Return pure noise (B, C, H, W) scaled to an x_t that the network sees at unit variance."""

    def derivative(self, x_t: torch.Tensor, prediction: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Return dx_t / dsigma (B, C, H, W), the ODE that sampling follows (Karras et al. 2022, arXiv 2206.00364)."""

    def min_snr_weight(self, sigma: torch.Tensor, gamma: float) -> torch.Tensor:
        """Return the min-SNR weights (B,) of the loss (Hang et al. 2023, arXiv 2303.09556)."""


class NoisePrediction:
    """Predicts the noise: SD1, SDXL and most models based on them."""

    logit_normal_timesteps = False

    def target(self, x_t, x0, sigma):
        """Return the noise in x_t."""
        return (x_t - x0) / match_dims(sigma, x_t)

    def scale_noise(self, noise, sigma):
        """Return noise * sqrt(sigma^2 + 1)."""
        return noise * (match_dims(sigma, noise) ** 2 + 1).sqrt()

    def derivative(self, x_t, prediction, sigma):
        """Return dx_t / dsigma, which is the predicted noise."""
        return prediction

    def min_snr_weight(self, sigma, gamma):
        """Return min(SNR, gamma) / SNR."""
        snr = sigma**-2
        return snr.clamp(max=gamma) / snr


class VPrediction:
    """Predicts v: SD2 at 768 and v-prediction SDXL models (Salimans and Ho 2022, arXiv 2202.00512)."""

    logit_normal_timesteps = False

    def target(self, x_t, x0, sigma):
        """Return v = (noise - sigma * x0) / sqrt(sigma^2 + 1)."""
        sigma = match_dims(sigma, x_t)
        return (x_t / (sigma**2 + 1) - x0) * (sigma**2 + 1).sqrt() / sigma

    def scale_noise(self, noise, sigma):
        """Return noise * sqrt(sigma^2 + 1)."""
        return noise * (match_dims(sigma, noise) ** 2 + 1).sqrt()

    def derivative(self, x_t, prediction, sigma):
        """Return dx_t / dsigma, which is the noise that v implies."""
        sigma = match_dims(sigma, x_t)
        return (x_t * sigma / (sigma**2 + 1).sqrt() + prediction) / (sigma**2 + 1).sqrt()

    def min_snr_weight(self, sigma, gamma):
        """Return min(SNR, gamma) / (SNR + 1)."""
        snr = sigma**-2
        return snr.clamp(max=gamma) / (snr + 1)


class FlowPrediction:
    """Predicts the velocity from the clean latents to the noise: SD3, Flux and later models."""

    logit_normal_timesteps = True

    def target(self, x_t, x0, sigma):
        """Return the velocity, noise - x0."""
        return (x_t - x0) / match_dims(sigma, x_t)

    def scale_noise(self, noise, sigma):
        """Return the noise as it is: flow models see it at unit variance."""
        return noise

    def derivative(self, x_t, prediction, sigma):
        """Return dx_t / dsigma, which is the predicted velocity."""
        return prediction

    def min_snr_weight(self, sigma, gamma):
        """Return 1: flow models have no min-SNR weight."""
        return torch.ones_like(sigma)


def match_dims(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """View values (B,) as (B, 1, ..., 1), with as many dimensions as `like`."""
    return values.view(-1, *[1] * (like.ndim - 1))
