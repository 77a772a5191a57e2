"""All adapter layers of one LoRA: put on a model by hooks, scaled, taken off without a trace, exported."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Callable, Iterator

import torch
from torch import nn

from .adapters import Adapter, LoHaLayer, LoKrLayer, LoRALayer
from .blocks import choose_layers
from .config import NetworkConfig


class LoRANetwork(nn.Module):
    """The adapters of the layers that a config chooses.

    config: which layers, which rank
    key_of: the layer's name in the model -> its key in a LoRA file
    seed: of the adapters' start
    Raises ValueError where the config chooses nothing.
    """

    def __init__(self, model: nn.Module, config: NetworkConfig, key_of: Callable[[str], str], seed: int) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self._layers = choose_layers(model, config)
        self._keys = {name: key_of(name) for name in self._layers}
        self._adapters = {name: _adapter(layer, config, rng) for name, layer in self._layers.items()}
        self._reached: set[str] = set()
        self._strength = 1.0
        for index, adapter in enumerate(self._adapters.values()):
            self.add_module(str(index), adapter)  # module names may hold no dots

    @contextmanager
    def injected(self) -> Iterator[None]:
        """Let the adapters work inside the model until the block ends.

        By hooks that are added and removed: replacing `forward` leaves one behind when two LoRAs end out of order.
        """
        handles = [layer.register_forward_hook(self._hook(name)) for name, layer in self._layers.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def scaled(self, strength: float) -> Iterator[None]:
        """Run the block with the LoRA at a strength; 0 is the bare model.

        The backward pass belongs into the block too: gradient checkpointing runs the forward pass again.
        """
        before, self._strength = self._strength, strength
        try:
            yield
        finally:
            self._strength = before

    def weights(self) -> dict[str, torch.Tensor]:
        """Return all weights under their keys in a LoRA file, in float32 on the CPU."""
        return {
            f"{self._keys[name]}.{part}": tensor
            for name, adapter in self._adapters.items()
            for part, tensor in adapter.tensors().items()
        }

    def has_learned(self) -> bool:
        """Tell whether any adapter has moved from its start, where it adds nothing."""
        return any(adapter.has_learned() for adapter in self._adapters.values())

    def check_reached(self) -> None:
        """Raise RuntimeError if a forward pass went past an adapter: its layer would never learn."""
        missed = [name for name in self._layers if name not in self._reached]
        if missed:
            raise RuntimeError(
                f"{len(missed)} of {len(self._layers)} chosen layers take no part in the model's forward pass, "
                f"so they cannot be trained: {', '.join(missed[:8])}{' ...' if len(missed) > 8 else ''}."
            )

    def _hook(self, name: str) -> Callable:
        adapter = self._adapters[name]

        def add(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
            if self._strength == 0:
                return None
            self._reached.add(name)
            return output + adapter(inputs[0], self._strength)

        return add


def _adapter(layer: nn.Module, config: NetworkConfig, rng: torch.Generator) -> Adapter:
    kind = {"loha": LoHaLayer, "lokr": LoKrLayer}.get(config.network_type, LoRALayer)
    if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1):
        return kind(layer, config.conv_rank or config.rank, config.conv_alpha or config.alpha, rng)
    return kind(layer, config.rank, config.alpha, rng)
