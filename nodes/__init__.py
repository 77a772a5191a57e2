"""The nodes of the pack."""

from .addift import TrainADDifT
from .difference import TrainCopyMachine, TrainDifference
from .encoded import EncodedTrainingImages
from .files import LoadLoRA, PlotLoss, SaveLoRA
from .images import BucketImages, LoadImageFolder
from .pairs import LoadImagePairs
from .preview import PreviewSettings
from .settings import LoRANetwork, TrainingSettings
from .train import TrainILECO, TrainLoRA

NODES = [
    LoadImageFolder,
    LoadImagePairs,
    BucketImages,
    EncodedTrainingImages,
    LoRANetwork,
    TrainingSettings,
    PreviewSettings,
    TrainLoRA,
    TrainILECO,
    TrainCopyMachine,
    TrainDifference,
    TrainADDifT,
    SaveLoRA,
    LoadLoRA,
    PlotLoss,
]
