"""The nodes of the pack."""

from .files import LoadLoRA, PlotLoss, SaveLoRA
from .images import BucketImages, LoadImageFolder
from .settings import LoRANetwork, TrainingSettings
from .train import TrainLoRA

NODES = [LoadImageFolder, BucketImages, LoRANetwork, TrainingSettings, TrainLoRA, SaveLoRA, LoadLoRA, PlotLoss]
