"""All adapter layers of one LoRA: put on a model by hooks, scaled, taken off without a trace, exported."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import Callable, Iterator, TypeVar

import torch
from torch import nn

from .adapters import KINDS, Adapter, LoHaLayer, LoKrLayer, adapter_like
from .blocks import TEXT_ENCODER, block_id
from .config import NetworkConfig, TrainingConfig

LayerWeights = dict[str, dict[str, torch.Tensor]]  # a layer's name -> its weights as `Adapter.tensors` names them
T = TypeVar("T")


class LoRANetwork(nn.Module):
    """The adapters of some layers of a model, or of a model and its text encoder.

    layers: by name, as `choose_layers` gives them
    adapters: one for each
    config: what describes them
    key_of: the layer's name -> its key in a LoRA file
    """

    def __init__(
        self,
        layers: dict[str, nn.Module],
        adapters: dict[str, Adapter],
        config: NetworkConfig,
        key_of: Callable[[str], str],
    ) -> None:
        super().__init__()
        self.config = config
        self._layers, self._adapters = layers, adapters
        self._keys = {name: key_of(name) for name in layers}
        self._reached: set[str] = set()
        self._strength = 1.0
        for index, adapter in enumerate(adapters.values()):
            self.add_module(str(index), adapter)  # module names may hold no dots

    @classmethod
    def create(
        cls, layers: dict[str, nn.Module], config: NetworkConfig, key_of: Callable[[str], str], seed: int
    ) -> LoRANetwork:
        """Return a network that has learned nothing, its start drawn by the seed."""
        rng = torch.Generator().manual_seed(seed)
        return cls(layers, {name: _adapter(layer, config, rng) for name, layer in layers.items()}, config, key_of)

    @classmethod
    def like(cls, layers: dict[str, nn.Module], weights: LayerWeights, key_of: Callable[[str], str]) -> LoRANetwork:
        """Return a network with the layers, types, ranks, alphas and weights of a LoRA file.

        Raises ValueError for weights that no adapter here can hold.
        """
        adapters = {name: _refuse_with_name(name, adapter_like, layer, weights[name]) for name, layer in layers.items()}
        return cls(layers, adapters, _describe(adapters), key_of)

    def load(self, weights: LayerWeights) -> None:
        """Take the weights of a LoRA file. Raises ValueError where it has other layers or shapes."""
        if weights.keys() != self._layers.keys():
            odd = sorted(weights.keys() ^ self._layers.keys())
            raise ValueError(
                f"The LoRA has {len(weights)} layers and LoRA Network chooses {len(self._layers)}; only one of them has "
                f"{', '.join(odd[:3])}{' ...' if len(odd) > 3 else ''}: choose as the LoRA was trained, or unwire LoRA Network."
            )
        for name, adapter in self._adapters.items():
            _refuse_with_name(name, adapter.load, weights[name])

    def parameter_groups(self, config: TrainingConfig) -> list[dict]:
        """Return the parameters for an optimizer: the model's with their learning rate, then the text encoder's."""
        groups: dict[bool, list[nn.Parameter]] = {False: [], True: []}
        for name, adapter in self._adapters.items():
            groups[block_id(name) == TEXT_ENCODER].extend(adapter.parameters())
        rates = config.learning_rate, config.text_encoder_learning_rate or config.learning_rate
        return [{"params": group, "lr": rate} for group, rate in zip(groups.values(), rates) if group]

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

    def size(self) -> tuple[int, int]:
        """Return how many layers and parameters the LoRA has."""
        return len(self._layers), sum(parameter.numel() for parameter in self.parameters())

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
            return adapter(output, inputs[0], self._strength)

        return add


def _adapter(layer: nn.Module, config: NetworkConfig, rng: torch.Generator) -> Adapter:
    kind = KINDS[config.network_type]
    if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1):
        return kind(layer, config.conv_rank or config.rank, config.conv_alpha or config.alpha, rng)
    return kind(layer, config.rank, config.alpha, rng)


def _describe(adapters: dict[str, Adapter]) -> NetworkConfig:
    """Describe a network by its commonest type, rank and alpha."""
    convolutions = [a for a in adapters.values() if len(a.shape) > 2 and a.shape[2] > 1]
    main = Counter((type(a), a.rank, a.alpha) for a in adapters.values() if a not in convolutions) or Counter(
        (type(a), a.rank, a.alpha) for a in convolutions
    )
    (kind, rank, alpha), _ = main.most_common(1)[0]
    names = {LoHaLayer: "loha", LoKrLayer: "lokr"}
    conv = Counter((a.rank, a.alpha) for a in convolutions).most_common(1)
    conv_rank, conv_alpha = conv[0][0] if conv else (0, 0.0)
    network_type = names.get(kind, "c3lier" if convolutions else "lierla")
    return NetworkConfig(network_type, rank, alpha, conv_rank, conv_alpha)


def _refuse_with_name(name: str, make: Callable[..., T], *arguments: object) -> T:
    try:
        return make(*arguments)
    except ValueError as error:
        raise ValueError(f"The LoRA cannot be trained on: its layer {name} {error}.") from error
    except (ArithmeticError, LookupError, TypeError) as error:
        raise ValueError(
            f"The LoRA cannot be trained on: the tensors of its layer {name} do not go together ({error})."
        ) from error
