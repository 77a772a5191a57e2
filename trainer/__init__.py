"""The training engine: plain PyTorch that knows nothing of its host."""
