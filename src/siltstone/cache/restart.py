"""Warm restart: what is kept when the arena goes, and how it is found again."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from siltstone.cache.attachment import Attachment


def save(attachment: Attachment) -> None:
    """After a clean stop."""


def restore(attachment: Attachment) -> int:
    """Items found on flash."""
    if attachment.live_map is not None:
        attachment.live_map.clear()
    return 0
