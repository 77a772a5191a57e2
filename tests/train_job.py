"""A training without a node: what the node does, less the page and the files."""

from __future__ import annotations

from collections.abc import Callable

from pack.nodes import host
from pack.trainer.history import History
from pack.trainer.lora_file import LoRAWeights
from pack.trainer.run import Step


def train_job(
    job: host.Job,
    on_step: Callable[[Step], object] = lambda step: None,
    save: Callable[[host.Session], object] = lambda session: None,
) -> tuple[LoRAWeights, History]:
    """Train a job to its end; return its LoRA and history."""
    with host.open_session(job, save) as session:
        for step in session.steps():
            on_step(step)
    return session.lora(), session.history
