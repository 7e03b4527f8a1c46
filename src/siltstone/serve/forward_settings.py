"""[[remote_write]]: another server that gets a copy of every sample that comes in.

Names are those of `remote_write` in Prometheus' configuration where there is one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from siltstone.config import COUNT, DURATION, MIB, SIZE, TEXT, setting
from siltstone.serve.peers import LABELS, PeerSettings

_NAME: Final = re.compile(r"[a-zA-Z0-9_.-]{1,64}")


@dataclass(frozen=True, kw_only=True)
class ForwardSettings(PeerSettings):
    """Of one such server."""

    section = "remote_write"
    listed_by = "name"

    name: str = setting("", TEXT, "of its queue's directory and in statistics")
    url: str = setting("", TEXT, "http://host:port/api/v1/write")
    external_labels: dict[str, str] = setting("", LABELS, "added where a series has none of them")
    queue_size: int = setting(
        256 * MIB, SIZE, "on disk; beyond it the oldest samples are dropped", low=MIB
    )
    max_samples_per_send: int = setting(10_000, COUNT, "of a request", low=1, high=1_000_000)
    batch_send_deadline: float = setting(1, DURATION, "a part-filled request waits so long")
    remote_timeout: float = setting(30, DURATION, "what an answer may take", low=0.05)
    min_backoff: float = setting(0.03, DURATION, "wait before the first retry", low=0.001)
    max_backoff: float = setting(5, DURATION, "wait before later ones, at most", low=0.001)

    def derive(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name.startswith("."):
            self.refuse("name", f"{self.name!r}: letters, digits and _ . - only, 64 at most")
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            self.refuse("url", f"{self.url!r} is none: http://host:port/api/v1/write")
        if self.max_backoff < self.min_backoff:
            self.refuse("max_backoff", "shorter than min_backoff")
