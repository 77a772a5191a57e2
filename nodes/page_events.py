"""Sends events to ComfyUI's page; without a server or a page, they go nowhere."""

from __future__ import annotations

from typing import Any

from server import PromptServer

SECONDS_BETWEEN_EVENTS = 0.25  # a page cannot show more, and every message slows training a little


def server() -> PromptServer | None:
    """Return the running server, or None if nodes run without one."""
    return getattr(PromptServer, "instance", None)


def send(event: str, message: dict[str, Any]) -> None:
    """Send an event to all open pages. Does not wait for them."""
    running = server()
    if running is not None:
        running.send_sync(event, message)


def workflow_id(sent: Any) -> str | None:
    """Return the id of the workflow that came with a prompt, or None; clients may send anything.

    sent: what a prompt has as extra_pnginfo
    """
    workflow = sent.get("workflow") if isinstance(sent, dict) else None
    name = workflow.get("id") if isinstance(workflow, dict) else None
    return name if isinstance(name, str) else None
