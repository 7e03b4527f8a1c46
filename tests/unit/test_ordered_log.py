"""The ordered log without crashes: records, groups, reservations, sync, failure, reuse."""

import errno
import os
import subprocess
import sys
import threading

import pytest
from appendlist import AppendList
from fakes import CrashDevice, Fault, FaultDevice, ManualClock, SeededRandom
from hypothesis import given
from hypothesis import strategies as st

from siltstone.errors import (
    Busy,
    Closed,
    ConfigError,
    Corruption,
    DeviceFailed,
    EnvironmentFailure,
    ForkedProcess,
    InvalidValue,
    KeyMissing,
    Locked,
    ReadOnly,
    TooLarge,
)
from siltstone.log.device import FileDevice, MemoryDevice
from siltstone.log.ordered_log import KIND_MAX, OrderedLog, record_size
from siltstone.log.periodic import Periodic
from siltstone.log.workers import WorkerPool

SEGMENT = 16384
BUFFER = 4096


def memory(slots=64, segment=SEGMENT):
    return MemoryDevice(slots, segment, engine="test", rng=SeededRandom())


def open_log(device=None, **options):
    options = {"buffer_bytes": BUFFER, "clock": ManualClock(), "rng": SeededRandom()} | options
    return OrderedLog(device or memory(), **options)


def ready(device=None, **options):
    log = open_log(device, **options)
    log.recover()
    return log


def replayed(device, **options):
    """(records shown by a fresh recovery, report)."""
    seen = []
    with open_log(device, read_only=True, **options) as log:
        report = log.recover(lambda *record: seen.append(record))
    return seen, report


# Records


def test_sizes_around_every_limit_come_back(tmp_path):
    device = memory()
    log = ready(device)
    most = log.payload_max
    sizes = [0, 1, 47, 48, 55, 56, 57, 63, 64, 100, 3900, most - 1, most, 0, most, 1]
    placed = []
    for n, size in enumerate(sizes):
        placed.append((log.append(1 + n % KIND_MAX, bytes([n]) * size), n, size))
    with pytest.raises(TooLarge, match=str(most)):
        log.append(1, bytes(most + 1))
    for position, n, size in placed:
        assert log.read(position) == (1 + n % KIND_MAX, bytes([n]) * size)
    log.sync()
    for position, n, size in placed:
        assert log.read(position) == (1 + n % KIND_MAX, bytes([n]) * size)
    log.check_invariants()
    log.close()
    seen, report = replayed(device)
    assert [(p, len(b)) for _, p, b, _ in seen] == [(p, size) for p, _, size in placed]
    assert report.outcome == "clean"
    assert report.ok


def test_positions_rise_and_no_record_crosses_a_buffer():
    log = ready()
    positions = [log.append(1, bytes(700)) for _ in range(200)]
    assert positions == sorted(positions)
    for position in positions:
        assert position // BUFFER == (position + record_size(700) - 1) // BUFFER
    versions = [segment["version"] for segment in log.segments()]
    assert versions == list(range(1, len(versions) + 1))
    log.check_invariants()


def test_kinds_are_checked():
    log = ready()
    for kind in (0, KIND_MAX + 1, 255, -1):
        with pytest.raises(InvalidValue):
            log.append(kind, b"")


def test_reading_where_nothing_is():
    log = ready()
    position = log.append(1, b"one")
    log.sync()
    for nowhere in (0, 1, position + record_size(3), 10**15):
        with pytest.raises(KeyMissing):
            log.read(nowhere)
    for _ in range(50):
        log.append(1, bytes(1000))
    log.sync()  # the buffer of the first record is given back: from the device now
    assert log.read(position) == (1, b"one")
    with pytest.raises(Corruption, match="checksum"):
        log.read(position + 16)


@given(st.lists(st.tuples(st.integers(1, KIND_MAX), st.binary(max_size=3000)), max_size=40))
def test_what_is_appended_is_replayed(records):
    device = memory()
    log = ready(device)
    positions = [log.append(kind, data) for kind, data in records]
    log.close()
    seen, report = replayed(device)
    assert [(k, p, b) for k, p, b, _ in seen] == [
        (kind, position, data) for (kind, data), position in zip(records, positions, strict=True)
    ]
    assert report.records == len(records)


