"""The training engine: plain PyTorch, independent of ComfyUI."""

import torch

OLDEST_TORCH = (2, 5)

if torch.__version__ < OLDEST_TORCH:
    raise ImportError(
        f"TrainTrain needs PyTorch {'.'.join(map(str, OLDEST_TORCH))} or newer, and ComfyUI runs on {torch.__version__}: update "
        "ComfyUI's PyTorch."
    )
