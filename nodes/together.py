"""A training by several processes: the first one has the files and tells the others what is in them."""

from __future__ import annotations

from typing import Any

from ..trainer.files import LoRAWeights
from ..trainer.history import History
from ..trainer.processes import Processes
from .results import TrainingResults


class ResultsElsewhere(TrainingResults):
    """The results of a node in a process that leaves the files to the first one."""

    def recall(self) -> None:
        return None

    def unfinished(self) -> None:
        return None

    def keep(self, *_: Any) -> None:
        return None

    def check_folder(self) -> None:
        return None

    def samples(self) -> list[dict[str, Any]]:
        return []


def results_of(node: type, inputs: dict[str, Any], processes: Processes) -> TrainingResults:
    """Return the results of a training node: with its files in the first process alone."""
    return (TrainingResults if processes.is_first else ResultsElsewhere)(node, inputs)


def told(finished: tuple[LoRAWeights, History] | None, processes: Processes) -> tuple[LoRAWeights, History] | None:
    """Return in all processes what a training has given in the first one."""
    if processes.count == 1:
        return finished
    packed = None
    if finished is not None:
        lora, history = finished
        packed = [dict(lora), lora.metadata, history.losses, history.learning_rates]
    packed = processes.tell(packed)
    return packed and (LoRAWeights(*packed[:2]), History(*packed[2:]))