# Reservations


def test_aborted_reservation_is_never_shown():
    device = memory()
    log = ready(device)
    before = log.append(1, b"before")
    reserved, dropped = log.reserve(2, 100), log.reserve(3, 50)
    after = log.append(1, b"after")
    with pytest.raises(Busy):
        log.read(reserved.position)
    reserved.complete(b"r" * 100)
    dropped.abort()
    dropped.abort()
    with pytest.raises(KeyMissing, match="aborted"):
        log.read(dropped.position)
    assert log.read(reserved.position) == (2, b"r" * 100)
    log.close()
    seen, _ = replayed(device)
    assert [p for _, p, _, _ in seen] == [before, reserved.position, after]
    with pytest.raises(Closed):
        reserved.complete(b"r" * 100)


def test_stable_stops_at_an_open_reservation():
    log = ready(wait_ms=20)
    log.append(1, b"first")
    reserved = log.reserve(1, 10)
    log.append(1, b"behind")
    with pytest.raises(Busy):
        log.sync()
    assert log.stable_position == reserved.position
    with pytest.raises(InvalidValue):
        reserved.complete(b"short")
    reserved.complete(b"0123456789")
    log.sync()
    assert log.stable_position == log.end


def test_sync_waits_for_an_older_reservation_of_another_thread():
    log = ready()
    reserved = log.reserve(1, 3)
    end = threading.Thread(target=log.sync)
    end.start()
    reserved.complete(b"abc")
    end.join(10)
    assert not end.is_alive()
    assert log.stable_position == log.end


@pytest.mark.parametrize("order", ["forward", "backward"])
def test_more_reservations_than_buffers_end_in_busy_not_in_a_hang(order):
    log = ready(wait_ms=20, buffer_count=2)
    size = log.payload_max - 100
    held = [log.reserve(1, size), log.reserve(1, size)]
    with pytest.raises(Busy):
        log.reserve(1, size)
    for reserved in held if order == "forward" else held[::-1]:
        reserved.abort()
    log.append(1, bytes(size))
    log.sync()
    assert log.stats()["aborts"] == 2
    log.check_invariants()


def test_forgotten_reservation_is_aborted():
    log = ready(wait_ms=20)
    log.reserve(1, 10)
    log.append(1, b"goes on")
    log.sync()
    assert log.stats()["aborts"] == 1


def test_segment_of_aborts_only_is_reclaimed():
    log = ready()
    while len(log.segments()) < 4:
        log.reserve(1, 1000).abort()
    for _ in range(3):
        log.checkpoint()
        log.append(1, bytes(log.payload_max))
    assert log.segments()[0]["version"] > 3


# Groups


def test_groups_are_shown_at_their_mark_in_mark_order():
    device = memory()
    log = ready(device)
    one, two, three = log.group(), log.group(), log.group()
    one.append(1, b"1a")
    two.append(1, b"2a")
    log.append(9, b"alone")
    three.append(1, b"never")
    one.append(2, b"1b")
    end = two.commit(b"two")
    one.commit()
    three.abandon()
    log.sync(end)
    log.close()
    seen, report = replayed(device)
    assert [b for _, _, b, _ in seen] == [b"alone", b"2a", b"two", b"1a", b"1b", b""]
    assert seen[1][3] == seen[2][1]  # a record's mark is the commit's position
    assert (report.groups, report.groups_open) == (2, 1)
    with pytest.raises(Closed):
        one.append(1, b"late")


def test_group_larger_than_all_buffers_together():
    device = memory(slots=200)
    log = ready(device, buffer_count=2)
    group = log.group()
    parts = [bytes([n]) * 3000 for n in range(100)]
    positions = [group.append(1, part) for part in parts]
    log.append(2, b"between")
    group.commit()
    assert [log.read(p) for p in positions] == [(1, part) for part in parts]
    log.close()
    seen, _ = replayed(device)
    assert [b for k, _, b, _ in seen if k == 1] == parts


