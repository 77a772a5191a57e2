"""Makes prompts of the tokens of others."""

from __future__ import annotations

import torch

from ...trainer.denoiser import Conditioning

# Parts of a CONDITIONING with something for each token, and the dimension of the tokens.
PER_TOKEN = {"attention_mask": 1, "t5xxl_ids": 0, "t5xxl_weights": 0, "conditioning_llama3": 2}


def join_prompts(first: Conditioning, second: Conditioning) -> Conditioning:
    """Return a prompt with the tokens of both, as Conditioning (Concat) joins them; the rest, such as pooled, is the first's.

    Raises ValueError if they are of different text encoders.
    """
    (tokens, extra), (more, theirs) = map(_without_padding, (first, second))
    if tokens.shape[2:] != more.shape[2:]:
        raise ValueError(
            f"Two prompts cannot be joined, because their tokens have {tokens.shape[-1]} and {more.shape[-1]} values: encode "
            "both with the same CLIP."
        )
    shared = PER_TOKEN.keys() & extra.keys() & theirs.keys()
    joined = {key: torch.cat([extra[key], theirs[key]], PER_TOKEN[key]) for key in shared}
    return [torch.cat([tokens, more], 1), extra | joined]


def blank_prompt(prompt: Conditioning) -> Conditioning:
    """Return a prompt of the same shape that says nothing: zeros, as Conditioning Zero Out makes them."""
    tokens, extra = prompt
    blank = {
        key: torch.zeros_like(value) if isinstance(value, torch.Tensor) and key != "attention_mask" else value
        for key, value in extra.items()
    }
    return [torch.zeros_like(tokens), blank]


def _without_padding(prompt: Conditioning) -> Conditioning:
    """Return a prompt without the tokens that its attention mask hides: the joined ones have no gap."""
    tokens, extra = prompt
    mask = extra.get("attention_mask")
    if mask is None or mask.shape != tokens.shape[:2]:
        return prompt
    return [tokens[:, mask[0] > 0], extra | {"attention_mask": mask[:, mask[0] > 0]}]
