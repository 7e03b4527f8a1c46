"""remote_write to another server: what is sent, and what happens when it fails in every way."""

from __future__ import annotations

import email.utils
import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cramjam
import numpy as np
import pytest
from fakes import SeededRandom
from httprig import Asked, Reply, peer
from hypothesis import given
from hypothesis import strategies as st

from siltstone.clock import SYSTEM_CLOCK
from siltstone.config import load
from siltstone.errors import ConfigError, DeviceFailed
from siltstone.serve import forward
from siltstone.serve.forward import Forwarder, retry_after
from siltstone.serve.forward_settings import ForwardSettings
from siltstone.serve.loop import LoopThread
from siltstone.serve.remote_write import Decoder
from siltstone.serve.write_request import Packer, pack_labels

LABELS = {
    1: {"__name__": "a", "x": "1"},
    2: {"__name__": "b", "empty": ""},
    3: {"__name__": "c", "env": "own"},
}
Sample = tuple[tuple[tuple[str, str], ...], int, float]


# Packing ------------------------------------------------------------------------------------


def unpacked(message: bytes) -> list[Sample]:
    """What our own reader of requests finds, with labels in place of ids."""
    seen: list[dict[str, str]] = []

    def resolve(labels: dict[str, str]) -> int:
        seen.append(labels)
        return len(seen) - 1

    batch = Decoder(resolve).decode_plain(message)
    return [
        (tuple(seen[id].items()), time, value)
        for id, time, value in zip(
            batch.ids.tolist(), batch.times.tolist(), batch.values.tolist(), strict=True
        )
    ]


def columns(rows: list[tuple[int, int, float]]) -> tuple[Any, Any, Any]:
    ids, times, values = zip(*rows, strict=True) if rows else ((), (), ())
    return np.array(ids, np.uint32), np.array(times, np.int64), np.array(values, np.float64)


@given(
    st.lists(
        st.tuples(
            st.integers(1, 3),
            st.integers(-(2**63), 2**63 - 1),
            st.floats(allow_nan=False),
        ),
        max_size=30,
    )
)
def test_what_is_packed_is_read_back(rows: list[tuple[int, int, float]]) -> None:
    message = Packer(LABELS.__getitem__).pack(*columns(rows))
    assert unpacked(message) == [
        (tuple((n, v) for n, v in sorted(LABELS[id].items()) if v), time, value)
        for id, time, value in rows
    ]


def test_neighbours_share_a_series_and_labels_are_asked_once() -> None:
    asked = []

    def labels_of(id: int) -> dict[str, str]:
        asked.append(id)
        return LABELS[id]

    packer = Packer(labels_of)
    message = packer.pack(*columns([(1, 1, 1.0), (1, 2, 2.0), (2, 1, 1.0)]))
    assert Decoder(lambda _: 0).decode_plain(message).series == 2
    packer.pack(*columns([(2, 1, 1.0)]))
    assert asked == [1, 2]
    long = pack_labels({"n": "v" * 70_000, "a": "1"})
    assert long.startswith(b"\x0a\x06\x0a\x01a")


# Sending ------------------------------------------------------------------------------------


def settings(address: str, **options: Any) -> ForwardSettings:
    return ForwardSettings(
        **{
            "name": "far",
            "url": f"http://{address}/api/v1/write",
            "batch_send_deadline": 0.02,
            "min_backoff": 0.001,
            "max_backoff": 0.004,
            **options,
        }
    )


@contextmanager
def forwarding(chosen: ForwardSettings, folder: Path) -> Iterator[Forwarder]:
    one = Forwarder(chosen, folder, LABELS.__getitem__, SYSTEM_CLOCK, SeededRandom(1))
    thread = LoopThread([one])
    thread.start()
    try:
        yield one
    finally:
        thread.stop()
        one.close()


def wait_until(what: Callable[..., bool]) -> None:
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def samples_in(asked: Asked) -> list[Sample]:
    return unpacked(bytes(cramjam.snappy.decompress_raw(asked.body)))


def statuses(*given: int, headers: dict[str, str] | None = None) -> Callable[[Asked], Reply]:
    """Answers in this order, then 204."""
    left = list(given)
    return lambda _: Reply(left.pop(0) if left else 204, b"because\nof", headers or {})