def test_payloads_of_large_open_groups_are_not_kept(monkeypatch):
    from siltstone.log import ordered_recovery

    monkeypatch.setattr(ordered_recovery, "KEPT_BYTES_MAX", 100)
    device = memory()
    log = ready(device)
    group = log.group()
    parts = [bytes([n]) * 60 for n in range(5)]
    for part in parts:
        group.append(1, part)
    group.commit()
    log.close()
    seen, _ = replayed(device)
    assert [b for k, _, b, _ in seen if k == 1] == parts


def test_number_of_open_groups_is_limited():
    log = ready()
    groups = [log.group() for _ in range(300)]
    with pytest.raises(Busy):  # noqa: PT012
        for group in groups:
            group.append(1, b"x")
    groups[0].commit()
    groups[299].append(1, b"x")


# Flush and sync


def test_flush_hands_over_and_sync_makes_stable():
    device = CrashDevice(64, SEGMENT)
    log = ready(device)
    log.append(1, b"data")
    assert log.written_position < log.end
    log.flush()
    assert log.written_position == log.end
    assert log.stable_position < log.end
    log.sync()
    assert log.stable_position == log.end
    events = len(device.events)
    for _ in range(3):
        log.sync()
        log.flush()
        log.tick()
    assert len(device.events) == events  # idle: no byte written


def test_small_commits_rewrite_one_block():
    device = memory()
    log = ready(device)
    log.append(1, b"x" * 100)
    log.sync()
    before = device.handle.stats()["bytes_written"]
    for _ in range(10):
        log.append(1, b"x" * 100)
        log.sync()
    assert device.handle.stats()["bytes_written"] - before == 10 * 4096
    assert log.stats()["rewritten_bytes"] > 0


def test_align_commits_never_writes_a_block_twice():
    device = CrashDevice(256, SEGMENT)
    log = ready(device, align_commits=True)
    placed = []
    for n in range(150):
        placed.append((log.append(1, bytes([n]) * (n * 37 % 1500)), n))
        log.sync()
    assert log.stats()["rewritten_bytes"] == 0
    first = device.address(0, 0)
    writes = [e for e in device.events if e is not None and any(e.data)]
    written = [e.address for e in writes if e.address >= first]
    assert len(written) == len(set(written))
    assert all(log.read(p) == (1, bytes([n]) * (n * 37 % 1500)) for p, n in placed)
    log.check_invariants()


def test_threads_share_syncs(tmp_path):
    device = FileDevice([(tmp_path / "data", None)], 1 << 20, engine="test", preallocate=False)
    log = ready(device, buffer_bytes=65536)
    start, rounds, threads = threading.Barrier(8), 25, 8
    inner = threading.Lock()
    stable = []

    def work(number):
        start.wait()
        for n in range(rounds):
            position = log.append(1, b"%d-%d" % (number, n))
            log.sync()
            with inner:
                stable.append(log.stable_position > position)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    stats = log.stats()
    assert all(stable)
    assert len(stable) == rounds * threads
    assert stats["syncs"] < stats["sync_calls"]
    assert stats["sync_shared"] > 0
    log.close()
    device.close()


def test_who_comes_during_a_sync_shares_the_next_one():
    inner = memory()
    in_sync, go_on = threading.Event(), threading.Event()
    device = FaultDevice(inner)
    log = ready(device)
    syncs = device.calls["sync"]
    log.append(1, b"first")
    device.add("sync", before=lambda: (in_sync.set(), go_on.wait(10)))
    leader = threading.Thread(target=log.sync)
    leader.start()
    assert in_sync.wait(10)
    waiting = []
    for n in range(7):
        log.append(1, b"later")
        waiting.append(threading.Thread(target=log.sync))
        waiting[n].start()
    while log.stats()["sync_calls"] or any(not t.is_alive() for t in waiting):
        pass
    assert log.stable_position < log.end
    go_on.set()
    for thread in [leader, *waiting]:
        thread.join(10)
    assert device.calls["sync"] - syncs == 2
    assert log.stable_position == log.end


