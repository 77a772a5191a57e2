"""A start for LoRA along the gradients of the first batches, instead of in random directions."""

from __future__ import annotations

import torch

from .adapters import LoRALayer
from .config import NetworkConfig, TrainingConfig
from .network import LoRANetwork

NO_PLAIN_LORA = (
    "gradient_start is above 0 and LoRA Network makes no plain LoRA: set network_type to lierla or c3lier and turn off dora, or "
    "set gradient_start to 0."
)


def check_gradient_start(config: TrainingConfig, network: NetworkConfig) -> None:
    """Raise ValueError if a new network has no LoRA that can start along gradients."""
    if config.gradient_start and (network.dora or network.network_type not in ("lierla", "c3lier")):
        raise ValueError(NO_PLAIN_LORA)


class GradientStart:
    """Turns the down weights of a new LoRA to the inputs by which the loss changes most.

    A layer's gradient G (out, in) is never computed. While up is random, R (out, rank), and down is zero, the model predicts
    as without the LoRA, and the gradient of down is a multiple of R^T G (rank, in), a random sketch of the rows of G (Halko
    et al. 2011, arXiv 0909.4061). An orthonormal basis of its sum over the batches becomes down, as long as down was; up
    becomes zero again, so the LoRA still adds nothing. LoRA-GA (Wang et al. 2024, arXiv 2407.05000) takes the singular
    vectors of G itself, which needs the memory of G.

    network: a new one; raises ValueError if it has no LoRA, only DoRA, LoHa or LoKr
    rng: draws R
    """

    def __init__(self, network: LoRANetwork, rng: torch.Generator) -> None:
        self._layers = [layer for layer in network.children() if type(layer) is LoRALayer]
        if not self._layers:
            raise ValueError(NO_PLAIN_LORA)
        self._before = [layer.down.detach().clone() for layer in self._layers]
        self._sums = [torch.zeros_like(down) for down in self._before]
        with torch.no_grad():
            for layer in self._layers:
                layer.up.copy_(torch.randn(layer.up.shape, generator=rng) / layer.rank**0.5)
                layer.down.zero_()

    def add(self) -> bool:
        """Add the gradients of a batch, and return whether they were finite; others are left out."""
        gradients = [layer.down.grad for layer in self._layers]
        gradients = [torch.zeros_like(down) if g is None else g for g, down in zip(gradients, self._before)]
        is_finite = bool(torch.stack(torch._foreach_norm(gradients)).isfinite().all())
        if is_finite:
            torch._foreach_add_(self._sums, gradients)
        return is_finite

    @torch.no_grad()
    def finish(self) -> None:
        """Set the weights; a layer without a gradient so far starts as it would have."""
        for layer, before, total in zip(self._layers, self._before, self._sums):
            layer.up.zero_()
            layer.down.copy_(_turned(before, total))


def _turned(down: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Return a basis of the rows of a gradient (rank, in, ...), with the mean norm of down's rows; the rest is down's own."""
    rows, gradient = down.flatten(1), gradient.flatten(1).cpu().double()  # not every device has a QR decomposition
    if not gradient.any():
        return down
    basis = torch.linalg.qr(gradient.T).Q.T.to(rows) * rows.norm(dim=1).mean()
    return torch.cat([basis, rows[len(basis) :]]).view_as(down)
