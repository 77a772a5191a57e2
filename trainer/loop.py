"""The one training loop, which can stop and go on."""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Callable, Iterator

import torch
from torch.amp import autocast

from .config import TrainingConfig
from .denoiser import Denoiser
from .history import History
from .loss import step_loss
from .methods import Method
from .network import LoRANetwork
from .optimizer import create_optimizer
from .pending import Figures, PendingStep
from .processes import ALONE, Processes
from .schedule import create_schedule
from .state import State

# fp16 holds nothing below 6e-8, and the gradients of a mean over a picture are that small. A power of two changes no digit.
FP16_LOSS_SCALE = 2.0**10
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

OnStep = Callable[[int, float, float], None]  # step (from 1), loss, learning rate


class StopTraining(Exception):
    """Raised by `on_step`: enough steps are done."""


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient became infinite or no number; the network holds the weights from before."""


class TrainingRun:
    """A network in training: its optimizer, its schedule, and how far they are."""

    def __init__(
        self,
        model: Denoiser,
        network: LoRANetwork,
        method: Method,
        config: TrainingConfig,
        processes: Processes = ALONE,
    ) -> None:
        self._model, self._network, self._method, self._config = processes.share(model), network, method, config
        self._processes = processes
        self._optimizer = create_optimizer(config, network.parameter_groups(config))
        self._schedule = create_schedule(config, self._optimizer)
        self._rng = torch.Generator(model.device).manual_seed(config.seed)
        self._rng_state = self._rng.get_state()  # from before the step in hand
        self._parameters = list(network.parameters())
        self._before = [p.detach().clone() for p in self._parameters]  # from before the step not known to be finite
        self._pending: PendingStep | None = None
        self._whole = True  # whether weights and optimizer are of the same step
        self.history = History()

    def train(self, on_step: OnStep) -> None:
        """Train until the config's steps are done.

        `on_step` is told of a step while the next one runs, so that nothing waits for the device. What it raises ends
        the training; the network keeps the steps that are done. Raises NonFiniteLoss, and ProcessLost or StopTraining
        where another process has failed or been stopped.
        """
        steps = self._config.steps - len(self.history)
        what = f"{type(self._method).__name__} {self._network.size()} {steps} {self._config}"
        self._processes.begin(self._parameters, steps, what)
        _copy(self._parameters, self._before)
        self._set_mode("train")
        try:
            with self._network.injected():
                for step in range(len(self.history), self._config.steps):
                    self._run_step(step, on_step)
                self._rng_state = self._rng.get_state()
                self._finish_step(on_step)
        except BaseException as error:
            self._processes.leave(self._parameters, isinstance(error, StopTraining))
            self._settle()
            raise

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the LoRA as it is to be used, under its keys in a file."""
        with self.averaged():
            return self._network.weights()

    def state(self) -> State | None:
        """Return what `go_on` needs to train as if there had been no stop, or None if a step was cut in two."""
        if not self._whole:
            return None
        return {
            "optimizer_name": self._config.optimizer,
            "losses": self.history.losses,
            "learning_rates": self.history.learning_rates,
            "weights": [p.detach() for p in self._parameters],
            "optimizer": self._optimizer.state_dict(),
            "rng": self._rng_state,
        }

    def go_on(self, state: State) -> None:
        """Take up a training where its state was taken. Raises ValueError if no step is left, or the optimizer is another."""
        done = len(state["losses"])
        if done >= self._config.steps:
            raise ValueError(
                f"The LoRA has been trained for {done} steps and steps is {self._config.steps}: set steps to how many it "
                "shall have in all."
            )
        if state["optimizer_name"] != self._config.optimizer:
            raise ValueError(
                f"The LoRA has been trained with {state['optimizer_name']} and the settings say {self._config.optimizer}: "
                "go on with the same optimizer."
            )
        _copy(state["weights"], self._parameters)
        _copy(state["weights"], self._before)
        for step in range(done):
            self._schedule.step(state["losses"][step - 1] if step else None)
        rates = [{key: group[key] for key in ("lr", "initial_lr")} for group in self._optimizer.param_groups]
        self._optimizer.load_state_dict(state["optimizer"])
        for group, rate in zip(self._optimizer.param_groups, rates):
            group.update(rate)  # the schedule of now, which may be longer
        self._method.skip(done * self._config.gradient_accumulation)
        if state["rng"].shape == self._rng_state.shape:  # else it was trained on another kind of device
            self._rng.set_state(state["rng"])
        self._rng_state = self._rng.get_state()
        self.history = History(list(state["losses"]), list(state["learning_rates"]))

    def _run_step(self, step: int, on_step: OnStep) -> None:
        self._rng_state = self._rng.get_state()
        loss = _accumulate_gradients(
            self._model, self._network, self._method, self._config, step, self._rng, self._processes
        )
        figures = self._processes.add_up(self._parameters, loss)
        norm = _clip(self._parameters, self._config.max_grad_norm)
        if self._pending is None:  # the first one
            self._network.check_reached()
        self._finish_step(on_step)
        self._whole = False
        _copy(self._parameters, self._before)
        rate = self._optimizer.param_groups[0]["lr"]
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._schedule.step(self.history.losses[-1] if self.history else None)
        self._pending, self._whole = PendingStep(step + 1, figures, norm, rate), True

    def _finish_step(self, on_step: OnStep) -> None:
        """Wait for the step before and tell of it."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        figures = pending.read()
        if not figures.whole:
            self._whole = False
            raise self._reason(figures, pending.step)
        self.history.add(figures.loss, pending.learning_rate)
        on_step(pending.step, figures.loss, pending.learning_rate)

    def _reason(self, figures: Figures, step: int) -> Exception:
        """Return what ends a training at a step that does not count."""
        if figures.stopped and not figures.failed:
            self._processes.stopped()
            return StopTraining()
        if figures.failed:
            return self._processes.lost()
        return NonFiniteLoss(
            f"The loss became {figures.loss} in step {step}, or its gradient was not finite: lower the "
            "learning rate, or set precision to bf16 or fp32. The LoRA up to the step before is kept."
        )

    def _settle(self) -> None:
        """Leave weights and optimizer as they were after the last step that is done."""
        self._optimizer.zero_grad(set_to_none=True)
        if self._pending is not None:
            pending, self._pending = self._pending, None
            figures = pending.read()
            self._whole = figures.whole
            if self._whole:
                self.history.add(figures.loss, pending.learning_rate)
        if not self._whole:
            _copy(self._before, self._parameters)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Run the block with the LoRA as it is to be used: what a schedule-free optimizer has averaged."""
        weights = [p.detach().clone() for p in self._parameters]
        if self._whole:
            self._set_mode("eval")
        try:
            yield
        finally:
            if self._whole:
                self._set_mode("train")
            _copy(weights, self._parameters)

    def _set_mode(self, mode: str) -> None:
        if hasattr(self._optimizer, mode):  # a schedule-free one
            getattr(self._optimizer, mode)()


