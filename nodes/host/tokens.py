"""The tokens of captions: any file and any node may have written what comes here."""

from __future__ import annotations

from typing import Any

LONGEST_CAPTION = 10_000  # letters; prompts that text encoders read whole have a few hundred
SHOWN = 60  # letters of a caption, in a message


def tokenize(clip: Any, caption: str) -> Any:
    """Return a caption's tokens as the CLIP reads them. Raises ValueError for one that is too long, or too deep."""
    if len(caption) > LONGEST_CAPTION:
        raise ValueError(
            f"The caption {caption[:SHOWN]!r} ... has {len(caption)} letters: shorten it to {LONGEST_CAPTION} or fewer."
        )
    try:
        return clip.tokenize(caption)
    except RecursionError as error:  # the host reads brackets within brackets so
        raise ValueError(
            f"The caption {caption[:SHOWN]!r} ... has too many brackets within brackets: take them out."
        ) from error