def test_a_sync_does_not_cover_what_was_written_during_it():
    device = FaultDevice(memory())
    log = ready(device)
    log.append(1, b"early")
    reached = []

    def during():
        log.append(1, b"late")
        log.flush()
        reached.append(log.end)

    device.add("sync", before=during)
    log.sync()
    assert log.stable_position < reached[0]
    log.sync()
    assert log.stable_position == reached[0]


def test_periodic_sync_bounds_what_is_not_durable():
    device = FaultDevice(memory())
    log = ready(device)
    synced = threading.Event()
    position = log.append(1, b"x")
    device.add("sync", before=synced.set)
    with Periodic(log, 1):
        assert synced.wait(10)
    assert log.stable_position > position


def test_periodic_sync_ends_with_the_error_that_it_met():
    device = FaultDevice(memory())
    log = ready(device)
    log.append(1, b"x")
    device.add("sync", errno.EIO)
    periodic = Periodic(log, 1)
    periodic._thread.join(10)
    assert isinstance(periodic.error, ReadOnly)
    periodic.close()
    with pytest.raises(ReadOnly):
        log.append(1, b"y")


# Buffers in flight


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_buffers_are_written_by_workers_in_any_order(threads):
    device = memory(slots=400)
    with WorkerPool(threads) as pool:
        log = ready(device, pool=pool)
        placed = [(log.append(1, bytes([n % 256]) * (n % 1900)), n) for n in range(2000)]
        log.sync()
        assert all(log.read(p) == (1, bytes([n % 256]) * (n % 1900)) for p, n in placed)
        log.check_invariants()
        log.close()
    seen, report = replayed(device)
    assert [p for _, p, _, _ in seen] == [p for p, _ in placed]
    assert report.outcome == "clean"


def test_stable_never_passes_a_slow_buffer():
    """The first buffer's write is held up; later ones finish; nothing behind it is written."""
    device = FaultDevice(memory())
    held, go_on = threading.Event(), threading.Event()
    with WorkerPool(3) as pool:
        log = ready(device, pool=pool, buffer_count=4)
        first = log.append(1, b"first")
        device.add("write", before=lambda: (held.set(), go_on.wait(10)))
        while log.end < first + BUFFER:
            log.append(1, bytes(1000))
        assert held.wait(10)  # its write is the one that is held, before there is another
        while log.end < first + 2 * BUFFER:
            log.append(1, bytes(1000))
        assert log.written_position <= first
        assert log.read(first) == (1, b"first")  # readable all the time
        go_on.set()
        log.sync()
        assert log.stable_position == log.end
        log.close()


def test_several_threads_append_and_read_back():
    device = memory(slots=1000)
    with WorkerPool(2) as pool:
        log = ready(device, pool=pool)
        placed = [[] for _ in range(4)]

        def work(number):
            for n in range(400):
                data = b"%d %d " % (number, n) * (1 + n % 60)
                position = log.append(1, data)
                placed[number].append((position, data))
                assert log.read(position) == (1, data)
                if n % 50 == 0:
                    log.sync()

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        log.check_invariants()
        log.close()
    seen, _ = replayed(device)
    assert sorted((p, b) for _, p, b, _ in seen) == sorted(pair for part in placed for pair in part)
    for part in placed:  # a thread's records in its own order
        assert [p for p, _ in part] == sorted(p for p, _ in part)


# Failure


