"""The adapters of one LoRA: attached to a model by hooks, scaled, detached without a trace, exported."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from functools import partial
from itertools import product
from typing import Callable, Iterator, Sequence, TypeVar

import torch
from torch import nn

from .adapter_base import Adapter
from .adapter_types import adapter_from_weights, create_adapter
from .adapters import LoHaLayer, LoKrLayer, LoRALayer
from .blocks import TEXT_ENCODER, block_id
from .config import NetworkConfig, TrainingConfig
from .dora import DoRALayer
from .lora_forms import Key, Part, by_key

T = TypeVar("T")


class LoRANetwork(nn.Module):
    """Holds the adapters of some layers of a model, and maybe of its text encoder.

    layers: by name, as `choose_layers` returns them
    adapters: one per layer, by the same names
    config: describes the adapters
    key_of: maps a layer's name to its key in a LoRA file, or to those of its parts
    parts: where an adapter is for only a part of its layer, by name; the name is then the part's, and so is the key
    """

    def __init__(
        self,
        layers: dict[str, nn.Module],
        adapters: dict[str, Adapter],
        config: NetworkConfig,
        key_of: Callable[[str], Key],
        parts: dict[str, Part] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self._layers, self._adapters, self._parts = layers, adapters, parts or {}
        self._keys = {name: self._parts[name].key if name in self._parts else key_of(name) for name in layers}
        self._reached: set[str] = set()
        self._strength = 1.0
        for index, adapter in enumerate(adapters.values()):
            self.add_module(str(index), adapter)  # module names cannot have dots

    @classmethod
    def create(
        cls, layers: dict[str, nn.Module], config: NetworkConfig, key_of: Callable[[str], Key], seed: int
    ) -> LoRANetwork:
        """Create a new network, initialized with the seed."""
        rng = torch.Generator().manual_seed(seed)
        return cls(layers, {name: create_adapter(layer, config, rng) for name, layer in layers.items()}, config, key_of)

    @classmethod
    def from_parts(
        cls, layers: dict[str, nn.Module], parts: Sequence[Part], key_of: Callable[[str], Key]
    ) -> LoRANetwork:
        """Create a network with the layers, types, ranks, alphas and weights of a LoRA file. layers: all of the model, by name

        Raises ValueError if the weights of a layer are not those of a LoRA, DoRA, LoHa or LoKr.
        """
        chosen, adapters = {part.name: layers[part.layer] for part in parts}, {}
        for part in parts:
            layer = part.stand_in(layers[part.layer])
            adapters[part.name] = with_layer_in_error(part.name, adapter_from_weights, layer, part.weights)
        apart = {name: part for name, part in zip(adapters, parts) if not part.is_whole}
        return cls(chosen, adapters, _describe(adapters), key_of, apart)

    def load(self, parts: Sequence[Part]) -> None:
        """Load the weights of a LoRA file, with the effect that they have there.

        Raises ValueError if it has other layers or shapes.
        """
        weights = {part.name: part.weights for part in parts}
        if weights.keys() != self._layers.keys():
            odd = sorted(weights.keys() ^ self._layers.keys())
            raise ValueError(
                f"The LoRA has {len(weights)} layers and LoRA Network selects {len(self._layers)}; only one of them has "
                f"{', '.join(odd[:3])}{' ...' if len(odd) > 3 else ''}: use the settings that the LoRA was trained with, or "
                "disconnect LoRA Network."
            )
        for name, adapter in self._adapters.items():
            with_layer_in_error(name, adapter.load, weights[name])

    def parameter_groups(self, config: TrainingConfig) -> list[dict]:
        """Return an optimizer's parameter groups: the model's with its learning rate, then the text encoder's with its own.

        With a lora_plus_ratio, each is followed by a group of the weights that start at zero, with that multiple of its rate
        (LoRA+; Hayou et al. 2024, arXiv 2402.12354).
        """
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {key: [] for key in product((False, True), repeat=2)}
        for name, adapter in self._adapters.items():
            for part, parameter in adapter.named_parameters():
                is_faster = config.lora_plus_ratio != 1 and part in adapter.zero_at_start
                groups[block_id(name) == TEXT_ENCODER, is_faster].append(parameter)
        rates = config.learning_rate, config.text_encoder_learning_rate or config.learning_rate
        factors = 1.0, config.lora_plus_ratio
        return [
            {"params": group, "lr": rates[is_text] * factors[is_faster]}
            for (is_text, is_faster), group in groups.items()
            if group
        ]

    @contextmanager
    def injected(self) -> Iterator[None]:
        """Attach the adapters to the model until the block ends.

        Uses forward hooks, because replacing `forward` leaves one behind when two LoRAs are detached out of order.
        """
        handles = [layer.register_forward_hook(self._hook(name)) for name, layer in self._layers.items()]
        handles += [
            self._layers[name].register_forward_pre_hook(self._pre_hook(adapter))
            for name, adapter in self._adapters.items()
            if isinstance(adapter, DoRALayer)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def scaled(self, strength: float) -> Iterator[None]:
        """Run the block with the LoRA at a strength; 0 is the model without it.

        The block must include the backward pass, because gradient checkpointing recomputes the forward pass there.
        """
        before, self._strength = self._strength, strength
        try:
            yield
        finally:
            self._strength = before

    def weights(self) -> dict[str, torch.Tensor]:
        """Return all weights by their keys in a LoRA file: detached float32 copies on the CPU."""
        return {
            f"{key}.{part}": tensor
            for name, adapter in self._adapters.items()
            for key, tensors in by_key(self._keys[name], adapter.tensors()).items()
            for part, tensor in tensors.items()
        }

    def has_learned(self) -> bool:
        """Return whether training has changed anything: new adapters add nothing."""
        return any(adapter.has_learned() for adapter in self._adapters.values())

    def size(self) -> tuple[int, int]:
        """Return the numbers of layers and of parameters."""
        return len(self._layers), sum(parameter.numel() for parameter in self.parameters())

    def layer_names(self) -> list[str]:
        """Return the names of the adapted layers."""
        return list(self._layers)

    def linear_lora_layers(self) -> dict[str, nn.Module]:
        """Return the linear layers that have a LoRA, not a DoRA, LoHa or LoKr, by name."""
        return {
            name: self._layers[name]
            for name, adapter in self._adapters.items()
            if type(adapter) is LoRALayer and adapter.conv_arguments is None
        }

    def start_at(self, name: str, up: torch.Tensor, down: torch.Tensor) -> None:
        """Make the LoRA of a linear layer add up (out, k) @ down (k, in), k up to its rank."""
        self._adapters[name].start_at(up, down)

    def layers_with_gradient(self) -> set[str]:
        """Return the names of the layers whose adapters have a gradient other than all zeros."""
        names, gradients = [], []
        for name, adapter in self._adapters.items():
            found = [parameter.grad for parameter in adapter.parameters() if parameter.grad is not None]
            names += [name] * len(found)
            gradients += found
        largest = torch._foreach_norm(gradients, torch.inf) if gradients else []
        return {name for name, value in zip(names, torch.stack(largest).tolist() if largest else []) if value}

    @contextmanager
    def perturbed(self, names: Sequence[str]) -> Iterator[None]:
        """Run the block with random weights in the adapters of these layers."""
        parameters = [parameter for name in names for parameter in self._adapters[name].parameters()]
        before, rng = [parameter.detach().clone() for parameter in parameters], torch.Generator().manual_seed(0)
        try:
            for parameter in parameters:
                parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=rng))
            yield
        finally:
            for parameter, weights in zip(parameters, before):
                parameter.data.copy_(weights)

    def check_reached(self) -> None:
        """Raise RuntimeError if no forward pass so far has used one of the adapters: it would never learn."""
        missed = [name for name in self._layers if name not in self._reached]
        if missed:
            raise RuntimeError(
                f"{len(missed)} of {len(self._layers)} layers are not used in the model's forward pass, so they cannot be "
                f"trained: {', '.join(missed[:8])}{' ...' if len(missed) > 8 else ''}. Exclude their blocks in LoRA Network."
            )

    def _hook(self, name: str) -> Callable:
        adapter = self._adapters[name]
        if name in self._parts:
            adapter = partial(self._parts[name].add, adapter)

        def add(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
            if self._strength == 0:
                return None
            self._reached.add(name)
            return adapter(output, inputs[0], self._strength)

        return add

    def _pre_hook(self, adapter: DoRALayer) -> Callable:
        def scale(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
            if self._strength == 0:
                return None
            return adapter.scale_input(layer, inputs[0], self._strength), *inputs[1:]

        return scale


def _describe(adapters: dict[str, Adapter]) -> NetworkConfig:
    """Return a config with the most common type, rank and alpha."""
    convolutions = [each for each in adapters.values() if len(each.shape) > 2 and each.shape[2] > 1]
    others = [each for each in adapters.values() if each not in convolutions]
    main = Counter((type(each), each.rank, each.alpha) for each in others or convolutions)
    (kind, rank, alpha), _ = main.most_common(1)[0]
    names = {LoHaLayer: "loha", LoKrLayer: "lokr"}
    conv = Counter((each.rank, each.alpha) for each in convolutions).most_common(1)
    conv_rank, conv_alpha = conv[0][0] if conv else (0, 0.0)
    network_type = names.get(kind, "c3lier" if convolutions else "lierla")
    return NetworkConfig(network_type, rank, alpha, conv_rank, conv_alpha, dora=kind is DoRALayer)


def with_layer_in_error(name: str, make: Callable[..., T], *arguments: object) -> T:
    """Return what a call returns. Raises its ValueError with the layer's name, also for weights that do not go together."""
    try:
        return make(*arguments)
    except ValueError as error:
        raise ValueError(f"Training cannot start from this LoRA: its layer {name} {error}.") from error
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"Training cannot start from this LoRA: the tensors of its layer {name} do not match ({error})."
        ) from error
