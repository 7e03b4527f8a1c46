"""Watches by themselves: order, overflow that is told, threads, event loops, ends."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest

import siltstone
from siltstone.errors import EventsLost
from siltstone.store.watch import Event, Watch, Watchers


def published(watchers: Watchers, *changes: tuple[str, bytes, bytes | None]) -> None:
    with watchers._lock:
        watchers.publish(changes)


def test_events_of_the_tree_and_prefix_in_order():
    watchers = Watchers(10)
    assert not watchers.active
    users, everything = watchers.watch("", b"user:"), watchers.watch("", b"")
    assert watchers.active
    published(
        watchers,
        ("", b"user:1", b"Ann"),
        ("", b"other", b"x"),
        ("", b"user:1", None),
        ("t", b"user:2", b"y"),
    )
    users.close()
    everything.close()
    assert list(users) == [Event(b"user:1", b"Ann"), Event(b"user:1", None)]
    assert [event.key for event in everything] == [b"user:1", b"other", b"user:1"]
    assert not watchers.active


def test_overflow_is_told_at_its_place_and_reading_goes_on():
    watchers = Watchers(2)
    watch = watchers.watch("", b"")
    for number in range(5):
        published(watchers, ("", b"%d" % number, b""))
    assert next(watch).key == b"0"
    assert next(watch).key == b"1"
    with pytest.raises(EventsLost) as caught:
        next(watch)
    assert caught.value.count == 3
    published(watchers, ("", b"5", b""))
    assert next(watch).key == b"5"
    assert watch.poll() is None


def test_a_gap_is_counted_once_and_a_later_one_apart():
    watchers = Watchers(1)
    watch = watchers.watch("", b"")
    for number in range(3):
        published(watchers, ("", b"%d" % number, b""))
    assert next(watch).key == b"0"
    for number in range(3, 6):  # the gap itself takes the one place
        published(watchers, ("", b"%d" % number, b""))
    with pytest.raises(EventsLost) as caught:
        watch.poll()
    assert caught.value.count == 5
    assert len(watch) == 0


def test_a_waiting_thread_is_woken_by_events_and_by_the_end():
    watchers = Watchers(10)
    watch = watchers.watch("", b"")
    seen: list[bytes] = []
    reader = threading.Thread(target=lambda: seen.extend(event.key for event in watch))
    reader.start()
    for number in range(20):
        published(watchers, ("", b"%02d" % number, b""))
        while len(seen) <= number:  # the queue holds ten
            reader.join(0.001)
    watchers.close()
    reader.join(10)
    assert not reader.is_alive()
    assert seen == [b"%02d" % number for number in range(20)]


def test_async_iteration_from_another_thread():
    watchers = Watchers(100)
    watch = watchers.watch("", b"a")

    async def read() -> list[bytes]:
        return [event.key async for event in watch]

    def write() -> None:
        for number in range(50):
            published(watchers, ("", b"a%02d" % number, b""), ("", b"b", b""))
        watch.close()

    async def both() -> list[bytes]:
        reading = asyncio.ensure_future(read())
        await asyncio.sleep(0)  # it waits before the first event comes
        writer = threading.Thread(target=write)
        writer.start()
        found = await asyncio.wait_for(reading, 20)
        writer.join()
        return found

    assert asyncio.run(both()) == [b"a%02d" % number for number in range(50)]


def test_a_cancelled_reader_leaves_nothing_behind():
    watch = Watchers(10).watch("", b"")

    async def wait_in_vain() -> None:
        for _ in range(5):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(anext(watch), 0.001)

    asyncio.run(wait_in_vain())
    assert watch._sleepers == []
    watch.push(Event(b"k", None))  # that loop is closed
    assert watch.poll() == Event(b"k", None)


def test_watches_nobody_refers_to_are_forgotten():
    watchers = Watchers(10)
    watchers.watch("", b"")
    gc.collect()
    published(watchers, ("", b"k", b""))
    assert not watchers.active


def test_closing_twice_and_watching_a_closed_store():
    watchers = Watchers(10)
    with watchers.watch("", b"") as watch:
        pass
    watch.close()
    assert list(watch) == []
    watchers.close()
    late: Watch = watchers.watch("", b"")
    assert list(late) == []
    late.push(Event(b"k", b""))
    assert len(late) == 0
    assert bool(late)


def test_a_tree_that_is_emptied_as_a_whole_is_a_gap() -> None:
    with siltstone.Store(None) as store:
        store.update((b"%d" % number, b"v") for number in range(5))
        tree = store.tree("t")
        own, other = store.watch(b"1"), tree.watch()
        store.clear()
        store[b"1"] = b"again"
        with pytest.raises(EventsLost) as caught:
            next(own)
        assert caught.value.count == 5
        assert next(own) == (b"1", b"again")
        tree.clear()  # of nothing
        tree[b"k"] = b"v"
        store.drop_tree("t")
        assert next(other) == (b"k", b"v")
        with pytest.raises(EventsLost):
            next(other)
        assert (own.poll(), other.poll()) == (None, None)
