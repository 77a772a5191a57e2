"""The loss of one step, in the model's own prediction space."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .config import TrainingConfig
from .denoiser import Denoiser
from .methods import StepOutput

_ELEMENTWISE = {"MSE": F.mse_loss, "L1": F.l1_loss, "Smooth-L1": F.smooth_l1_loss}


def step_loss(output: StepOutput, model: Denoiser, config: TrainingConfig) -> torch.Tensor:
    """Return the scalar loss: the mean per example inside its mask, weighted by min-SNR and its own weight, averaged over the batch."""
    errors = _ELEMENTWISE[config.loss](output.prediction.float(), output.target.float(), reduction="none")
    losses = _mean_per_example(errors, output.mask)
    if config.snr_gamma:
        losses = losses * model.parameterization.min_snr_weight(output.sigma, config.snr_gamma)
    if output.weight is not None:
        losses = losses * output.weight
    return losses.mean()


def _mean_per_example(errors: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return the mean (B,) of errors (B, C, ..., H, W) where mask (B, H, W) is 1; no mask may be all zeros."""
    if mask is None:
        return errors.flatten(1).mean(1)
    inside = mask.view(len(mask), *[1] * (errors.ndim - 3), *mask.shape[1:])
    return (errors * inside).sum((-2, -1)).flatten(1).mean(1) / mask.sum((1, 2))