@pytest.mark.parametrize("call", ["write", "sync"])
def test_failure_is_sticky_and_reads_go_on(call):
    inner = memory()
    device = FaultDevice(inner)
    log = ready(device)
    good = log.append(1, b"good")
    log.sync()
    stable = log.stable_position
    bad = log.append(1, b"bad")
    device.add(call, errno.EIO)
    for _ in range(3):
        with pytest.raises(ReadOnly, match="Input/output error") as caught:
            log.sync()
        assert caught.value.errno == errno.EIO
    for attempt in (
        lambda: log.append(1, b"more"),
        lambda: log.reserve(1, 10),
        log.flush,
        log.checkpoint,
    ):
        with pytest.raises(ReadOnly):
            attempt()
    assert log.stable_position == stable
    assert log.read(good) == (1, b"good")
    assert log.read(bad) == (1, b"bad")
    calls = dict(device.calls)
    log.close()
    assert device.calls["write"] == calls["write"]  # after a failure, close does no I/O
    assert device.calls["sync"] == calls["sync"]
    seen, report = replayed(inner)
    assert seen[0][2] == b"good"
    assert report.outcome == "torn"
    assert report.ok


def test_every_waiter_of_a_failed_sync_gets_the_error():
    device = FaultDevice(memory())
    in_sync, go_on = threading.Event(), threading.Event()
    log = ready(device)
    log.append(1, b"x")
    device.add("sync", errno.EIO, before=lambda: (in_sync.set(), go_on.wait(10)))
    errors = []

    def work():
        try:
            log.sync()
        except ReadOnly as error:
            errors.append(error.errno)

    threads = [threading.Thread(target=work) for _ in range(6)]
    threads[0].start()
    assert in_sync.wait(10)
    for thread in threads[1:]:
        thread.start()
    go_on.set()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert errors == [errno.EIO] * 6


def test_failed_write_of_a_worker_reaches_the_next_caller():
    device = FaultDevice(memory())
    with WorkerPool(1) as pool:
        log = ready(device, pool=pool)
        log.append(1, b"x")
        device.faults.append(Fault("write", device.calls["write"] + 1, errno.EIO, last=10**9))
        with pytest.raises(ReadOnly):  # noqa: PT012
            for _ in range(100):
                log.append(1, bytes(1000))
        log.close()


def test_full_device_is_an_error_that_passes():
    device = memory(slots=8)
    items = AppendList(device, buffer_bytes=BUFFER)
    with pytest.raises(EnvironmentFailure, match="no segment is free") as caught:  # noqa: PT012
        while True:
            items.append(bytes(1000))
    assert caught.value.errno == errno.ENOSPC
    kept = items.next
    items.trim(kept - 2)
    items.checkpoint()
    items.checkpoint()
    assert items.append(b"room again") == kept
    items.log.check_invariants()
    items.close()
    again = AppendList(device, buffer_bytes=BUFFER)
    assert again.items() == [bytes(1000), bytes(1000), b"room again"]


def test_no_room_to_grow_is_an_error_that_passes(tmp_path, monkeypatch):
    log = ready(FaultDevice(memory()), slots_kept=0)
    log.device.full = True
    with pytest.raises(EnvironmentFailure, match="no segment is free"):
        log.append(1, b"x")
    log.device.full = False
    log.append(1, b"x")
    log.sync()
    assert log.stats()["failed"] == ""


# Reuse of segments


def fill(items, count=30, size=1000):
    for _ in range(count):
        items.append(bytes(size))


def test_segments_are_reused_only_after_two_checkpoints():
    device = memory(slots=64)
    items = AppendList(device, buffer_bytes=BUFFER)
    fill(items)
    old = {segment["version"] for segment in items.log.segments()}
    items.trim(items.next)
    fill(items, 15)
    items.checkpoint()
    versions = {segment["version"] for segment in items.log.segments()}
    assert old <= versions  # replay from the beginning is the fallback still
    fill(items, 15)
    items.checkpoint()
    versions = {segment["version"] for segment in items.log.segments()}
    assert not old & versions - {max(old)}
    items.log.check_invariants()
    opened = items.log.stats()["segments_opened"]
    fill(items, 60)
    items.checkpoint()
    assert items.log.stats()["segments_opened"] > opened
    slots = [segment["slot"] for segment in items.log.segments()]
    assert len(set(slots)) == len(slots)


