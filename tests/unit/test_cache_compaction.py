"""Compaction: what it rescues and keeps, what it drops, when it runs, and what stops it."""

from __future__ import annotations

import errno
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import FaultDevice
from flashrig import SEGMENT, SEGMENTS, VALUE, Rig, value_of

from siltstone import errors
from siltstone.cache import attachment as attachment_module
from siltstone.cache import trial
from siltstone.log.device import FileDevice

COMPACTED = 1  # the stream that compaction writes to


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(
        attachment_module, "FileDevice", lambda *a, **k: FaultDevice(FileDevice(*a, **k))
    )
    rigs: list[Rig] = []

    def opened(**options: Any) -> Rig:
        rigs.append(Rig(tmp_path, **options))
        return rigs[-1]

    yield opened
    for rig in rigs:
        rig.cache.close()


def delete_most(rig: Rig, stored: dict[str, bytes], keep: int = 4) -> None:
    """Of each `keep` items one stays."""
    for number, key in enumerate(list(stored)):
        if number % keep:
            assert rig.cache.delete(key)
            del stored[key]


def test_what_lives_is_rescued_and_segments_become_free(make: Any) -> None:
    rig = make(compact_under=SEGMENTS)
    stored = rig.fill(1800)
    before = rig.log.segments_free
    delete_most(rig, stored)
    rig.compact()
    rig.check()
    assert rig.log.segments_free > before + 10
    assert rig.counter("compact_rescued") >= len(stored) // 2
    assert rig.counter("compact_lost") == rig.counter("flash_evicted") == 0
    assert dict(rig.cache.items()) == stored


def test_it_works_past_the_page_cache(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attachment_module, "FileDevice", FileDevice)
    try:
        rig = make(compact_under=SEGMENTS, direct=True)
    except errors.EnvironmentFailure:
        pytest.skip("this file system has no O_DIRECT")
    stored = rig.fill(1800)
    delete_most(rig, stored)
    rig.compact()
    assert rig.counter("compact_rescued") >= len(stored) // 2
    rig.cache.flush()
    rig.lose()
    again = make(direct=True)
    assert dict(again.cache.items()) == stored


def test_cas_flags_times_and_marks_are_kept(make: Any) -> None:
    rig = make(compact_under=SEGMENTS)
    stored = rig.fill(1500)
    rig.cache.set("key 0", stored["key 0"], ttl=5000)
    rig.cache["key 4"] = 17
    stored["key 4"] = 17  # type: ignore[assignment]
    rig.to_flash()
    kept = [key for number, key in enumerate(stored) if number % 4 == 0]
    before = {key: rig.cache._get_meta(key) for key in kept}
    delete_most(rig, stored)
    rig.compact()
    assert {key: rig.cache._get_meta(key) for key in kept} == before
    assert all(meta[4] for meta in before.values())  # all on flash
    assert rig.cache["key 4"] == 17
    assert rig.counter("compact_rescued") > 100


def test_a_later_expiry_is_written_down(make: Any) -> None:
    rig = make(compact_under=SEGMENTS)
    stored = rig.fill(1500, ttl=1000)
    for number in range(0, 1500, 4):
        assert rig.cache.touch(f"key {number}", 9000)
    delete_most(rig, stored)
    rig.compact()
    rescued = rig.counter("compact_rescued")
    rig.cache.flush()
    # the arena is lost: what the records say counts
    rig.lose()
    again = make()
    now = again.cache._clock.now_ms()
    left = [again.cache._get_meta(key)[3] - now for key in stored]
    assert sum(8_000_000 < ms <= 9_002_000 for ms in left) >= rescued * 9 // 10 > 0
    assert all(ms > 0 for ms in left)


def test_compaction_waits_until_segments_are_short(make: Any) -> None:
    rig = make(compact_under=4)
    stored = rig.fill(1000)
    delete_most(rig, stored)
    rig.compact()
    assert rig.counter("compact_rescued") == 0


def test_full_segments_are_left_alone(make: Any) -> None:
    rig = make(compact_under=SEGMENTS, max_fragmentation=0.5)
    rig.fill(2000)
    rig.compact()
    assert rig.counter("compact_rescued") == 0


def test_without_worth_the_oldest_is_forgotten(make: Any) -> None:
    rig = make()
    rig.fill(4000)
    rig.compact()
    rig.check()
    assert rig.counter("segments_forgotten") > 0
    assert rig.counter("flash_evicted") > 0
    assert rig.log.segments_free >= 2
    assert rig.cache.get("key 3999") == value_of(3999)
    assert rig.cache.get("key 0") is None


def test_drop_unread_keeps_what_was_read(make: Any) -> None:
    rig = make(drop_unread=True, drop_under=SEGMENTS, compact_under=SEGMENTS)
    rig.fill(2200)
    read = [f"key {number}" for number in range(0, 2200, 7)]
    for key in read:
        assert key in rig.cache
        assert rig.cache.get(key) is not None
    for _ in range(400):
        rig.background.tick()
    rig.check()
    assert rig.counter("compact_skipped") > 100
    assert all(rig.cache.get(key) is not None for key in read)


def test_writers_go_on_while_it_runs(make: Any, rng: random.Random) -> None:
    rig = make(ram="1MiB")
    stored: dict[str, bytes] = {}
    live = int(SEGMENTS * SEGMENT * 0.7 / (VALUE + 100))
    for turn in range(12_000):
        number = rng.randrange(live)
        stored[f"key {number}"] = rig.cache[f"key {number}"] = value_of(number, turn)
        if turn % 50 == 0:
            rig.background.tick()
    rig.check()
    assert rig.counter("compact_rescued") > 1000
    assert rig.counter("compact_lost") == rig.counter("evictions") == 0
    assert dict(rig.cache.items()) == stored


