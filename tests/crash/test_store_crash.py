"""Power cuts and failing devices under a store: what comes back is a prefix of the commits.

A history of random commits runs on a device that remembers every write and sync. For moments in
it, every kind of medium that a power cut may leave is opened: the store must hold the state after
some commit, not older than the last durable one, and must verify. `--thorough` looks at every
moment of more histories.
"""

from __future__ import annotations

import errno
import random
import threading
from typing import Any

import pytest
from fakes import CrashDevice, Fault, FaultDevice, SeededRandom
from storerig import TREES, States, contents, on_device

from siltstone import errors
from siltstone.log.device import MemoryDevice

pytestmark = pytest.mark.crash

SLOTS, SEGMENT = 180, 16384


class History:
    """A store under random commits, and its contents after each of them."""

    def __init__(self, device: Any, rng: random.Random, events: CrashDevice, **options: Any):
        self.rng, self.device = rng, events
        self.store = on_device(device, **options)
        self.states = States(contents(self.store))
        self.moments = [len(events.events)]  # events when commit n had returned
        self.synced = [(0, 0)]  # (events, commit): durable from then on

    def key(self) -> bytes:
        return b"key:%03d" % self.rng.randrange(80)

    def value(self) -> bytes:
        size = self.rng.choice([0, 3, 20, 60, 60, 200, 9000 if self.rng.random() < 0.2 else 90])
        return self.rng.randbytes(4) + bytes([self.rng.randrange(256)]) * size

    def step(self) -> None:
        choice, durable = self.rng.random(), self.rng.random() < 0.25
        before = len(self.device.events)
        if choice < 0.35:
            self.set(durable)
        elif choice < 0.45:
            durable = self.delete(durable) and durable  # nothing deleted, nothing committed
        elif choice < 0.65:
            self.batch(durable)
        elif choice < 0.72:
            durable = self.transaction(durable) and durable
        elif choice < 0.76:
            self.trees()
            durable = False
        elif choice < 0.78:
            self.clear(durable)
        else:
            self.rest(choice)
            return
        self.committed(durable)
        assert len(self.device.events) >= before

    def committed(self, durable: bool) -> None:
        self.states.take()
        self.moments.append(len(self.device.events))
        if durable:
            self.note_synced()

    def note_synced(self) -> None:
        self.synced.append((len(self.device.events), len(self.moments) - 1))

    # `now` changes before the call: a commit that fails to become durable may still have been made

    def set(self, durable: bool) -> None:
        key, value = self.key(), self.value()
        self.states.now[""][key] = value
        self.store.set(key, value, durable=durable)

    def delete(self, durable: bool) -> bool:
        key = self.key()
        there = self.states.now[""].pop(key, None) is not None
        assert self.store.delete(key, durable=durable) is there
        return there

    def batch(self, durable: bool) -> None:
        with self.store.batch(durable=durable) as batch:
            for _ in range(self.rng.choice([2, 5, 30])):
                name, key, value = self.rng.choice(TREES), self.key(), self.value()
                part = batch.tree(name) if name else batch
                part[key] = value
                self.states.now.setdefault(name, {})[key] = value

    def transaction(self, durable: bool) -> bool:
        now = self.states.now[""]
        with self.store.transaction(durable=durable) as transaction:
            found = list(transaction.items(limit=3))
            for key, _ in found:
                del transaction[key], now[key]
            for key, value in found:  # one may be another's reverse
                transaction[key[::-1]] = now[key[::-1]] = value
        return bool(found)

    def trees(self) -> None:
        now = self.states.now
        if "users" in now:
            del now["users"]
            self.store.drop_tree("users")
        else:
            now["users"] = {}
            self.store.tree("users")

    def clear(self, durable: bool) -> None:
        name = self.rng.choice([*self.states.now])
        self.states.now[name] = {}
        (self.store.tree(name) if name else self.store).clear(durable=durable)

    def rest(self, choice: float) -> None:
        if choice < 0.84:
            self.store.sync()
            self.note_synced()
        elif choice < 0.90:
            self.store.checkpoint()
            self.note_synced()
        else:
            self.store.step()

    def allowed(self, moment: int) -> list[Any]:
        """Contents that a crash after `moment` events may leave."""
        oldest = max(commit for events, commit in self.synced if events <= moment)
        newest = sum(events <= moment for events in self.moments)
        return self.states.all[oldest : newest + 1]


