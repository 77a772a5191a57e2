"""Distributed training with torch.distributed: several processes train one LoRA, each on its shard of every batch.

All processes draw the same batches, noise and timesteps. Each predicts the examples of its shard, and the gradients of the
LoRA are summed. A seed therefore gives the same LoRA for any number of processes, up to rounding.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any, Callable, Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F

from .denoiser import Conditioning, Denoiser
from .methods import StepOutput
from .state import State, state_from_bytes, state_to_bytes

TIMEOUT = "TRAINTRAIN_TIMEOUT"  # environment variable: how many seconds a process waits for the others
METRICS = 3  # per step: the loss, and the number of processes that left because of a stop and of an error


class PeerLost(RuntimeError):
    """Another process of the training has failed or does not respond."""


class Peers:
    """Connects this process with the others of the same training, if there are any.

    rank: number of this process, from 0
    count: number of processes
    device: that the training runs on
    """

    def __init__(self, rank: int = 0, count: int = 1, device: torch.device | str = "cpu") -> None:
        self.rank, self.count, self._device = rank, count, torch.device(device)
        self._steps_left = 0
        self._exit_message: dist.Work | None = None

    @property
    def is_first(self) -> bool:
        """Return whether this is the process that reads and writes the files."""
        return self.rank == 0

    def shard(self, model: Denoiser) -> Denoiser:
        """Return a model that predicts only the examples of this process."""
        return model if self.count == 1 else _ShardedDenoiser(model, self)

    def own_slice(self, batch: int) -> tuple[slice, float]:
        """Return the slice of a batch that is this process's, and its weight: the fraction of the batch.

        With fewer examples than processes, some get one example with a weight of 0: it costs no extra time.
        """
        first, end = (batch * rank // self.count for rank in (self.rank, self.rank + 1))
        return slice(first, max(end, first + 1)), (end - first) / batch

    def shard_output(self, output: StepOutput) -> tuple[StepOutput, float]:
        """Return the part of an output that is this process's, and its weight: the fraction of the batch."""
        if self.count == 1:
            return output, 1.0
        own, share = self.own_slice(len(output.sigma))
        tensors = {name: tensor[own] for name, tensor in vars(output).items() if tensor is not None}
        return replace(output, **tensors), share

    def begin(self, parameters: Sequence[torch.Tensor], steps: int, training: str) -> None:
        """Start a training of so many steps, and copy the parameters of the first process to all.

        training: its description. Raises ValueError if that of the first process is different.
        """
        if self.count == 1:
            return
        if self.broadcast(training) != training:
            raise ValueError(
                f"Process {self.rank} has a different training than process 0: use the same workflow and the same model on "
                "every machine."
            )
        values = [parameter.detach() for parameter in parameters]
        flat = torch.cat([value.flatten() for value in values])
        self._run(dist.broadcast, flat, 0)
        _unflatten_into(flat, values)
        self._steps_left = steps

    def reduce(self, parameters: Sequence[torch.Tensor], loss: torch.Tensor) -> torch.Tensor:
        """Sum the gradients and the metrics over all processes in one message; return the summed metrics (METRICS,)."""
        metrics = F.pad(loss[None], (0, METRICS - 1))
        if self.count == 1:
            return metrics
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters]
        flat = torch.cat([*(gradient.flatten() for gradient in gradients), metrics])
        self._steps_left -= 1
        self._run(dist.all_reduce, flat)
        _unflatten_into(flat, gradients)
        return flat[-METRICS:]

    def have_ended(self, stopped: float, failed: float) -> bool:
        """Return whether another process has stopped the training. Raises PeerLost if one has failed."""
        if not stopped and not failed:
            return False
        self._steps_left = 0  # no process is left that waits for our exit
        if failed:
            raise self.peer_error()
        return True

    def announce_exit(self, parameters: Sequence[torch.Tensor], is_stop: bool) -> None:
        """Tell the other processes that this one leaves, because of a stop or an error.

        They receive it instead of the step they wait for. Does not wait for them, because they may be gone.
        """
        if not self._steps_left:
            return
        with suppress(RuntimeError):  # also if the memory is used up
            message = torch.zeros(sum(parameter.numel() for parameter in parameters) + METRICS, device=self._device)
            message[-2 if is_stop else -1] = 1
            self._exit_message = dist.all_reduce(message, async_op=True)
        self._steps_left = 0

    def peer_error(self) -> PeerLost:
        """Return the error to raise after another process has failed."""
        self._steps_left = 0
        return PeerLost(
            f"Another process of the training has failed, or has not responded for {_timeout():g} seconds: read its error, "
            "and run the workflow again. It resumes from the last saved step."
        )

    def broadcast(self, value: State | list | str | None) -> Any:
        """Return the first process's value on all processes: text, numbers, tensors, lists and dicts of them."""
        if self.count == 1:
            return value
        packed = state_to_bytes({"value": value}) if self.is_first else b""
        size = torch.tensor([len(packed)], device=self._device)
        self._run(dist.broadcast, size, 0)
        message = torch.empty(int(size), dtype=torch.uint8, device=self._device)
        if self.is_first:
            message.copy_(torch.frombuffer(bytearray(packed), dtype=torch.uint8))
        self._run(dist.broadcast, message, 0)
        return value if self.is_first else state_from_bytes(message.cpu().numpy().tobytes())["value"]

    def _run(self, operation: Callable, *arguments: Any) -> None:
        try:
            operation(*arguments)
        except RuntimeError as error:
            raise self.peer_error() from error


ALONE = Peers()


def join(device: torch.device) -> Peers:
    """Connect to the other processes that torchrun has started; without torchrun there are none."""
    if not dist.is_available() or not dist.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1":
        return ALONE
    if not dist.is_initialized():
        backend = {"cuda": "nccl", "xpu": "xccl"}.get(device.type, "gloo")
        dist.init_process_group(backend, timeout=timedelta(seconds=_timeout()))
    return Peers(dist.get_rank(), dist.get_world_size(), device)


class _ShardedDenoiser:
    """Predicts only the examples of this process; the other predictions are zeros that nothing reads."""

    def __init__(self, model: Denoiser, peers: Peers) -> None:
        self.device, self.dtype, self.parameterization = model.device, model.dtype, model.parameterization
        self.sigma_at, self.add_noise = model.sigma_at, model.add_noise
        self.pixels_per_latent = model.pixels_per_latent
        self._model, self._peers = model, peers

    def predict(self, x_t: torch.Tensor, sigma: torch.Tensor, conditioning: Sequence[Conditioning]) -> torch.Tensor:
        own, _ = self._peers.own_slice(len(x_t))
        prediction = torch.zeros_like(x_t, dtype=torch.float32)
        prediction[own] = self._model.predict(x_t[own], sigma[own], conditioning[own])
        return prediction


def _timeout() -> float:
    return float(os.environ.get(TIMEOUT, 600))


def _unflatten_into(flat: torch.Tensor, tensors: Sequence[torch.Tensor]) -> None:
    """Copy a flat tensor into tensors, one after another."""
    parts = flat[: sum(tensor.numel() for tensor in tensors)].split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(list(tensors), [part.view_as(tensor) for part, tensor in zip(parts, tensors)])
