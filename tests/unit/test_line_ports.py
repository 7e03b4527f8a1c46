"""Graphite's and statsd's ports: real sockets, limits, and what is counted."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fakes import ManualClock
from metricsrig import opened

from siltstone.clock import SYSTEM_CLOCK
from siltstone.config import load
from siltstone.errors import ConfigError, DeviceFailed, EnvironmentFailure
from siltstone.log.device import MemoryDevice
from siltstone.metrics.metrics import Metrics
from siltstone.serve.lines import LinePort
from siltstone.serve.loop import LoopThread
from siltstone.serve.metadata import Metadata
from siltstone.serve.port_settings import GraphiteSettings, PortSettings, StatsdSettings
from siltstone.serve.sink import Sink
from siltstone.serve.takers import GraphiteTaker, StatsdTaker

NOW = 1_700_000_000


class Stored:
    """A sink that tells when something was stored in it."""

    def __init__(self, sink: Sink) -> None:
        self.changed = threading.Condition()
        self.count = 0
        store = sink.store

        def counted(*arguments: Any) -> int:
            try:
                return store(*arguments)
            finally:
                with self.changed:
                    self.count += len(arguments[0].rows)
                    self.changed.notify_all()

        sink.store = counted  # type: ignore[method-assign]

    def wait_for(self, samples: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.count >= samples, 20)


@contextmanager
def graphite(sink: Sink, **options: Any) -> Iterator[LinePort]:
    settings = GraphiteSettings(**{"listen": "127.0.0.1:0", **options})
    port = LinePort(settings, GraphiteTaker(sink, ManualClock(NOW * 1000)))
    thread = LoopThread([port])
    thread.start()
    yield port
    thread.stop()


def connected(port: LinePort) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port.tcp_port), timeout=20)


def ended(connection: socket.socket) -> bool:
    """Whether the other side closes it."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def values(metrics: Metrics, match: str) -> list[float]:
    return [value for series in metrics.select(match) for value in series.values.tolist()]


# Graphite -----------------------------------------------------------------------------------


def test_lines_over_tcp_and_udp(metrics: Metrics, sink: Sink) -> None:
    stored = Stored(sink)
    with graphite(sink) as port:
        with connected(port) as connection:
            connection.sendall(b"a.b;x=1 1 %d\na.b;x=1 2 " % NOW)
            stored.wait_for(1)
            connection.sendall(b"%d\nc 3" % (NOW + 1))
        stored.wait_for(3)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as packets:
            packets.sendto(b"d 4 %d" % NOW, ("127.0.0.1", port.udp_port))
            packets.sendto(b"d 5 %d\nd 6 %d\n" % (NOW + 1, NOW + 2), ("127.0.0.1", port.udp_port))
        stored.wait_for(6)
    assert values(metrics, 'a_b{x="1"}') == [1.0, 2.0]
    assert values(metrics, "c") == [3.0]
    assert metrics.select("c")[0].times.tolist() == [NOW * 1000]
    assert values(metrics, "d") == [4.0, 5.0, 6.0]
    numbers = {sample.name: sample.value for sample in port.samples()}
    assert numbers["siltstone_ingest_bad_lines_total"] == 0
    assert numbers["siltstone_ingest_bytes_total"] > 50


def test_bad_lines_are_counted_and_the_others_stored(
    metrics: Metrics, sink: Sink, caplog: pytest.LogCaptureFixture
) -> None:
    with graphite(sink, protocols="tcp") as port:
        assert port.udp_port == 0
        with connected(port) as connection:
            connection.sendall(b"x\n" * 5 + b"a 1 1\n\xff 1 1\n")
            connection.shutdown(socket.SHUT_WR)
            assert ended(connection)
    assert values(metrics, "a") == [1.0]
    assert port.bad_lines == 6
    # the first, and then each doubling
    assert [r.getMessage().rpartition("(")[2] for r in caplog.records] == [
        f"{count} so far)" for count in (1, 2, 4)
    ]


