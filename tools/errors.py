"""The one exception that the commands show without a traceback."""

from __future__ import annotations


class ToolError(Exception):
    """Says what was given, what is wrong with it and what to do."""
