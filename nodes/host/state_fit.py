"""Whether the training state of a LoRA fits a training that continues the LoRA."""

from __future__ import annotations

import math

import torch

from ...trainer.config import TrainingConfig
from ...trainer.network import LoRANetwork
from ...trainer.state import State


def state_fits(
    state: State, network: LoRANetwork, config: TrainingConfig, lora: dict[str, torch.Tensor] | None
) -> bool:
    """Return whether a state of a LoRA fits the layers, ranks, alphas and learning rates of a network. A damaged one does not."""
    try:
        groups = network.parameter_groups(config)
        ours = [parameter.shape for parameter in network.parameters()]
        sizes = [len(group["params"]) for group in state["optimizer"]["param_groups"]]
        weights, average = ([tensor.shape for tensor in state.get(key, [])] for key in ("weights", "average"))
        is_same_size = weights == ours and average in ([], ours) and sizes == [len(g["params"]) for g in groups]
        is_whole = isinstance(state["losses"], list) and len(state["learning_rates"]) == len(state["losses"])
        return is_whole and is_same_size and _are_close(_alphas(network.weights()), _alphas(lora))
    except (AttributeError, LookupError, TypeError):  # damaged
        return False


def _alphas(lora: dict[str, torch.Tensor] | None) -> dict[str, float]:
    return {key: float(tensor) for key, tensor in (lora or {}).items() if key.endswith(".alpha")}


def _are_close(ours: dict[str, float], theirs: dict[str, float]) -> bool:
    """Return whether numbers are the same, to the rounding of a file in bf16."""
    return ours.keys() == theirs.keys() and all(math.isclose(ours[key], theirs[key], rel_tol=5e-3) for key in ours)
