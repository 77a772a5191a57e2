"""Processes that train one LoRA together, each on its part of every batch, over PyTorch's torch.distributed.

All draw the same batches, noise and timesteps; each predicts its own examples of them, and the gradients of the LoRA are
added up. So a seed gives one LoRA for any number of processes, to rounding.
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

TIMEOUT = "TRAINTRAIN_TIMEOUT"  # environment variable: seconds that a process waits for the others
FIGURES = 3  # of a step: its loss, and how many processes have left, by a stop and by an error


class ProcessLost(RuntimeError):
    """Another process of the training has failed, or does not answer."""


class Processes:
    """The processes of a training, of which this is one; it may be alone.

    rank: of this process, from 0
    count: of processes
    device: that the training is on
    """

    def __init__(self, rank: int = 0, count: int = 1, device: torch.device | str = "cpu") -> None:
        self.rank, self.count, self._device = rank, count, torch.device(device)
        self._steps_left = 0
        self._farewell: list[dist.Work] = []

    @property
    def is_first(self) -> bool:
        """Tell whether this is the process that has the files."""
        return self.rank == 0

    def share(self, model: Denoiser) -> Denoiser:
        """Return the model as it is to be given to a method."""
        return model if self.count == 1 else _OwnExamples(model, self)

    def own(self, batch: int) -> tuple[slice, float]:
        """Return this process's examples of a batch, and their share of it.

        Where there are fewer examples than processes, some have one with a share of 0: they are done as soon as the others.
        """
        first, end = (batch * rank // self.count for rank in (self.rank, self.rank + 1))
        return slice(first, max(end, first + 1)), (end - first) / batch

    def own_part(self, output: StepOutput) -> tuple[StepOutput, float]:
        """Return this process's examples of an output, and their share of the batch."""
        if self.count == 1:
            return output, 1.0
        own, share = self.own(len(output.sigma))
        tensors = {name: tensor[own] for name, tensor in vars(output).items() if tensor is not None}
        return replace(output, **tensors), share

    def begin(self, parameters: Sequence[torch.Tensor], steps: int, training: str) -> None:
        """Begin a training of so many steps, with the parameters of the first process on all.

        training: describes it. Raises ValueError where the first process has another one.
        """
        if self.count == 1:
            return
        if self.tell(training) != training:
            raise ValueError(
                f"Process {self.rank} is about to train something else than process 0: give every machine the same workflow "
                "and the same model."
            )
        values = [parameter.detach() for parameter in parameters]
        flat = torch.cat([value.flatten() for value in values])
        self._run(dist.broadcast, flat, 0)
        _spread(flat, values)
        self._steps_left = steps

    def add_up(self, parameters: Sequence[torch.Tensor], loss: torch.Tensor) -> torch.Tensor:
        """Replace gradients by their sum over all processes, and return the sum of the figures: one message a step."""
        figures = F.pad(loss[None], (0, FIGURES - 1))
        if self.count == 1:
            return figures
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters]
        flat = torch.cat([*(gradient.flatten() for gradient in gradients), figures])
        self._steps_left -= 1
        self._run(dist.all_reduce, flat)
        _spread(flat, gradients)
        return flat[-FIGURES:]

    def leave(self, parameters: Sequence[torch.Tensor], stopped: bool) -> None:
        """Tell the others, in the messages they wait for, that this process has ended early: by a stop, or by an error.

        There are two, for they read the figures of a step in the next one. Nothing waits for them here: others may be gone.
        """
        if not self._steps_left:
            return
        message = torch.zeros(sum(parameter.numel() for parameter in parameters) + FIGURES, device=self._device)
        message[-2 if stopped else -1] = 1
        with suppress(RuntimeError):
            self._farewell = [dist.all_reduce(message.clone(), async_op=True) for _ in range(min(2, self._steps_left))]
        self._steps_left = 0

    def lost(self) -> ProcessLost:
        """Return the error for another process that has failed. Nobody is there any more to be told of our end."""
        self._steps_left = 0
        return ProcessLost(
            f"Another process of the training has failed, or not answered for {_timeout():g} seconds: see what it says, and "
            "run the workflow again. It goes on from the last step whose state is on disk."
        )

    def stopped(self) -> None:
        """Take note that the first process has stopped the training."""
        self._steps_left = 0

    def tell(self, value: State | str | None) -> Any:
        """Return on all processes what the first one gives."""
        if self.count == 1:
            return value
        packed = state_to_bytes({"told": value}) if self.is_first else b""
        size = torch.tensor([len(packed)], device=self._device)
        self._run(dist.broadcast, size, 0)
        message = torch.empty(int(size), dtype=torch.uint8, device=self._device)
        if self.is_first:
            message.copy_(torch.frombuffer(bytearray(packed), dtype=torch.uint8))
        self._run(dist.broadcast, message, 0)
        return value if self.is_first else state_from_bytes(message.cpu().numpy().tobytes())["told"]

    def _run(self, operation: Callable, *arguments: Any) -> None:
        try:
            operation(*arguments)
        except RuntimeError as error:
            raise self.lost() from error


ALONE = Processes()


def join(device: torch.device) -> Processes:
    """Return the processes that torchrun has started, this one among them; it is alone where there was no torchrun."""
    if not dist.is_available() or not dist.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1":
        return ALONE
    if not dist.is_initialized():
        backend = dist.get_default_backend_for_device(device)  # nccl, or gloo on the CPU
        dist.init_process_group(backend, timeout=timedelta(seconds=_timeout()))
    return Processes(dist.get_rank(), dist.get_world_size(), device)


class _OwnExamples:
    """A Denoiser that predicts this process's examples of a batch alone; the others' predictions are zero, and not read."""

    def __init__(self, model: Denoiser, processes: Processes) -> None:
        self.device, self.dtype, self.parameterization = model.device, model.dtype, model.parameterization
        self.sigma_at, self.add_noise = model.sigma_at, model.add_noise
        self._model, self._processes = model, processes

    def predict(self, x_t: torch.Tensor, sigma: torch.Tensor, conditioning: Sequence[Conditioning]) -> torch.Tensor:
        own, _ = self._processes.own(len(x_t))
        prediction = torch.zeros_like(x_t, dtype=torch.float32)
        prediction[own] = self._model.predict(x_t[own], sigma[own], conditioning[own])
        return prediction


def _timeout() -> float:
    return float(os.environ.get(TIMEOUT, 600))


def _spread(flat: torch.Tensor, tensors: Sequence[torch.Tensor]) -> None:
    """Copy what stands one after another into the tensors."""
    parts = flat[: sum(tensor.numel() for tensor in tensors)].split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(list(tensors), [part.view_as(tensor) for part, tensor in zip(parts, tensors)])