def _accumulate_gradients(
    model: Denoiser,
    network: LoRANetwork,
    method: Method,
    config: TrainingConfig,
    step: int,
    rng: torch.Generator,
    processes: Processes,
) -> torch.Tensor:
    """Add up the gradients of this process's part of the step's batches and return its part of their mean loss."""
    total = torch.zeros((), device=model.device)
    scale = FP16_LOSS_SCALE if _DTYPES.get(config.precision, model.dtype) == torch.float16 else 1.0
    for _ in range(config.gradient_accumulation):
        with network.scaled(method.strength(step)):
            with _autocast(model.device, config.precision):
                output, share = processes.own_part(method.run_step(model, network, step, rng))
            loss = step_loss(output, model, config) * share / config.gradient_accumulation
            (loss * scale).backward()
        total += loss.detach()
    if scale != 1:
        torch._foreach_mul_([p.grad for p in network.parameters() if p.grad is not None], 1 / scale)
    return total


def _autocast(device: torch.device, precision: str) -> AbstractContextManager:
    if precision == "as loaded":
        return nullcontext()
    return autocast(device.type, _DTYPES[precision], enabled=precision != "fp32")


def _clip(parameters: list[torch.Tensor], max_norm: float) -> torch.Tensor:
    """Scale the gradients down to a length of max_norm (0: leave them) and return the length they had."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if max_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


@torch.no_grad()
def _copy(source: list[torch.Tensor], destination: list[torch.Tensor]) -> None:
    torch._foreach_copy_(destination, source)