def test_samples_are_sent_as_the_protocol_says(tmp_path: Path) -> None:
    with peer(statuses()) as far:
        chosen = settings(
            far.address, external_labels={"env": "test", "x": "not mine"}, headers={"X-Id": "7"},
            username="u", password="p",
        )  # fmt: skip
        with forwarding(chosen, tmp_path) as one:
            one.take(*columns([(1, 1000, 1.5), (3, 1000, 2.5)]))
            wait_until(lambda: one.sent == 2)
    (asked,) = far.asked
    assert (asked.method, asked.path) == ("POST", "/api/v1/write")
    headers = {name.lower(): value for name, value in asked.headers.items()}
    assert headers["content-encoding"] == "snappy"
    assert headers["content-type"] == "application/x-protobuf"
    assert headers["x-prometheus-remote-write-version"] == "0.1.0"
    assert (headers["x-id"], headers["authorization"]) == ("7", "Basic dTpw")
    assert samples_in(asked) == [
        ((("__name__", "a"), ("env", "test"), ("x", "1")), 1000, 1.5),
        ((("__name__", "c"), ("env", "own"), ("x", "not mine")), 1000, 2.5),
    ]
    assert one.outbox.samples == 0


def test_what_waits_is_sent_together_up_to_a_limit(tmp_path: Path) -> None:
    with peer(statuses()) as far:
        chosen = settings(far.address, max_samples_per_send=30, batch_send_deadline=0.5)
        box = Forwarder(chosen, tmp_path, LABELS.__getitem__, SYSTEM_CLOCK)
        for number in range(10):
            box.take(*columns([(1, number * 100 + n, 1.0) for n in range(10)]))
        box.close()
        with forwarding(chosen, tmp_path) as one:
            # the last ten wait for more; then it is enough, though they lie in two files
            wait_until(lambda: one.sent == 90)
            one.take(*columns([(1, 2000 + n, 1.0) for n in range(20)]))
            wait_until(lambda: one.sent == 120)
    assert [len(samples_in(asked)) for asked in far.asked] == [30, 30, 30, 10, 20]
    times = [sample[1] for asked in far.asked for sample in samples_in(asked)]
    assert times == sorted(times)


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429])
def test_what_may_pass_later_is_sent_again(tmp_path: Path, status: int) -> None:
    with (
        peer(statuses(status, status, status)) as far,
        forwarding(settings(far.address), tmp_path) as one,
    ):
        one.take(*columns([(1, 1, 1.0)]))
        wait_until(lambda: one.sent == 1)
    assert len(far.asked) == 4
    assert len({asked.body for asked in far.asked}) == 1
    assert (one.retries, one.requests, one.refused, one.last_error) == (3, 4, 0, "")


