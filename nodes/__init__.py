"""The nodes of the pack."""

from .bucket_images import BucketImages
from .compare_loras import CompareLoRAs
from .encoded_images import EncodedTrainingImages
from .load_image_folder import LoadImageFolder
from .load_image_pairs import LoadImagePairs
from .load_lora import LoadLoRA
from .lora_network import LoRANetwork
from .plot_loss import PlotLoss
from .preview_settings import PreviewSettings
from .save_lora import SaveLoRA
from .train_addift import TrainADDifT
from .train_copy_machine import TrainCopyMachine
from .train_difference import TrainDifference
from .train_ileco import TrainILECO
from .train_lora import TrainLoRA
from .train_slider import TrainSlider
from .training_settings import TrainingSettings

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
    TrainSlider,
    TrainCopyMachine,
    TrainDifference,
    TrainADDifT,
    SaveLoRA,
    LoadLoRA,
    CompareLoRAs,
    PlotLoss,
]
