"""Digests of a LoRA's weights: ours, which tells whether they were changed, and those that other programs read."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from safetensors.torch import save


def weights_digest(tensors: dict[str, torch.Tensor]) -> str:
    """Return a SHA-256 of the names, types, shapes and values of tensors, in hexadecimal digits."""
    digest = hashlib.sha256()
    for key, tensor in sorted(tensors.items()):
        digest.update(repr((key, str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def tensor_bytes(tensor: torch.Tensor) -> np.ndarray:
    """Return the values of a tensor as bytes (N,), uint8."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


def file_hashes(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> dict[str, str]:
    """Return the metadata by which other programs identify a file with these tensors.

    As in kohya's files, the hash is a SHA-256 of everything after the header. The legacy one is of 64 KiB at 1 MiB of a file
    that has only the metadata of training; it takes 8 digits. modelspec.hash_sha256 is the same hash in Stability AI's notation.
    """
    content = save(tensors, {key: value for key, value in metadata.items() if key.startswith("ss_")})
    header = 8 + int.from_bytes(content[:8], "little")
    body = hashlib.sha256(memoryview(content)[header:]).hexdigest()
    legacy = hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]
    return {"sshs_model_hash": body, "sshs_legacy_hash": legacy, "modelspec.hash_sha256": f"0x{body}"}