def test_nobody_needs_a_leader(make: Any, rng: random.Random) -> None:
    rig = make(ram="1MiB")
    stored: dict[str, bytes] = {}
    live = int(SEGMENTS * SEGMENT * 0.6 / (VALUE + 100))
    for turn in range(8_000):
        number = rng.randrange(live)
        stored[f"key {number}"] = rig.cache[f"key {number}"] = value_of(number, turn)
    rig.check()
    assert rig.counter("compact_rescued") > 0
    assert rig.counter("flash_evicted") == rig.counter("evictions") == 0
    assert dict(rig.cache.items()) == stored


@pytest.mark.slow
def test_a_writer_does_not_wait_for_who_is_stopped_in_the_compacted_stream(make: Any) -> None:
    rig = make(ram="1MiB")
    stored = rig.fill(2200)
    delete_most(rig, stored, 2)
    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        trial.enter_stream(rig.cache.engine, COMPACTED)
        held.set()
        go_on.wait()
        trial.leave_stream(rig.cache.engine, COMPACTED)

    def write() -> None:
        with pytest.raises(errors.Busy):  # noqa: PT012
            for number in range(10_000):
                rig.cache[f"new {number}"] = value_of(number)

    holder, writer = threading.Thread(target=hold), threading.Thread(target=write)
    holder.start()
    assert held.wait(10)
    writer.start()
    writer.join(20)
    waits = writer.is_alive()
    go_on.set()
    holder.join()
    writer.join()
    assert not waits
    rig.cache["later"] = value_of(1)
    assert {key: rig.cache.get(key) for key in stored} == stored
    rig.check()


def test_a_reader_finds_what_was_moved_while_it_read(make: Any) -> None:
    rig = make(compact_under=SEGMENTS)
    stored = rig.fill(1800)
    delete_most(rig, stored)
    for key in list(stored)[:5]:
        moved = rig.counter("compact_rescued")
        rig.device.add("read", before=rig.compact)
        found = rig.cache.get(key)
        assert found == stored[key]
        if rig.counter("compact_rescued") > moved:
            return
    raise AssertionError("nothing was compacted under the reader")


def test_a_reader_finds_what_was_replaced_while_it_read(make: Any) -> None:
    rig = make(compact_under=SEGMENTS)
    stored = rig.fill(1800)

    def replace() -> None:
        delete_most(rig, stored, keep=40)
        rig.cache["key 0"] = b"new"
        rig.compact()
        assert not any(
            info["state"] == "sealed" and info["version"] == 1 for info in rig.log.segments()
        )

    rig.device.add("read", error=errno.EIO, before=replace)
    assert rig.cache.get("key 0") == b"new"


def test_a_segment_that_cannot_be_read_is_left(make: Any) -> None:
    rig = make(compact_under=SEGMENTS)
    stored = rig.fill(1800)
    delete_most(rig, stored)
    first = rig.device.calls["read"] + 1
    rig.device.add("read", error=errno.EIO, last=first + 5)
    rig.compact()
    rig.check()
    assert rig.counter("flash_read_errors") == 6
    assert rig.counter("compact_rescued") > 0
    assert dict(rig.cache.items()) == stored


def test_a_damaged_record_is_counted_and_the_others_rescued(make: Any) -> None:
    rig = make(compact_under=SEGMENTS)
    stored = rig.fill(1800)
    delete_most(rig, stored)
    data = bytearray(rig.device.read(3, 0, SEGMENT))
    damaged = next(key for key, value in stored.items() if value[:200] in data)
    place = data.index(stored[damaged][:200])
    rig.device.write(3, place, bytes([data[place] ^ 1]))
    rig.compact()
    rig.check()
    assert rig.counter("compact_lost") == 1
    assert rig.cache.get(damaged) is None
    del stored[damaged]
    assert dict(rig.cache.items()) == stored


def test_iteration_sees_what_is_moved_meanwhile(make: Any) -> None:
    rig = make(compact_under=SEGMENTS)
    stored = rig.fill(1800)
    delete_most(rig, stored)
    moved = rig.counter("compact_rescued")
    rig.device.add("read", before=rig.compact)  # the first read of the iteration
    seen = list(rig.cache.keys())
    assert rig.counter("compact_rescued") > moved
    assert sorted(seen) == sorted(stored)


def test_a_clean_stop_keeps_what_is_in_ram_when_flash_is_full(make: Any) -> None:
    rig = make()
    rig.fill(4000)
    for number in range(300):
        rig.cache[f"young {number}"] = value_of(number)
    rig.cache.close()
    again = make()
    assert all(again.cache.get(f"young {number}") == value_of(number) for number in range(300))


@pytest.mark.slow
def test_nothing_is_missed_while_threads_write_and_it_runs(make: Any) -> None:
    rig = make(ram="1MiB", workers=2, recache_rate=5)
    threads, each = 3, int(SEGMENTS * SEGMENT * 0.6 / (VALUE + 100)) // 3
    problems: list[str] = []

    def work(which: int) -> None:
        rng = random.Random(which)
        versions: dict[int, int] = {}
        for turn in range(60_000):
            number = which + threads * rng.randrange(each)
            if rng.random() < 0.5:
                versions[number] = turn
                rig.cache[f"key {number}"] = value_of(number, turn)
            elif number in versions:
                found = rig.cache.get(f"key {number}")
                if found != value_of(number, versions[number]):
                    problems.append(f"key {number}: {found and found[:20]!r}")

    workers = [threading.Thread(target=work, args=(which,)) for which in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert problems == []
    assert rig.counter("compact_rescued") > 500
    assert rig.counter("flash_evicted") == rig.counter("evictions") == 0
    rig.background.stop()
    rig.check()
