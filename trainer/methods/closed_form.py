"""iLECO and the slider in closed form: solves for the change of the cross-attention that steps would train towards.

In a U-Net with cross-attention the prompt enters only through `attn2.to_k` and `attn2.to_v`. For each of these weights W
(out, in), the change D (out, in) minimizes

    |D C^T - W M^T|^2 + lambda |D K^T|^2 + mu |D|^2,  so  D = W M^T C (C^T C + lambda K^T K + mu I)^-1

C (n, in): tokens of the prompts to change, those of padding too; M (n, in): by how much they move, which for iLECO is target
minus original; K (m, in): tokens of the prompts to keep.
Unified Concept Editing (Gandikota et al. 2024, arXiv 2308.14761), TIME (Orgad et al. 2023, arXiv 2303.08084).
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import Sequence

import torch
from torch import nn

from ..adapter_base import weight_in_use
from ..denoiser import TIMESTEPS, Conditioning, Denoiser
from ..network import LoRANetwork

READS_PROMPT = re.compile(r"(input_blocks|middle_block|output_blocks)\..+\.attn2\.to_[kv]$")  # in U-Nets only
PRESERVE_WEIGHT = 0.1  # lambda
DAMPING = 1.0  # mu; tokens have square norms of hundreds
SIDE = 8  # height and width of the latents of a pass that only reads tokens: a U-Net halves them three times

logger = logging.getLogger(__name__)


class NoClosedForm(Exception):
    """The closed form does not apply; the message is the reason, to follow "because"."""


@dataclass(frozen=True, eq=False)
class Move:
    """Holds a prompt, and the two prompts whose difference it moves by."""

    prompt: Conditioning
    towards: Conditioning
    away_from: Conditioning


@dataclass(frozen=True, eq=False)
class ClosedForm:
    """Starts a LoRA at the solution for all its prompts at once.

    moves: what changes, at strength 1; none if that is no prompt
    preserved: prompts that must not change
    scale: how far to move, as a multiple of the difference
    channels: of the latents
    """

    moves: Sequence[Move]
    preserved: Sequence[Conditioning]
    scale: float
    channels: int

    def begin(self, model: Denoiser, network: LoRANetwork, steps: int) -> None:
        """Set the weights of a LoRA that is not on the model yet; without a closed form they stay as they are.

        Raises ValueError if there is none and no step follows.
        """
        try:
            self._apply(model, network)
        except NoClosedForm as reason:
            if not steps:
                raise ValueError(
                    f"steps is 0 and there is no closed form, because {reason}: set steps to 1 or more."
                ) from reason
            logger.info("There is no closed form, because %s: everything is learned in steps.", reason)

    def _apply(self, model: Denoiser, network: LoRANetwork) -> None:
        if not self.moves:
            raise NoClosedForm("no target is connected, so there are no tokens to change")
        if network.config.dora:
            raise NoClosedForm("a DoRA is more than the sum of the model and a product of matrices")
        layers = {name: layer for name, layer in network.linear_lora_layers().items() if READS_PROMPT.search(name)}
        if not layers:
            raise NoClosedForm(
                "the LoRA has no lierla or c3lier on attn2.to_k and attn2.to_v, the layers in which a U-Net reads the prompt"
            )
        moves, solution = solve(*self._stack_tokens(model, list(layers.values())))
        if not moves.any():
            raise NoClosedForm("the prompts that differ have the same tokens")
        lost = 0.0
        for name, layer in layers.items():
            weight = weight_in_use(layer).detach().dequantize().to("cpu", torch.float64)
            up, down, share = cut_to_rank(weight @ moves.T, solution, network.config.rank)
            network.start_at(name, up, down)
            lost += share / len(layers)
        logger.info(
            "The LoRA starts from the closed form, in %d layers. Its rank %d leaves out %.2g%% of the change.",
            *(len(layers), network.config.rank, 100 * lost),
        )

    def _stack_tokens(self, model: Denoiser, layers: Sequence[nn.Module]) -> tuple[torch.Tensor, ...]:
        """Return the tokens to change and by how much they move (n, in), and the tokens of preserved prompts (m, in)."""
        sides = [(move.prompt, move.towards, move.away_from) for move in self.moves]
        read = {id(each): each for each in (*sum(sides, ()), *self.preserved)}
        tokens = {key: read_tokens(model, layers, each, self.channels) for key, each in read.items()}
        rows = [match_rows(*(tokens[id(side)] for side in prompts)) for prompts in sides]
        changed, towards, away_from = (torch.cat(side) for side in zip(*rows))
        preserved = torch.cat([changed[:0], *(tokens[id(each)] for each in self.preserved)])
        return changed, self.scale * (towards - away_from), preserved


def solve(changed: torch.Tensor, moves: torch.Tensor, preserved: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two factors (n, in) of the change for tokens (n, in), (n, in), (m, in): D = W @ first.T @ second."""
    gram = changed.T @ changed + PRESERVE_WEIGHT * preserved.T @ preserved
    gram.diagonal().add_(DAMPING)
    return moves, torch.linalg.solve(gram, changed.T).T


def cut_to_rank(left: torch.Tensor, right: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return the best approximation of left (out, n) @ right (n, in) as a product (out, k) @ (k, in), k up to rank.

    Both factors have the same scale. Also returns the share of the square norm that is lost. Works on factors, as the whole
    product of a large layer would take seconds.
    """
    (q_left, r_left), (q_right, r_right) = torch.linalg.qr(left), torch.linalg.qr(right.T)
    u, s, vh = torch.linalg.svd(r_left @ r_right.T, full_matrices=False)
    used = min(rank, int((s > 1e-9 * s[0]).sum()))
    root, energy = s[:used].sqrt(), s.square()
    return (
        q_left @ u[:, :used] * root,
        root[:, None] * (vh[:used] @ q_right.T),
        float(energy[used:].sum() / energy.sum()),
    )


def match_rows(changed: torch.Tensor, *others: torch.Tensor) -> list[torch.Tensor]:
    """Return tokens of prompts, those of the others repeated or cut to the length of the changed one's."""
    return [changed, *(tokens[torch.arange(len(changed)) % len(tokens)] for tokens in others)]


@torch.no_grad()
def read_tokens(model: Denoiser, layers: Sequence[nn.Module], prompt: Conditioning, channels: int) -> torch.Tensor:
    """Return a prompt's tokens (n, in), float64 on the CPU, as they reach all of these layers. Raises NoClosedForm."""
    seen: list[torch.Tensor] = []
    hooks = [layer.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0][0])) for layer in layers]
    try:
        x_t = torch.zeros((1, channels, SIDE, SIDE), device=model.device)
        model.predict(x_t, model.sigma_at(torch.tensor([TIMESTEPS / 2])), [prompt])
    finally:
        for hook in hooks:
            hook.remove()
    if len(seen) != len(layers) or not all(torch.equal(seen[0], tokens) for tokens in seen):
        raise NoClosedForm("something on the model changes the prompt on its way to some layers")
    return seen[0].to("cpu", torch.float64)
