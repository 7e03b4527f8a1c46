"""What requests write, where the engine has moved on since: ids that are gone."""

from __future__ import annotations

from collections.abc import Mapping

import cramjam
import numpy as np
import pytest
from fakes import ManualClock
from metricsrig import opened
from reference.protobuf import series

from siltstone.errors import KeyMissing
from siltstone.log.device import MemoryDevice
from siltstone.serve.ingest import prometheus_text
from siltstone.serve.metadata import Metadata
from siltstone.serve.sink import Sink
from siltstone.serve.writing import Writer

T0 = 1_700_000_000_000


class Queue:
    """Who gets a copy."""

    def __init__(self) -> None:
        self.taken: list[list[int]] = []

    def take(self, ids: np.ndarray, times: np.ndarray, values: np.ndarray) -> None:
        self.taken.append(times.tolist())


def test_a_sender_that_paused_is_taken_up_again() -> None:
    """Its series went idle and lost their ids; the decoder still has them."""

    def body(time_ms: int) -> bytes:
        parts = [series({"__name__": name}, [(time_ms, 1.0)]) for name in ("a", "b")]
        return bytes(cramjam.snappy.compress_raw(b"".join(parts)))

    queue = Queue()
    with opened(MemoryDevice(48, 1 << 16, engine="metrics")) as metrics:
        writer = Writer(Sink(metrics, Metadata(), [queue]), ManualClock(T0), body_bytes_max=1 << 20)
        writer._store_remote(body(T0))
        (found,) = metrics.select("a")
        for _ in range(4):
            metrics.checkpoint()
        ids = np.array([1], np.uint32)
        with pytest.raises(KeyMissing):  # else nothing is tested here
            metrics.write_ids(ids, np.array([T0]), np.array([0.0]))
        writer._store_remote(body(T0 + 1000))
        writer._store_remote(body(T0 + 2000))
        assert [one.times.tolist() for one in metrics.select('{__name__=~"a|b"}')] == [
            [T0, T0 + 1000, T0 + 2000]
        ] * 2
        assert found.labels == {"__name__": "a"}
    assert (writer.requests, writer.samples) == (3, 6)
    # and forwarded once each
    assert queue.taken == [[time_ms] * 2 for time_ms in (T0, T0 + 1000, T0 + 2000)]


def test_an_id_that_goes_between_two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(MemoryDevice(48, 1 << 16, engine="metrics")) as metrics:
        sink = Sink(metrics, Metadata())
        resolve = sink.resolve
        left = [1]

        def late(labels: Mapping[str, str]) -> int:
            id = resolve(labels)
            for _ in range(4 * left[0]):
                metrics.checkpoint()
            left[0] = 0
            return id

        metrics.append("a", {}, T0 / 1000, 0.0)
        monkeypatch.setattr(sink, "resolve", late)
        parsed = prometheus_text.parse(b"a 1\n")
        assert sink.store(parsed, T0 + 1000) == 1
        assert left == [0]
        (found,) = metrics.select("a")
        assert found.values.tolist() == [0.0, 1.0]
