"""The one training loop."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from typing import Callable

import torch

from .config import TrainingConfig
from .denoiser import Denoiser
from .loss import step_loss
from .methods import Method
from .network import LoRANetwork
from .optimizer import create_optimizer, create_schedule

logger = logging.getLogger(__name__)

# fp16 holds nothing below 6e-8, and the gradients of a mean over a picture are that small. A power of two changes no digit.
FP16_LOSS_SCALE = 2.0**10
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

OnStep = Callable[[int, float, float], None]  # step (from 1), loss, learning rate


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient became infinite or no number; the network holds the weights from before."""


def train(
    model: Denoiser, network: LoRANetwork, method: Method, config: TrainingConfig, on_step: OnStep
) -> list[float]:
    """Train the network and return the loss of each step.

    `on_step` is told of a step while the next one runs, so that nothing waits for the device. What it raises ends the
    training, and the network keeps what it has learned. Raises NonFiniteLoss.
    """
    parameters = list(network.parameters())
    optimizer = create_optimizer(config, parameters)
    schedule = create_schedule(config, optimizer)
    rng = torch.Generator(model.device).manual_seed(config.seed)
    losses: list[float] = []
    before = [p.detach().clone() for p in parameters]  # the weights before the step that is not known to be finite
    pending = None
    with network.injected():
        for step in range(config.steps):
            loss = _accumulate_gradients(model, network, method, config, step, rng)
            norm = _clip(parameters, config.max_grad_norm)
            if step == 0:
                network.check_reached()
            if pending is not None:
                _finish_step(pending, losses, parameters, before, on_step)
            pending = _PendingStep(step + 1, loss, norm, optimizer.param_groups[0]["lr"])
            _copy(parameters, before)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
        _finish_step(pending, losses, parameters, before, on_step)
    return losses


def _accumulate_gradients(
    model: Denoiser, network: LoRANetwork, method: Method, config: TrainingConfig, step: int, rng: torch.Generator
) -> torch.Tensor:
    """Add up the gradients of the step's batches and return their mean loss."""
    total = torch.zeros((), device=model.device)
    scale = FP16_LOSS_SCALE if _DTYPES.get(config.precision, model.dtype) == torch.float16 else 1.0
    for _ in range(config.gradient_accumulation):
        with network.scaled(method.strength(step)):
            with _autocast(model.device, config.precision):
                output = method.run_step(model, network, step, rng)
            loss = step_loss(output, model, config) / config.gradient_accumulation
            (loss * scale).backward()
        total += loss.detach()
    if scale != 1:
        torch._foreach_mul_([p.grad for p in network.parameters() if p.grad is not None], 1 / scale)
    return total


def _autocast(device: torch.device, precision: str) -> AbstractContextManager:
    if precision == "as loaded":
        return nullcontext()
    return torch.amp.autocast(device.type, _DTYPES[precision], enabled=precision != "fp32")


def _clip(parameters: list[torch.Tensor], max_norm: float) -> torch.Tensor:
    """Scale the gradients down to a length of max_norm (0: leave them) and return the length they had."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if max_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


class _PendingStep:
    """A step that the device may still be working on."""

    def __init__(self, step: int, loss: torch.Tensor, norm: torch.Tensor, learning_rate: float) -> None:
        self.step, self.learning_rate = step, learning_rate
        self._figures = torch.stack([loss, norm])
        self._copied = None
        if loss.is_cuda:  # into pinned memory, or the copy would wait for all that is queued
            self._figures = torch.empty(2, pin_memory=True).copy_(self._figures, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def read(self) -> tuple[float, bool]:
        """Return the loss, and whether it and its gradient were finite."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._figures[0].item(), bool(self._figures.isfinite().all())


@torch.no_grad()
def _copy(source: list[torch.Tensor], destination: list[torch.Tensor]) -> None:
    torch._foreach_copy_(destination, source)


def _finish_step(
    pending: _PendingStep,
    losses: list[float],
    parameters: list[torch.Tensor],
    before: list[torch.Tensor],
    on_step: OnStep,
) -> None:
    loss, finite = pending.read()
    if not finite:
        _copy(before, parameters)
        raise NonFiniteLoss(
            f"The loss became {loss} in step {pending.step}, or its gradient was not finite: lower the "
            "learning rate, or set precision to bf16 or fp32. The LoRA up to the step before is kept."
        )
    losses.append(loss)
    on_step(pending.step, loss, pending.learning_rate)