def check(history: History, moment: int, image: bytearray) -> None:
    """The store over an image holds an allowed state, verifies, and goes on."""
    device = history.device.reopened(image)
    with on_device(device, rng=SeededRandom(moment)) as store:
        assert store.recovery.ok, f"a power cut taken for damage: {store.recovery.problems}"
        found = contents(store)
        allowed = history.allowed(moment)
        assert found in allowed, f"after {moment} of {len(history.device.events)} events"
        assert store.verify().problems == []
        assert {name: len(store.tree(name) if name else store) for name in found} == {
            name: len(pairs) for name, pairs in found.items()
        }
        store.set(b"goes on", b"x", durable=True)


def moments_of(history: History, rng: random.Random, thorough: bool, count: int) -> list[int]:
    everything = range(len(history.device.events) + 1)
    if thorough:
        return list(everything)
    return sorted(rng.sample(everything, min(count, len(everything))))


def check_all(history: History, moments: Any, rng: random.Random, mixed: int = 3) -> int:
    """Every kind of medium after each of these moments; how many that were."""
    checked = 0
    for moment in moments:
        for image in history.device.images(moment, rng, mixed=mixed):
            check(history, moment, image)
            checked += 1
    return checked


@pytest.mark.slow
@pytest.mark.parametrize("number", range(12))
def test_every_write_and_sync_boundary(number, seed, thorough):
    if number >= 3 and not thorough:
        pytest.skip("with --thorough (make test-crash)")
    rng = random.Random(f"{seed} {number}")
    device = CrashDevice(SLOTS, SEGMENT, engine="store")
    history = History(device, rng, device, align_commits=number % 3 == 2)
    for _ in range(90):
        history.step()
    assert check_all(history, moments_of(history, rng, thorough, 12), rng) > 12


@pytest.mark.slow
@pytest.mark.parametrize("what", ["checkpoint", "cleaning"])
def test_inside_checkpoints_and_cleaning(what, seed, thorough):
    """Every boundary of the background's own writes, with much to move."""
    rng = random.Random(f"{seed} {what}")
    device = CrashDevice(SLOTS, SEGMENT, engine="store")
    history = History(device, rng, device)
    for turn in range(4):
        for number in range(0, 80, 2):
            history.store.set(b"key:%03d" % number, b"%d" % turn * 120)
            history.states.now[""][b"key:%03d" % number] = b"%d" % turn * 120
            history.committed(False)
    history.store.sync()
    history.note_synced()
    first = len(device.events)
    for _ in range(3):
        if what == "checkpoint":
            history.store.checkpoint()
            history.note_synced()
        else:
            history.store._pages.collect_garbage()
        history.set(False)
        history.committed(False)
    moments = range(first, len(device.events) + 1)
    assert len(moments) > 5
    check_all(history, moments if thorough else rng.sample(moments, min(8, len(moments))), rng)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(6))