@pytest.mark.parametrize("status", [301, 307, 400, 401, 404, 409, 413, 422])
def test_what_is_refused_is_dropped_and_counted(
    tmp_path: Path, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    with peer(statuses(status)) as far, forwarding(settings(far.address), tmp_path) as one:
        one.take(*columns([(1, 1, 1.0), (2, 1, 1.0)]))
        wait_until(lambda: one.refused == 2)
        one.take(*columns([(1, 2, 2.0)]))
        wait_until(lambda: one.sent == 1)
    assert (one.retries, len(far.asked)) == (0, 2)
    assert f"2 samples dropped: the server answered {status}: because" in caplog.text
    told = {(s.name, s.labels.get("reason")): s.value for s in one.samples()}
    assert told["siltstone_remote_write_samples_dropped_total", "refused"] == 2
    assert told["siltstone_remote_write_samples_sent_total", None] == 1


def test_a_server_that_says_when_is_asked_then(tmp_path: Path) -> None:
    with peer(statuses(503, headers={"Retry-After": "1"})) as far:
        chosen = settings(far.address, min_backoff=0.001, max_backoff=0.001)
        with forwarding(chosen, tmp_path) as one:
            one.take(*columns([(1, 1, 1.0)]))
            began = time.monotonic()
            wait_until(lambda: one.sent == 1)
            assert time.monotonic() - began >= 1


def test_retry_after() -> None:
    assert retry_after("120", 0) == 120
    assert retry_after(email.utils.formatdate(1030, usegmt=True), 1000) == 30
    assert retry_after(email.utils.formatdate(10, usegmt=True), 1000) == 0
    assert retry_after("soon", 0) is None
    assert retry_after("", 0) is None


def test_waits_grow_are_bounded_and_differ(tmp_path: Path) -> None:
    chosen = settings("h:1", min_backoff=0.1, max_backoff=1)
    one = Forwarder(chosen, tmp_path, LABELS.__getitem__, SYSTEM_CLOCK, SeededRandom(1))
    waits = [one._backoff(1.0, None) for _ in range(50)]
    assert all(0.5 <= wait <= 1.0 for wait in waits)
    assert len(set(waits)) == 50
    assert one._backoff(1.0, 7.0) == 7.0
    assert one._backoff(1.0, 1e9) == forward.RETRY_AFTER_SECONDS_MAX
    one.close()


def test_a_server_that_is_not_there_or_hangs_or_hangs_up(tmp_path: Path, free_port: Any) -> None:
    chosen = settings(f"127.0.0.1:{free_port()}", remote_timeout=0.2)
    with forwarding(chosen, tmp_path) as one:
        one.take(*columns([(1, 1, 1.0)]))
        wait_until(lambda: one.retries >= 3)
    assert one.outbox.samples == 0  # it was under way
    release = threading.Event()

    def hang(_: Asked) -> Reply:
        release.wait(20)
        return Reply(204)

    with peer(hang) as far:
        with forwarding(settings(far.address, remote_timeout=0.05), tmp_path) as one:
            wait_until(lambda: one.retries >= 2)
            assert one.last_error == "no answer within remote_timeout (0.05 s)"
        release.set()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            for _ in range(3):
                listener.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        with forwarding(settings(f"127.0.0.1:{listener.getsockname()[1]}"), tmp_path) as one:
            wait_until(lambda: one.retries >= 3)
        thread.join()
    with peer(statuses()) as far, forwarding(settings(far.address), tmp_path) as one:
        wait_until(lambda: one.sent == 1)
    assert samples_in(far.asked[0])[0][1] == 1


def test_an_outage_longer_than_the_queue_drops_the_oldest(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    with peer(statuses(*[503] * 5)) as far:
        chosen = settings(far.address, queue_size="1MiB", min_backoff=3600, max_backoff=3600)
        one = Forwarder(chosen, tmp_path, LABELS.__getitem__, SYSTEM_CLOCK)
        for number in range(30):
            times = np.arange(10_000, dtype=np.int64) + number * 10_000
            one.take(np.full(10_000, 1, np.uint32), times, rng.random(10_000))
        assert one.outbox.size <= 1 << 20
        dropped = one.outbox.dropped
        assert 0 < dropped < 300_000
        assert dropped + one.outbox.samples == 300_000
        one.close()
    with peer(statuses()) as far, forwarding(settings(far.address), tmp_path) as one:
        wait_until(lambda: one.sent + dropped == 300_000)
    first = samples_in(far.asked[0])[0]
    assert first[1] == dropped  # those that are left begin where the dropped ones end


def test_a_queue_that_cannot_be_written_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Forwarder(settings("h:1"), tmp_path, LABELS.__getitem__, SYSTEM_CLOCK)

    def full(*_: Any) -> None:
        raise DeviceFailed(28, "no space left")

    monkeypatch.setattr(one.outbox, "add", full)
    one.take(*columns([(1, 1, 1.0)]))
    assert one.unqueued == 1
    assert "no space left" in one.last_error
    one.close()


def test_a_queue_that_cannot_be_read_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with peer(statuses()) as far:
        one = Forwarder(settings(far.address), tmp_path, LABELS.__getitem__, SYSTEM_CLOCK)
        take, left = one.outbox.take, [DeviceFailed(5, "broken"), ValueError("ours")]

        def broken(*arguments: Any) -> Any:
            if left:
                raise left.pop(0)
            return take(*arguments)

        monkeypatch.setattr(one.outbox, "take", broken)
        one.take(*columns([(1, 1, 1.0)]))
        thread = LoopThread([one])
        thread.start()
        wait_until(lambda: one.sent == 1)
        thread.stop()
        assert not left  # both failures came
        assert one.outbox.samples == 0
        one.close()


def test_a_stop_does_not_wait_for_a_server_that_is_away(tmp_path: Path) -> None:
    with peer(statuses(*[503] * 100)) as far:
        chosen = settings(far.address, min_backoff=3600, max_backoff=3600)
        with forwarding(chosen, tmp_path) as one:
            one.take(*columns([(1, 1, 1.0)]))
            wait_until(lambda: one.retries == 1)
    again = Forwarder(chosen, tmp_path, LABELS.__getitem__, SYSTEM_CLOCK)
    assert again.outbox.samples == 1
    again.close()


# Settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name='a'", "url: '' is none: http://host:port"),
        ("name='a'\nurl='h:1/x'", "url: 'h:1/x' is none"),
        ("url='http://h/x'", "name: ''"),
        ("name='../a'\nurl='http://h/x'", "letters, digits"),
        ("name='a'\nurl='http://h/x'\nqueue_size='1k'", "too small, use 1MiB or more"),
        ("name='a'\nurl='http://h/x'\nmin_backoff=9", "max_backoff: shorter than min_backoff"),
    ],
)
def test_settings_that_make_no_sense(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "siltstone.toml"
    file.write_text(f"[[remote_write]]\n{text}\n")
    with pytest.raises(ConfigError) as caught:
        load([ForwardSettings], file=file)
    assert expected in str(caught.value)


# A cluster ----------------------------------------------------------------------------------


@contextmanager
def victoria_metrics(folder: Path, port: int) -> Iterator[str]:
    command = ["victoria-metrics", f"-storageDataPath={folder}", "-retentionPeriod=100y"]
    command += [f"-httpListenAddr=127.0.0.1:{port}", "-search.latencyOffset=0s"]
    with (folder.parent / "log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: is_up(f"{url}/health"))
        yield url
    finally:
        process.terminate()
        process.wait(30)


def is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(
    not shutil.which("victoria-metrics"), reason="needs Debian's package victoria-metrics"
)
def test_victoria_metrics_gets_everything_over_its_restart(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    port, data = free_port(), tmp_path / "vm"
    now = SYSTEM_CLOCK.now_ms() // 1000 * 1000 - 3_600_000
    chosen = settings(f"127.0.0.1:{port}", max_backoff=0.1, external_labels={"env": "test"})
    with forwarding(chosen, tmp_path / "queue") as one:
        for begin in (0, 1000):
            for number in range(begin, begin + 1000):  # while it is away
                rows = [(id, now + number * 1000, number + id / 8) for id in LABELS]
                one.take(*columns(rows))
            with victoria_metrics(data, port) as url:
                everything = 3 * (begin + 1000)
                wait_until(lambda count=everything: one.sent == count)
                assert is_up(f"{url}/internal/force_flush")  # else it shows them a second later
                query = {"match[]": '{env=~"test|own"}'}
                lines = export(url, query)
    assert (one.refused, one.outbox.dropped) == (0, 0)
    assert {line["metric"]["__name__"] for line in lines} == {"a", "b", "c"}
    for line in lines:
        (id,) = [id for id, one in LABELS.items() if one["__name__"] == line["metric"]["__name__"]]
        assert line["timestamps"] == [now + number * 1000 for number in range(2000)]
        assert line["values"] == [number + id / 8 for number in range(2000)]


def export(url: str, query: dict[str, str]) -> list[dict[str, Any]]:
    """All that is stored, merged by series."""
    path = f"{url}/api/v1/export?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(path, timeout=20) as reply:
        rows = [json.loads(line) for line in reply.read().splitlines()]
    merged: dict[str, dict[str, Any]] = {}
    for row in rows:
        known = merged.setdefault(
            json.dumps(row["metric"], sort_keys=True),
            {"metric": row["metric"], "timestamps": [], "values": []},
        )
        pairs = sorted(
            [*zip(known["timestamps"], known["values"], strict=True),
             *zip(row["timestamps"], row["values"], strict=True)]
        )  # fmt: skip
        known["timestamps"], known["values"] = map(list, zip(*pairs, strict=True))
    return list(merged.values())