def test_a_checkpoint_asks_the_system_for_nothing(monkeypatch):
    # each call that lets go of the GIL waits for it again, behind whoever fills the log
    items = AppendList(memory(), buffer_bytes=BUFFER)
    items.checkpoint()
    monkeypatch.setattr("siltstone.log.machine.Path", None)
    monkeypatch.setattr(items.log.device, "slots_present", None)
    items.checkpoint()


def test_pinned_segment_stays():
    items = AppendList(memory(), buffer_bytes=BUFFER)
    position = items.log.append(9, b"pinned")
    items.log.pin(position)
    items.log.dead(position, 6)
    for _ in range(4):
        fill(items, 20)
        items.trim(items.next)
        items.checkpoint()
    assert items.log.read(position) == (9, b"pinned")
    items.log.unpin(position)
    fill(items, 20)
    items.checkpoint()
    with pytest.raises(KeyMissing):
        items.log.read(position)
    with pytest.raises(KeyMissing):
        items.log.pin(position)


def test_reading_a_reused_segment_says_gone():
    items = AppendList(memory(slots=12), buffer_bytes=BUFFER)
    first = items.log.append(9, b"old")
    items.log.dead(first, 3)
    for _ in range(40):
        fill(items, 10)
        items.trim(items.next)
        items.checkpoint()
    with pytest.raises(KeyMissing):
        items.log.read(first)


def test_open_group_keeps_its_segments_for_replay():
    device = memory()
    items = AppendList(device, buffer_bytes=BUFFER)
    group = items.log.group()
    position = group.append(7, b"early")
    for _ in range(4):
        fill(items, 20)
        items.trim(items.next)
        items.checkpoint()
    assert items.log.segments()[0]["version"] == position // SEGMENT
    group.commit()
    items.sync()
    seen, report = replayed(device)
    assert (7, position, b"early") in [record[:3] for record in seen]
    assert report.ok


def test_what_is_synced_after_a_roll_is_there_after_a_crash():
    """Recovery that starts before the roll goes on behind it: it leaves no hole."""
    device = CrashDevice(64, SEGMENT)
    items = AppendList(device, buffer_bytes=BUFFER)
    fill(items, 3)
    items.log.roll()
    items.log.roll()
    fill(items, 40)
    items.log.sync()
    again = AppendList(device.reopened(bytearray(device.content)), buffer_bytes=BUFFER)
    assert len(again.items()) == 43
    assert again.report.ok


def test_growing_file_shrinks_again(tmp_path):
    device = FileDevice([(tmp_path / "data", None)], SEGMENT, engine="test", preallocate=False)
    items = AppendList(device, buffer_bytes=BUFFER)
    fill(items, 400)
    large = os.path.getsize(tmp_path / "data")
    items.trim(items.next - 3)
    for _ in range(8):  # the open segment and the two ahead lie at the file's end: move on
        items.log.roll()
        items.checkpoint()
        items.compact(2.0)
    assert os.path.getsize(tmp_path / "data") < large / 3
    assert len(items.items()) == 3
    fill(items, 100)
    items.close()
    device.close()
    device = FileDevice([(tmp_path / "data", None)], SEGMENT, engine="test", preallocate=False)
    again = AppendList(device, buffer_bytes=BUFFER)
    assert len(again.items()) == 103
    again.log.check_invariants()
    device.close()


def test_steady_overwriting_keeps_the_size_bounded():
    device = CrashDevice(256, SEGMENT)
    items = AppendList(device, buffer_bytes=BUFFER)
    for _ in range(60):
        fill(items, 10)
        items.trim(max(0, items.next - 30))
        items.checkpoint()
    assert len(items.log.segments()) <= 2 * items.live_bytes() // SEGMENT + 8
    assert device.slots_present() <= 2 * items.live_bytes() // SEGMENT + 8
    items.log.check_invariants()


# Opening and closing


