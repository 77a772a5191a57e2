"""The training loop: a generator of steps that can stop after any of them and resume."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generator, Iterator

import torch

from .config import TrainingConfig
from .denoiser import Denoiser
from .distributed import ALONE, Peers
from .eval_weights import EvalWeights, copy_all
from .gradient_proof import GradientProof
from .gradient_start import GradientStart
from .history import History
from .loss import step_loss
from .loss_scaler import LossScaler
from .methods import Method
from .network import LoRANetwork
from .optimizer import can_go_on, create_optimizer, resume
from .schedule import create_schedule
from .state import State

MAX_SKIPPED = 10  # skipped steps in a row that end the training
FP16_PROOF_STEPS = 10  # an fp16 gradient may underflow to zeros in one step and not in the next


class NonFiniteLoss(RuntimeError):
    """The loss or a gradient was NaN or Inf in too many steps; the network has the weights from before them."""


@dataclass(frozen=True)
class Step:
    """Describes a finished step.

    number: from 1
    loss: mean over its examples; may be NaN or Inf if `skipped`
    learning_rate: of the update
    skipped: whether loss or gradient was NaN or Inf, so that the weights did not change
    is_milestone: whether `save_every` asks for a file
    """

    number: int
    loss: float
    learning_rate: float
    skipped: bool
    is_milestone: bool


class TrainingRun:
    """Trains a network: holds its optimizer, schedule, random generator and history.

    model: the one that the network adapts
    peers: the processes that share the training

    Random numbers are drawn on the CPU, so a seed gives the same training on every device.
    """

    def __init__(
        self, model: Denoiser, network: LoRANetwork, method: Method, config: TrainingConfig, peers: Peers = ALONE
    ) -> None:
        self._model, self._network, self._method, self._config = peers.shard(model), network, method, config
        self._peers = peers
        self._optimizer = create_optimizer(config, network.parameter_groups(config))
        self._schedule = create_schedule(config, self._optimizer)
        self._scaler = LossScaler(model.dtype)
        self._rng = torch.Generator().manual_seed(config.seed)
        self._rng_state = self._rng.get_state()  # after the last finished step
        self._parameters = list(network.parameters())
        self._for_use = EvalWeights(self._parameters, self._optimizer, config.ema_decay)
        # From before an update, in case it is interrupted.
        self._before = [p.detach().clone() for p in self._parameters]
        proof_steps = FP16_PROOF_STEPS if model.dtype == torch.float16 else 1
        self._proof = GradientProof(network, proof_steps, config.steps)
        self._skipped_in_a_row = 0
        self._is_consistent = True  # whether weights and optimizer state are from the same step
        self._looked_ahead = 0  # steps whose batches the start of the weights has used
        self.history = History()

    def steps(self) -> Generator[Step, None, None]:
        """Train until the config's number of steps, and yield each step.

        A step is yielded while the device computes the gradients of the next one. Closing the generator discards those: the
        weights are those of the step that was yielded. Raises NonFiniteLoss, RuntimeError if layers cannot be trained,
        ValueError if the last step leaves the LoRA all zeros, and PeerLost if another process fails. Ends early if the first
        process does.
        """
        done = None
        first, last = len(self.history) + 1, self._config.steps
        ahead = self._config.gradient_start
        if ahead and (self.history or self._looked_ahead or self._network.has_learned()):
            ahead = 0
        self._peers.begin(self._parameters, ahead + last - first + 1, self._describe())
        self._for_use.set_mode("train")
        try:
            with self._network.injected():
                if ahead and not self._start_along_gradients(ahead):
                    return
                for number in range(first, last + 1):
                    loss = self._backward(number)
                    if done:
                        yield done
                    done = self._update(number, loss)
                    if done is None:
                        return
                if done:
                    yield done
            self._check_learned()
        except GeneratorExit:
            self._peers.announce_exit(self._parameters, is_stop=True)
            raise
        except BaseException:
            self._peers.announce_exit(self._parameters, is_stop=False)
            raise
        finally:
            self._optimizer.zero_grad(set_to_none=True)

    def has_learned(self) -> bool:
        """Return whether training has changed the weights for use at all."""
        with self.eval_weights():
            return self._network.has_learned()

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the weights for use, by their keys in a LoRA file: float32 on the CPU."""
        with self.eval_weights():
            return self._network.weights()

    def state(self) -> State | None:
        """Return the state for `load_state`, or None if an update was interrupted midway."""
        if not self._is_consistent:
            return None
        return {
            "optimizer_name": self._config.optimizer,
            "losses": self.history.losses,
            "learning_rates": self.history.learning_rates,
            "skipped": self.history.skipped,
            "validation": self.history.validation,
            "weights": [p.detach() for p in self._parameters],
            "average": self._for_use.average,
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state(),
            "rng": self._rng_state,
            "looked_ahead": self._looked_ahead,
        }

    def fits_optimizer(self, state: State) -> bool:
        """Return whether the optimizer can go on from a state of the same optimizer."""
        return can_go_on(self._optimizer, self._config, state["optimizer"])

    def load_state(self, state: State) -> None:
        """Resume from a state. Raises ValueError if no step is left or the optimizer is different."""
        done = len(state["losses"])
        if done >= self._config.steps:
            raise ValueError(
                f"The LoRA is trained for {done} steps and steps is {self._config.steps}: set steps to a higher total, or "
                "resume to weights only, which trains all steps from its weights."
            )
        if state["optimizer_name"] != self._config.optimizer:
            raise ValueError(
                f"The LoRA is trained with {state['optimizer_name']} and optimizer is {self._config.optimizer}: resume with "
                "the same optimizer."
            )
        copy_all(state["weights"], self._parameters)
        self._for_use.load(state.get("average", []))
        for step in range(done):
            self._schedule.step(state["losses"][step - 1] if step else None)
        resume(self._optimizer, state["optimizer"], self._model.device)  # with the rates of the new schedule
        self._looked_ahead = state.get("looked_ahead", 0)
        self._method.skip((self._looked_ahead + done) * self._config.gradient_accumulation)
        self._scaler.load(state.get("scaler", self._scaler.state()))
        if state["rng"].shape == self._rng_state.shape:  # else it is from a version that drew on the GPU
            self._rng.set_state(state["rng"])
        self._rng_state = self._rng.get_state()
        self.history = History(
            *(list(state[key]) for key in ("losses", "learning_rates")),
            list(state.get("skipped", [])),
            dict(state.get("validation", {})),
        )

    @contextmanager
    def eval_weights(self) -> Iterator[None]:
        """Run the block with the weights for use; see EvalWeights."""
        with self._for_use.used(self._is_consistent):
            yield

    def _start_along_gradients(self, count: int) -> bool:
        """Turn the new weights to the gradients of so many steps; return whether no other process has ended the training."""
        start = GradientStart(self._network, self._rng)
        try:
            for number in range(1, count + 1):
                reduced = self._peers.reduce(self._parameters, self._backward(number))
                if self._peers.have_ended(*reduced.tolist()[1:]):
                    return False
                self._scaler.update(not start.add())
                self._optimizer.zero_grad(set_to_none=True)
        finally:
            start.finish()
        self._looked_ahead, self._rng_state = count, self._rng.get_state()
        return True

    def _backward(self, number: int) -> torch.Tensor:
        """Compute a step's gradients for this process's examples; return its part of the mean loss, a scalar.

        With accumulation the mean is over the examples of all batches, so a smaller last batch of an epoch counts less.
        """
        config, total = self._config, torch.zeros((), device=self._model.device)
        sizes: list[int] = []
        for _ in range(config.gradient_accumulation):
            with self._network.scaled(self._method.strength(number - 1)):
                output = self._method.run_step(self._proof.recording(self._model), self._network, number - 1, self._rng)
                sizes.append(len(output.sigma))
                output, share = self._peers.shard_output(output)
                weight = share * (sizes[-1] / sizes[0])
                loss = step_loss(output, self._model, config) * weight / config.gradient_accumulation
                (loss * self._scaler.scale).backward()
            total += loss.detach()
        correction = sizes[0] * len(sizes) / sum(sizes)
        if correction != self._scaler.scale:  # both are 1 if there is nothing to do
            gradients = [p.grad for p in self._parameters if p.grad is not None]
            torch._foreach_mul_(gradients, correction / self._scaler.scale)
        return total * correction

    def _update(self, number: int, loss: torch.Tensor) -> Step | None:
        """Update the weights, or skip the step; return None if another process has ended the training.

        The only place in the loop that waits for the device: whether gradients are finite must be known before they are used.
        """
        reduced = self._peers.reduce(self._parameters, loss)
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._config.max_grad_norm or math.inf)
        loss_value, stopped, failed, norm_value = torch.cat([reduced, norm[None]]).tolist()
        if self._peers.have_ended(stopped, failed):
            return None
        skipped = not (math.isfinite(loss_value) and math.isfinite(norm_value))
        rate = self._optimizer.param_groups[0]["lr"]
        if not skipped:
            self._proof.check(loss_value)
            self._step_optimizer()
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.update(skipped)
        self._schedule.step(self.history.losses[-1] if self.history else None)
        self._rng_state = self._rng.get_state()
        self.history.add(loss_value, rate, skipped)
        self._count_skipped(number, loss_value, skipped)
        every = self._config.save_every
        return Step(
            number, loss_value, rate, skipped, bool(every) and number % every == 0 and number < self._config.steps
        )

    def _check_learned(self) -> None:
        if not self.has_learned():
            raise ValueError(
                f"Nothing was learned: after {len(self.history)} steps with {self._config.optimizer} the LoRA is still all "
                "zeros. Train more steps (RAdamScheduleFree changes nothing in the first 4), raise learning_rate, or lower "
                "warmup_steps."
            )

    def _step_optimizer(self) -> None:
        copy_all(self._parameters, self._before)
        try:
            self._optimizer.step()
            self._for_use.update(len(self.history) - len(self.history.skipped) + 1)
        except BaseException:
            self._is_consistent = False
            copy_all(self._before, self._parameters)
            raise

    def _count_skipped(self, number: int, loss: float, skipped: bool) -> None:
        """Raise NonFiniteLoss if too many steps in a row, or all steps of the training, were skipped."""
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if skipped else 0
        all_of_it = number == self._config.steps == len(self.history.skipped)
        if self._skipped_in_a_row == MAX_SKIPPED or all_of_it:
            kept = number - self._skipped_in_a_row
            raise NonFiniteLoss(
                f"Loss or gradient was NaN or Inf in {self._skipped_in_a_row} steps in a row, up to step {number} (loss "
                f"{loss:g}): lower the learning rate, or set precision to bf16 or fp32 in Training Settings. "
                + (f"The LoRA up to step {kept} is saved." if kept else "Nothing was learned.")
            )

    def _describe(self) -> str:
        """Return a text that is different for different trainings, so that processes can compare theirs."""
        return f"{type(self._method).__name__} {self._network.size()} {len(self.history)} {self._config}"