def test_cleaning_while_a_sync_is_waited_for(number, seed, thorough):
    """A segment is cleaned inside of every sync, those of checkpoints too, as by another thread."""
    if number >= 2 and not thorough:
        pytest.skip("with --thorough (make test-crash)")
    rng = random.Random(f"{seed} cleaning {number}")
    inner = CrashDevice(SLOTS, SEGMENT, engine="store")
    device = FaultDevice(inner)
    history = History(device, rng, inner)
    pages, cleaned = history.store._pages, 0

    def clean() -> None:
        nonlocal cleaned
        cleaned += pages._clean(990, pages.log.end // SEGMENT)

    device.add("sync", before=clean, last=1 << 30)
    for turn in range(90):
        history.step()
        if turn % 8 == 0:
            history.store.checkpoint()
            history.note_synced()
    assert cleaned > 5
    check_all(history, moments_of(history, rng, thorough, 12), rng)


def test_crash_after_crash(seed, thorough):
    """Lives of a few commits, each ended by a power cut: what one recovery dropped stays away, and
    the file does not grow."""
    rng = random.Random(f"{seed} lives")
    device = CrashDevice(SLOTS, SEGMENT, engine="store")
    known: list[dict[str, Any]] = [{"": {}}]
    for life in range(60 if thorough else 8):
        history = History(device, rng, device, rng_seed=life)
        assert history.states.all[0] in known
        for _ in range(rng.choice([3, 10, 25])):
            history.step()
        images = list(device.images(len(device.events), rng, mixed=6))
        known = history.allowed(len(device.events))
        device = device.reopened(rng.choice(images))
    with on_device(device) as store:
        assert store.verify().problems == []
        while store.step():  # what a background thread has no time for in lives that short
            pass
        store.checkpoint()
        live = sum(len(k) + len(v) for pairs in contents(store).values() for k, v in pairs.items())
        assert device.slots_present() * SEGMENT <= 2 * live + 48 * SEGMENT


def test_a_batch_larger_than_all_buffers_is_whole_or_absent(seed):
    rng = random.Random(f"{seed} big batch")
    device = CrashDevice(SLOTS, SEGMENT, engine="store")
    history = History(device, rng, device)
    with history.store.batch() as batch:
        for number in range(600):
            batch[b"%05d" % number] = b"v" * 200
    history.states.now[""].update((b"%05d" % number, b"v" * 200) for number in range(600))
    history.committed(False)
    history.store.sync()
    history.note_synced()
    check_all(history, rng.sample(range(len(device.events)), 8), rng, mixed=2)


def test_a_large_batch_over_a_checkpoint_and_cleaning(seed, thorough):
    """Its pages are in the log before its mark; others move pages between, and checkpoint."""
    rng = random.Random(f"{seed} batch over checkpoint")
    inner = CrashDevice(SLOTS, SEGMENT, engine="store")
    device = FaultDevice(inner)
    pairs = {b"%05d" % number: rng.randbytes(150) for number in range(500)}
    with on_device(device) as store:
        for key, value in pairs.items():
            store[key] = value
    history = History(device, rng, inner)
    between = [history.store.checkpoint, history.store._pages.collect_garbage] * 2
    device.add(
        "read",
        before=lambda: device.calls["read"] % 25 or not between or between.pop(0)(),
        last=device.calls["read"] + 10_000,
    )
    first = len(inner.events)
    changes = {key: rng.randbytes(200) for key in rng.sample(sorted(pairs), 400)}
    with history.store.batch() as batch:
        batch.update(changes)
        batch.update({b"%05dx" % number: b"new" * 30 for number in range(200)})
    history.states.now[""].update(changes)
    history.states.now[""].update({b"%05dx" % number: b"new" * 30 for number in range(200)})
    history.committed(False)
    assert len(between) < 4
    history.store.sync()
    history.note_synced()
    moments = range(first, len(inner.events) + 1)
    check_all(history, moments if thorough else rng.sample(moments, 10), rng, mixed=2)


# Failing devices ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("call", ["write", "sync"])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_the_nth_write_or_sync_fails(call, error, seed, thorough):
    """For every n: a clear error to whoever waits, nothing is acknowledged afterwards, reads go on,
    and the medium holds what was acknowledged before."""
    nth, failed, said, step = 1, True, 0, 1 if thorough else 9
    while failed:
        failed = False
        rng = random.Random(f"{seed} fail")
        inner = CrashDevice(SLOTS, SEGMENT, engine="store")
        device = FaultDevice(inner)
        history = History(device, rng, inner)
        device.faults.append(
            Fault(call, nth + device.calls[call], error, keep=512 if call == "write" else None)
        )
        before, late = dict(history.states.now[""]), []
        try:
            for _ in range(40):
                before = {name: dict(pairs) for name, pairs in history.states.now.items()}
                history.step()
        except errors.ReadOnly as caught:
            failed, said = True, caught.errno
            check_failed(history)
        except errors.DeviceFailed as caught:  # the superblock's
            failed, said = True, caught.errno
            if call == "write":
                history.store.checkpoint()  # the other copy counts, and this one is written again
            else:
                check_failed(history)
                tried = {**history.states.now[""], b"late": b"x"}  # refused, but written
                late = [{**history.states.now, "": tried}]
        if failed:
            assert said == error
            allowed = [*history.states.all[history.synced[-1][1] :], before, history.states.now]
            allowed += late
            for image in inner.images(len(inner.events), rng, mixed=3):
                with on_device(inner.reopened(image)) as store:
                    assert contents(store) in allowed
        else:
            try:
                history.store.close()
            except errors.EnvironmentFailure as late:
                failed = late.errno == error  # the fault met the last checkpoint
        nth += step
    assert nth > 4


def check_failed(history: History) -> None:
    """Nothing is taken as durable any more; what there was is still read."""
    with pytest.raises(errors.EnvironmentFailure):
        history.store.set(b"late", b"x", durable=True)
    with pytest.raises(errors.EnvironmentFailure):
        history.store.sync()
    contents(history.store)
    try:
        history.store.close()
    except errors.EnvironmentFailure:
        pass  # it may say again that what was buffered could not be written
    with pytest.raises(errors.Closed):
        history.store.get(b"a")


def test_all_waiters_of_a_failed_sync_are_told():
    inner = MemoryDevice(SLOTS, SEGMENT, engine="store")
    device = FaultDevice(inner)
    store = on_device(device)
    store[b"before"] = b"x"
    store.sync()
    gate = threading.Barrier(9)
    device.faults.append(Fault("sync", device.calls["sync"] + 1, errno.EIO, last=1 << 30))
    told: list[Exception] = []

    def work(number: int) -> None:
        gate.wait()
        try:
            store.set(b"key %d" % number, b"v", durable=True)
        except errors.EnvironmentFailure as error:
            told.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    gate.wait()
    for thread in threads:
        thread.join(60)
    assert len(told) == 8
    assert store[b"before"] == b"x"
    with pytest.raises(errors.ReadOnly):
        store[b"after"] = b"y"
    store.close()


def test_a_full_device_is_said_and_reads_go_on():
    """No room for a further segment: the error says so; what was committed is read."""
    device = MemoryDevice(12, SEGMENT, engine="store")
    store = on_device(device, cache="1MiB")
    written = 0
    with pytest.raises(errors.EnvironmentFailure) as caught:  # noqa: PT012
        for number in range(10_000):
            store[b"%06d" % number] = b"v" * 150
            written = number
    assert caught.value.errno == errno.ENOSPC
    assert store[b"%06d" % written] == b"v" * 150
    assert len(store) >= written
    store.close()


def test_reads_that_fail_say_so_and_can_be_tried_again():
    device = FaultDevice(MemoryDevice(SLOTS, SEGMENT, engine="store"))
    with on_device(device, cache="16KiB") as store:
        for number in range(800):
            store[b"%06d" % number] = b"v" * 100
        store.checkpoint()
        device.faults.append(Fault("read", device.calls["read"] + 1, errno.EIO, last=1 << 30))
        with pytest.raises(errors.EnvironmentFailure) as caught:  # noqa: PT012
            for number in range(800):
                store.get(b"%06d" % number)
        assert caught.value.errno == errno.EIO
        device.faults.clear()
        assert all(store[b"%06d" % number] == b"v" * 100 for number in range(800))
