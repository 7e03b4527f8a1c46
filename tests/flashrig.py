"""A cache for tests of its background work: small segments, nothing happens by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fakes import FaultDevice

from siltstone import Cache
from siltstone.cache import attachment as attachment_module
from siltstone.cache.invariants import check_invariants
from siltstone.cache.sweep import drain

SEGMENT = 64 * 1024
SEGMENTS = 48
VALUE = 1000


class Rig:
    """A cache whose background work happens when the test says so, on a device with faults."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.path = path
        settings = {
            "ram": "2MiB",
            "flash": SEGMENTS * SEGMENT,
            "segment_size": SEGMENT,
            "buffer_size": SEGMENT // 2,
            "codec": "raw",
            "arena": "private",
            "workers": 0,
            **options,
        }
        self.cache = Cache(path, **settings)
        self.attachment = self.cache._attachment
        self.device: FaultDevice = self.attachment.device  # type: ignore[assignment]
        self.log = self.attachment.log
        self.background = self.attachment.background
        self.background.tick()

    def to_flash(self) -> None:
        drain(self.cache.engine)
        self.cache.flush()

    def fill(self, count: int, ttl: float | None = None) -> dict[str, bytes]:
        stored = {f"key {number}": value_of(number) for number in range(count)}
        for key, value in stored.items():
            self.cache.set(key, value, ttl=ttl)
        self.to_flash()
        return stored

    def compact(self, most: int = 500) -> None:
        """Until there is nothing to do."""
        for _ in range(most):
            if not self.background.tick():
                return
        raise AssertionError("compaction does not come to an end")

    def lose(self) -> None:
        """As if the process had been killed: the arena, what is in it, and the locks are gone."""
        self.cache._unbind()
        self.background.stop()
        self.attachment.closed = True
        attachment_module._open_attachments.pop(self.attachment.key, None)
        self.attachment._abandon()

    def counter(self, name: str) -> int:
        number: int = self.cache.stats()[name]
        return number

    def check(self) -> None:
        check_invariants(self.cache.engine)
        assert self.log is not None
        self.log.check_invariants()


def value_of(number: int, version: int = 0) -> bytes:
    return (b"%d/%d " % (number, version) * VALUE)[:VALUE]
