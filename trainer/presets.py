"""What a method is trained with where nothing else is set: values for real models of the SD1 and SDXL size."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .config import NetworkConfig, TrainingConfig


@dataclass(frozen=True)
class Preset:
    """The settings of a method."""

    network: NetworkConfig
    training: TrainingConfig


LORA = Preset(NetworkConfig(rank=16, alpha=8.0), TrainingConfig(steps=1000, batch_size=2, learning_rate=1e-4))
ILECO = Preset(NetworkConfig(rank=4, alpha=8.0), TrainingConfig(steps=300, batch_size=2, learning_rate=5e-4))
COPY_MACHINE = Preset(NetworkConfig(rank=16, alpha=16.0), TrainingConfig(steps=500, batch_size=2, learning_rate=5e-4))
# A small rank keeps style and composition, which the copy machine has learned alike, out of the difference.
DIFFERENCE = Preset(NetworkConfig(rank=4, alpha=4.0), TrainingConfig(steps=500, batch_size=2, learning_rate=1e-4))
ADDIFT = Preset(
    NetworkConfig(rank=4, alpha=1.0),
    TrainingConfig(
        steps=30,
        batch_size=1,
        learning_rate=1e-4,
        optimizer="CAME",
        lr_scheduler="cosine_annealing",
        lr_scheduler_settings="eta_min=1e-5",
        min_timestep=500,
    ),
)


def addift(large: bool) -> Preset:
    """Return ADDifT's preset for SD1 and SD2, or for larger models."""
    return replace(ADDIFT, training=replace(ADDIFT.training, learning_rate=2e-4)) if large else ADDIFT