def test_a_limit_of_series_does_not_cost_the_others(caplog: pytest.LogCaptureFixture) -> None:
    device = MemoryDevice(48, 1 << 16, engine="metrics")
    with opened(device, series_max=1) as metrics:
        sink = Sink(metrics, Metadata())
        with graphite(sink) as port, connected(port) as connection:
            connection.sendall(b"a 1 1\nb 1 1\na 2 2\n")
            connection.shutdown(socket.SHUT_WR)
            assert ended(connection)
        assert values(metrics, "a") == [1.0, 2.0]
        assert port.bad_lines == 1
        assert "series_max" in caplog.text
        taker = StatsdTaker(StatsdSettings(listen="127.0.0.1:0"), sink, ManualClock(NOW * 1000))
        taker.gatherer.take(b"a:3|g\nc:1|g")
        asyncio.run(taker.store())
        assert (values(metrics, "a"), taker.failures) == ([1.0, 2.0, 3.0], 1)


def test_a_line_without_end_closes_the_connection(metrics: Metrics, sink: Sink) -> None:
    with graphite(sink, line_size_max=64) as port:
        with connected(port) as connection:
            connection.sendall(b"a 1 1\n" + b"x" * 65)
            assert ended(connection)
        with connected(port) as connection:
            connection.sendall(b"b 2 1\n")
            connection.shutdown(socket.SHUT_WR)
            assert ended(connection)
    assert port.bad_lines == 1
    assert values(metrics, "a") == [1.0]
    assert values(metrics, "b") == [2.0]


def test_connections_are_limited(sink: Sink) -> None:
    stored = Stored(sink)
    with graphite(sink, connections_max=1) as port, connected(port) as first:
        first.sendall(b"a 1 1\n")
        stored.wait_for(1)
        with connected(port) as second:
            assert ended(second)
        first.sendall(b"a 2 2\n")
        stored.wait_for(2)
    assert port.refused == 1


def test_packets_that_are_too_many_are_dropped_and_counted(metrics: Metrics, sink: Sink) -> None:
    settings = GraphiteSettings(listen="127.0.0.1:0", packets_size_max="64KiB")
    port = LinePort(settings, GraphiteTaker(sink, ManualClock()))
    line = b"a 1 1\n".ljust(1024, b" ")
    for _ in range(70):
        port.packet(line)
    assert port.dropped_packets == 6
    thread = LoopThread([port])
    thread.start()
    thread.stop()  # what has arrived is stored first
    assert values(metrics, "a") == [1.0]


def test_a_full_disk_is_counted_and_reading_goes_on(metrics: Metrics, sink: Sink) -> None:
    write, left = sink.write, [1]

    def full(*arguments: Any, **more: Any) -> int:
        if left[0]:
            left[0] -= 1
            raise DeviceFailed(28, "no space left")
        return write(*arguments, **more)

    sink.write = full  # type: ignore[method-assign]
    stored = Stored(sink)
    with graphite(sink) as port, connected(port) as connection:
        connection.sendall(b"a 1 1\n")
        stored.wait_for(1)
        connection.sendall(b"a 2 2\n")
        stored.wait_for(2)
    assert port.failures == 1
    assert values(metrics, "a") == [2.0]


def test_a_port_that_is_taken(sink: Sink) -> None:
    with (
        graphite(sink) as port,
        pytest.raises(EnvironmentFailure, match=r"\[graphite\] cannot listen"),
        graphite(sink, listen=f"127.0.0.1:{port.tcp_port}"),
    ):
        pass


def test_a_port_of_no_host(sink: Sink) -> None:
    with (
        pytest.raises(EnvironmentFailure, match=r"a\.\.b:1: (?!Unknown error)"),
        graphite(sink, listen="a..b:1"),
    ):
        pass


