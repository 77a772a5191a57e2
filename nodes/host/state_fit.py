"""Whether the training state of a LoRA fits a training that continues the LoRA."""

from __future__ import annotations

import math

import torch

from ...trainer.network import LoRANetwork
from ...trainer.run import TrainingRun
from ...trainer.state import State


def state_fits(state: State, run: TrainingRun, network: LoRANetwork, lora: dict[str, torch.Tensor] | None) -> bool:
    """Return whether a state of a LoRA fits the layers, ranks and alphas of a network, and the optimizer of its training.

    A damaged one does not.
    """
    try:
        ours = [parameter.shape for parameter in network.parameters()]
        weights, average = ([tensor.shape for tensor in state.get(key, [])] for key in ("weights", "average"))
        is_same_size = weights == ours and average in ([], ours) and run.fits_optimizer(state)
        is_whole = isinstance(state["losses"], list) and len(state["learning_rates"]) == len(state["losses"])
        return is_whole and is_same_size and _are_close(_alphas(network.weights()), _alphas(lora))
    except (AttributeError, LookupError, TypeError):  # damaged
        return False


def _alphas(lora: dict[str, torch.Tensor] | None) -> dict[str, float]:
    return {key: float(tensor) for key, tensor in (lora or {}).items() if key.endswith(".alpha")}


def _are_close(ours: dict[str, float], theirs: dict[str, float]) -> bool:
    """Return whether numbers are the same, to the rounding of a file in bf16."""
    return ours.keys() == theirs.keys() and all(math.isclose(ours[key], theirs[key], rel_tol=5e-3) for key in ours)
