"""Tokenizes captions as they are written: the host's tokenizers read brackets as weights and `embedding:` as a file."""

from __future__ import annotations

import copy
from typing import Any

_NO_EMBEDDING = "\0embedding:"  # cannot be typed; with an empty one every letter would be a word of its own


def with_literal_captions(clip: Any) -> Any:
    """Return a copy of the CLIP that tokenizes brackets, escaped as `\\(` or not, and `embedding:name` as text.

    The CLIP itself, which encodes the prompts of the graph, stays as it is.
    """
    literal = copy.copy(clip)
    literal.tokenizer = _take_literally(getattr(clip, "tokenizer", None))
    return literal


def _take_literally(tokenizer: Any) -> Any:
    """Return a copy of a tokenizer of the host and of those inside it, such as CLIP-L, CLIP-G and T5 for SD3."""
    if not hasattr(tokenizer, "tokenize_with_weights"):
        return tokenizer
    literal = copy.copy(tokenizer)
    for name, value in vars(tokenizer).items():
        setattr(literal, name, _take_literally(value))
    if hasattr(literal, "disable_weights"):  # comfy.sd1_clip.SDTokenizer: one that reads weights
        literal.disable_weights, literal.embedding_directory = True, None
        literal.embedding_identifier = _NO_EMBEDDING
    return literal