def test_reopening_without_writing_changes_nothing(tmp_path):
    path = tmp_path / "data"

    def reopen():
        device = FileDevice([(path, None)], SEGMENT, engine="test", preallocate=False)
        items = AppendList(device, buffer_bytes=BUFFER)
        return device, items

    device, items = reopen()
    fill(items, 20)
    end = items.log.end
    items.close()
    device.close()
    size, content = os.path.getsize(path), path.read_bytes()[8192:]
    for _ in range(5):
        device, items = reopen()
        assert items.report.outcome == "clean"
        assert items.log.end == end
        assert len(items.items()) == 20
        items.close()
        device.close()
    assert os.path.getsize(path) == size
    assert path.read_bytes()[8192:] == content


def test_read_only_opening_writes_nothing():
    device = CrashDevice(64, SEGMENT)
    with ready(device) as log:
        log.append(1, b"x")
    events = len(device.events)
    log = ready(device, read_only=True)
    for attempt in (lambda: log.append(1, b"y"), log.sync, log.checkpoint, log.group):
        with pytest.raises(ReadOnly, match="read-only"):
            attempt()
    log.close()
    assert len(device.events) == events


def test_use_before_recovery_and_after_close():
    log = open_log()
    with pytest.raises(Closed):
        log.append(1, b"x")
    log.recover()
    with pytest.raises(Closed):
        log.recover()
    log.close()
    log.close()
    for attempt in (lambda: log.append(1, b"x"), lambda: log.read(1), log.sync):
        with pytest.raises(Closed):
            attempt()


def test_forked_child_is_refused_and_harms_nothing(tmp_path):
    device = FileDevice([(tmp_path / "data", None)], SEGMENT, engine="test", preallocate=False)
    log = ready(device)
    log.append(1, b"parent")
    child = os.fork()
    if child == 0:
        try:
            log.append(1, b"child")
        except ForkedProcess:
            log.close()
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    log.append(1, b"still there")
    log.close()
    assert [b for _, _, b, _ in replayed(device)[0]] == [b"parent", b"still there"]
    device.close()


def test_second_opener_is_refused(tmp_path):
    def make():
        return FileDevice([(tmp_path / "data", None)], SEGMENT, engine="test", preallocate=False)

    with make(), pytest.raises(Locked):
        make()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"buffer_bytes": 1000}, "multiple of 4096"),
        ({"buffer_bytes": 12288}, "multiple"),
        ({"buffer_bytes": 0}, "multiple"),
        ({"buffer_count": 1}, "2 to 16"),
        ({"buffer_count": 17}, "2 to 16"),
    ],
)
def test_settings_that_cannot_work(settings, text):
    with pytest.raises(ConfigError, match=text):
        open_log(**settings)


def test_device_that_cannot_be_read_is_said_so():
    inner = memory()
    device = FaultDevice(inner)
    log = ready(device)
    position = log.append(1, b"x")
    for _ in range(40):
        log.append(1, bytes(1000))
    log.sync()
    device.add("read", errno.EIO)
    with pytest.raises(DeviceFailed, match="cannot be read"):
        log.read(position)
    assert log.read(position) == (1, b"x")


GIVING_BACK = """
import threading
from siltstone.log.device import MemoryDevice
from siltstone.log.ordered_log import OrderedLog

class Device(MemoryDevice):
    growable = True
    called = 0
    def slots_present(self):
        return 16
    def truncate(self, slots):
        self.elsewhere()
    def punch(self, slot, begin=0):
        self.elsewhere()
    def elsewhere(self):
        # as the system call does: another thread runs, and it needs the stream's lock
        Device.called += 1
        other = threading.Thread(target=log.segments)
        other.start()
        other.join()

log = OrderedLog(Device(16, 16384, engine="test"), buffer_bytes=4096)
log.recover()
for number in range(6):
    log.append(1, bytes(3900))
    log.checkpoint()
log.punch_free()
log.close()
print(Device.called > 2)
"""


def test_giving_back_blocks_holds_up_nobody():
    """The system calls drop the GIL: with the stream's lock held, everybody would wait for ever."""
    done = subprocess.run(
        [sys.executable, "-c", GIVING_BACK], capture_output=True, text=True, timeout=30
    )
    assert done.stdout == "True\n", done.stderr
