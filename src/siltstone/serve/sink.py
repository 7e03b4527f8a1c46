"""The one way of samples from outside into the engine, whatever protocol they came in.

Takes arrays of ids, or what a parser gives (`ingest/rows.py`), hands it to the engine, to the
queues of those it is forwarded to, and to the operating system: when `write` or `store` returns,
`kill -9` loses nothing of it. Metadata goes to `Metadata`. Any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from siltstone.errors import KeyMissing
from siltstone.serve.ingest.rows import Parsed
from siltstone.serve.metadata import Metadata


class Writable(Protocol):
    """What is written to; `siltstone.Metrics` is one."""

    def series(self, name: str, labels: Mapping[str, str] | None = None) -> Any: ...

    def write_ids(self, ids: Any, times: Any, values: Any, *, backfill: bool = False) -> int: ...

    def flush(self) -> None: ...


class Forwards(Protocol):
    """Who gets a copy of every sample: a queue to another server."""

    def take(self, ids: Any, times: Any, values: Any) -> None: ...


class Sink:
    """Counts what came: `samples` stored, `rejected` as too old, in `writes`."""

    def __init__(
        self, metrics: Writable, metadata: Metadata, forwards: Sequence[Forwards] = ()
    ) -> None:
        self.metrics = metrics
        self.metadata = metadata
        self.forwards = forwards
        self.writes = self.samples = self.rejected = 0
        self._counting = threading.Lock()

    def series(self, labels: Mapping[str, str]) -> Any:
        """The handle of a series; as long as somebody has it, its id stays valid."""
        return self.metrics.series("", labels)

    def resolve(self, labels: Mapping[str, str]) -> int:
        return int(self.series(labels).id)

    def store(self, parsed: Parsed, now_ms: int, refused: list[str] | None = None) -> int:
        """What a parser gave; how many samples were accepted. Late ones are, as an import. Series
        that are refused (a limit) are an error, or told in `refused` while the rest is stored."""
        columns = parsed.columns(self.resolve, now_ms, refused)
        try:
            return self.write(*columns, backfill=True, metadata=parsed.metadata)
        except KeyMissing:
            # an idle series lost its id in this very moment; one that is asked for again does not
            columns = parsed.columns(self.resolve, now_ms, None if refused is None else [])
            return self.write(*columns, backfill=True, metadata=parsed.metadata)

    def write(
        self,
        ids: Any,
        times: Any,
        values: Any,
        *,
        backfill: bool = False,
        metadata: Mapping[str, Mapping[str, str]] | None = None,
    ) -> int:
        """How many were accepted. KeyMissing: an id is not known any more, nothing is stored."""
        accepted = self.metrics.write_ids(ids, times, values, backfill=backfill)
        for forward in self.forwards:
            forward.take(ids, times, values)
        self.metrics.flush()
        for name, known in (metadata or {}).items():
            self.metadata.note(name, **known)
        with self._counting:
            self.writes += 1
            self.samples += accepted
            self.rejected += len(ids) - accepted
        return accepted
