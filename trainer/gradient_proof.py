"""A check, in the first steps of a training, that every adapter gets a gradient."""

from __future__ import annotations

import logging
from typing import Any, Sequence

import torch

from .denoiser import Conditioning, Denoiser
from .network import LoRANetwork

MOST_IDLE = 10  # steps whose loss is exactly 0, at the start of a training, that end it
TOLERANCE = 1e-3  # relative to the largest prediction: the difference that non-deterministic kernels may make

logger = logging.getLogger(__name__)


class GradientProof:
    """Checks in the first steps that every adapter gets a gradient.

    If the host bypasses a layer, overwrites a tensor that autograd has saved, or uses a kernel without a backward pass,
    adapters get no gradient, and nothing else would show that.

    steps: number of steps with a loss within which each adapter must have had a gradient
    of: number of steps of the training
    """

    def __init__(self, network: LoRANetwork, steps: int, of: int) -> None:
        self._network, self._steps_left, self._unproven = network, steps, set(network.layer_names())
        self._idle_left = min(MOST_IDLE, of)
        self._inputs: tuple[torch.Tensor, torch.Tensor, Sequence[Conditioning]] | None = None
        self._model: Denoiser | None = None

    def recording(self, model: Denoiser) -> Denoiser:
        """Return the model, wrapped so that its inputs are recorded while the check is not finished."""
        return _RecordingDenoiser(model, self) if self._unproven else model

    def record(self, model: Denoiser, *inputs: Any) -> None:
        """Store the inputs of the latest prediction: x_t (B, C, H, W), sigma (B,), conditioning."""
        self._model, self._inputs = model, inputs

    def check(self, loss: float) -> None:
        """Check the gradients of a step whose loss is finite. A loss of exactly 0 says nothing: the next batch may have one.

        Raises RuntimeError with the names of layers that change the prediction but have no gradient, or that the forward
        pass bypasses; ValueError if the loss is 0 in MOST_IDLE steps, or in the whole training.
        """
        if not self._unproven:
            return
        self._network.check_reached()
        if loss == 0:
            self._count_idle()
            return
        self._unproven -= self._network.layers_with_gradient()
        self._steps_left -= 1
        if self._unproven and not self._steps_left:
            self._explain_missing_gradients()
            self._unproven = set()
        if not self._unproven:
            self._inputs = self._model = None  # their memory is the training's

    def _count_idle(self) -> None:
        self._idle_left -= 1
        if not self._idle_left:
            raise ValueError(
                "The loss is exactly 0, so there is nothing to learn: prediction and target are identical. Connect prompts "
                "or images that differ."
            )

    def _explain_missing_gradients(self) -> None:
        names = sorted(self._unproven)
        shown = f"{', '.join(names[:8])}{' ...' if len(names) > 8 else ''}"
        if self._changes_prediction(names):
            raise RuntimeError(
                f"{len(names)} layers change the prediction but get no gradient, so they cannot be trained: {shown}. The "
                "model's code or another node pack computes them in a way that PyTorch's autograd cannot follow: disable "
                "other node packs, or exclude the layers with blocks in LoRA Network."
            )
        logger.info(
            "%d layers have no effect on the prediction for these examples and are not trained: %s", len(names), shown
        )

    @torch.no_grad()
    def _changes_prediction(self, names: Sequence[str]) -> bool:
        """Return whether these adapters change the latest prediction when their weights change."""
        before = self._model.predict(*self._inputs)
        with self._network.perturbed(names):
            change = (self._model.predict(*self._inputs) - before).abs().max()
        return not change <= TOLERANCE * before.abs().max()  # NaN counts as a change


class _RecordingDenoiser:
    """A Denoiser that records its latest inputs."""

    def __init__(self, model: Denoiser, proof: GradientProof) -> None:
        self._model, self._proof = model, proof

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def predict(self, x_t: torch.Tensor, sigma: torch.Tensor, conditioning: Sequence[Conditioning]) -> torch.Tensor:
        self._proof.record(self._model, x_t, sigma, conditioning)
        return self._model.predict(x_t, sigma, conditioning)
