"""Runs of a text encoder as in a training, with random weights in its LoRA."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from pack.nodes import host
from pack.nodes.host.encoding import tokenize
from pack.nodes.host.lora_import import create_network
from pack.trainer.config import NetworkConfig
from pack.trainer.network import LoRANetwork

CAPTION = "a red circle"
NETWORK = NetworkConfig(rank=4, alpha=2, blocks="BASE")


class Trained(NamedTuple):
    """What a training computes with random weights in the LoRA of a text encoder.

    outputs: the prompt, and its pooled output if there is one
    lora: the LoRA by its keys in a file
    adapters: by layer, with the gradients that `outside` gives
    """

    outputs: list[torch.Tensor]
    lora: dict[str, torch.Tensor]
    adapters: dict[str, torch.nn.Module]


def run(
    model: Any, clip: Any, lora: dict[str, torch.Tensor] | None = None, network: NetworkConfig = NETWORK
) -> Trained:
    """Encode a caption as a training does and compute gradients. lora: what the training starts from, or random weights"""
    with host.open_model(model, clip=clip) as (_, layers):
        adapters = create_network(None if lora else network, lora, 0, model, clip, layers)
        if lora is None:
            randomize(adapters)
        with adapters.injected():
            ((prompt, extra),) = host.TrainedTextEncoder(clip).encode([CAPTION])
        outputs = [each for each in (prompt, extra["pooled_output"]) if each is not None]
        backward(outputs)
        adapters.check_reached()
        return Trained([each.detach() for each in outputs], adapters.weights(), adapters._adapters)


def encode(clip: Any) -> list[torch.Tensor]:
    """Return the prompt of the caption, and its pooled output or None, as the host makes them."""
    with torch.inference_mode():
        ((prompt, extra),) = clip.encode_from_tokens_scheduled(tokenize(clip, CAPTION))
    return [prompt, extra["pooled_output"]]


def randomize(network: LoRANetwork) -> None:
    rng = torch.Generator().manual_seed(2)
    for parameter in network.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=rng)


def backward(outputs: list[torch.Tensor]) -> None:
    rng = torch.Generator().manual_seed(3)
    sum((each * torch.randn(each.shape, generator=rng)).sum() for each in outputs).backward()


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    scale = theirs.abs().max().clamp(min=1e-6)
    torch.testing.assert_close(ours / scale, theirs / scale, rtol=1e-3, atol=1e-3)