def test_an_open_connection_does_not_hold_up_the_stop(sink: Sink) -> None:
    stored = Stored(sink)
    with graphite(sink) as port:
        connection = connected(port)
        connection.sendall(b"a 1 1\nb")
        stored.wait_for(1)
    assert ended(connection)
    connection.close()


# statsd -------------------------------------------------------------------------------------


def test_statsd_gathers_and_stores_every_interval(metrics: Metrics, sink: Sink) -> None:
    stored = Stored(sink)
    settings = StatsdSettings(listen="127.0.0.1:0", flush_interval=0.1)
    taker = StatsdTaker(settings, sink, SYSTEM_CLOCK)
    port = LinePort(settings, taker)
    thread = LoopThread([taker, port])
    thread.start()
    with connected(port) as connection:
        connection.sendall(b"hits:1|c\nhits:2|c\nload:0.5|g|#host:a\nbad\n")
        stored.wait_for(2)
        connection.shutdown(socket.SHUT_WR)
        assert ended(connection)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as packets:
        packets.sendto(b"users:x|s", ("127.0.0.1", port.udp_port))
    stored.wait_for(5)
    thread.stop()
    assert set(values(metrics, "hits")) == {3.0}
    assert set(values(metrics, 'load{host="a"}')) == {0.5}
    assert 1.0 in values(metrics, "users")
    assert port.bad_lines == 1


def test_intervals_of_one_millisecond_keep_their_values(metrics: Metrics, sink: Sink) -> None:
    taker = StatsdTaker(StatsdSettings(), sink, ManualClock(NOW * 1000))

    async def use() -> None:
        await taker.take(b"hits:3|c\nusers:x|s")
        for _ in range(3):
            await taker.store()

    asyncio.run(use())
    assert values(metrics, "users") == [1.0, 0.0, 0.0]
    assert values(metrics, "hits") == [3.0, 3.0, 3.0]


def test_a_stop_stores_what_was_gathered(metrics: Metrics, sink: Sink) -> None:
    settings = StatsdSettings(listen="127.0.0.1:0", flush_interval=3600)
    taker = StatsdTaker(settings, sink, ManualClock(NOW * 1000))
    port = LinePort(settings, taker)
    thread = LoopThread([taker, port])
    thread.start()
    port.packet(b"hits:7|c")
    thread.stop()
    assert values(metrics, "hits") == [7.0]


def test_an_interval_that_cannot_be_stored_is_told_once(
    sink: Sink, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> int:
        raise DeviceFailed(28, "no space left")

    sink.store = full  # type: ignore[method-assign]
    settings = StatsdSettings(listen="127.0.0.1:0", flush_interval=0.1)
    taker = StatsdTaker(settings, sink, ManualClock(NOW * 1000))
    thread = LoopThread([taker])
    taker.gatherer.take(b"hits:7|c")
    thread.start()
    thread.stop()
    assert taker.failures >= 1
    assert len([r for r in caplog.records if "not stored, or" in r.getMessage()]) == 1


# Settings -----------------------------------------------------------------------------------


def test_both_are_off_unless_told() -> None:
    sections = load([GraphiteSettings, StatsdSettings])
    assert [one.address for one in sections.values()] == [None, None]
    flags = {
        "graphite": {"listen": "127.0.0.1"},
        "statsd": {"listen": "[::1]:9", "protocols": "udp"},
    }
    sections = load([GraphiteSettings, StatsdSettings], flags=flags)
    assert sections["graphite"].address == ("127.0.0.1", 2003)
    assert sections["statsd"].address == ("::1", 9)
    assert (sections["statsd"].tcp, sections["statsd"].udp) == (False, True)


@pytest.mark.parametrize(
    ("options", "text"),
    [({"listen": "a,b"}, "one address"), ({"listen": "a:b"}, "no port"),
     ({"protocols": "sctp"}, "use one of"), ({"line_size_max": 1}, "too small")],
)  # fmt: skip
def test_settings_that_make_no_sense(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        PortSettings(**options)
