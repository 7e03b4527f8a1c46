"""Power cuts, kills and damage: what comes back is a prefix that holds all that was synced."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from appendlist import AppendList
from fakes import CrashDevice, Fault, FaultDevice, SeededRandom, applied

from siltstone.errors import Corruption, DeviceFailed, ReadOnly, SiltstoneError
from siltstone.log.device import Device, FileDevice
from siltstone.log.workers import WorkerPool

pytestmark = pytest.mark.crash

SEGMENT = 16384
BUFFER = 4096
SLOTS = 40

State = tuple[int, tuple[bytes, ...]]


class History:
    """A list under random operations, and its state after each of them."""

    def __init__(
        self,
        device: Device,
        rng: random.Random,
        seed: int,
        *,
        events: CrashDevice | None = None,
        **options: object,
    ) -> None:
        self.rng = rng
        self.device = events or device
        self.items = AppendList(device, buffer_bytes=BUFFER, rng=SeededRandom(seed), **options)
        self.states: list[State] = [self.state()]
        self.moments = [len(self.device.events)]  # events when operation n had ended
        self.synced = [(0, 0)]  # (events, operation): durable from then on

    def state(self) -> State:
        return self.items.first, tuple(self.items.items())

    def data(self) -> bytes:
        size = self.rng.choice([0, 5, 60, 300, 900, 2500])
        return self.rng.randbytes(8) + bytes(size)

    def step(self) -> None:
        choice = self.rng.random()
        items = self.items
        if choice < 0.45:
            items.append(self.data())
        elif choice < 0.60:
            items.extend([self.data() for _ in range(self.rng.randint(1, 5))])
        elif choice < 0.65:
            items.extend([self.data(), self.data()], commit=False)
        elif choice < 0.70:
            items.trim(self.rng.randint(items.first, items.next))
        elif choice < 0.75:
            items.log.flush()
        elif choice < 0.80:
            items.log.reserve(1, 30).abort()
        elif choice < 0.84:
            items.checkpoint()
            self.note_synced(at=len(self.states) - 1)
        elif choice < 0.87:
            items.compact()
        else:
            items.sync()
            self.note_synced(at=len(self.states) - 1)
        self.states.append(self.state())
        self.moments.append(len(self.device.events))
        items.log.check_invariants()

    def note_synced(self, at: int) -> None:
        self.synced.append((len(self.device.events), at))

    def allowed(self, moment: int) -> list[State]:
        """States that a crash after `moment` events may leave."""
        oldest = max(operation for events, operation in self.synced if events <= moment)
        newest = sum(events <= moment for events in self.moments)
        return self.states[oldest : newest + 1]


def recovered(device: CrashDevice, image: bytearray, seed: int = 99, **options: object):
    crashed = device.reopened(image)
    return crashed, AppendList(crashed, buffer_bytes=BUFFER, rng=SeededRandom(seed), **options)


def check(history: History, moment: int, image: bytearray) -> tuple[CrashDevice, AppendList]:
    crashed, items = recovered(history.device, image, seed=moment)
    assert items.report.ok, f"a power cut taken for damage: {items.report.problems}"
    found = (items.first, tuple(items.items()))
    assert found in history.allowed(moment), f"after {moment} events: {items.report}"
    items.log.check_invariants()
    return crashed, items


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("align", [False, True])
def test_every_write_and_sync_boundary(number, align, seed):
    rng = random.Random(f"{seed} {number} {align}")
    device = CrashDevice(SLOTS, SEGMENT)
    history = History(device, rng, number, align_commits=align)
    for _ in range(80):
        history.step()
    moments = range(len(device.events) + 1)
    checked = 0
    for moment in moments:
        for image in device.images(moment, rng, mixed=3):
            check(history, moment, image)
            checked += 1
    assert checked > len(device.events)


@pytest.mark.parametrize("number", range(8))
def test_crash_after_crash_leaves_no_ghosts(number, seed):
    """Records of equal sizes, crash, other records of the same sizes, crash again: what one
    recovery dropped is never seen in a later one."""
    rng = random.Random(f"{seed} ghosts {number}")
    device = CrashDevice(SLOTS, SEGMENT)
    base: State = (0, ())
    for life in range(12):
        items = AppendList(device, buffer_bytes=BUFFER, rng=SeededRandom(life * 100 + number))
        assert items.report.ok
        assert (items.first, tuple(items.items())) == base
        known = list(base[1])
        synced = len(known)
        syncs = rng.choice([0, 0, 0.1])
        for n in range(rng.choice([5, 25, 70])):
            known.append(b"%4d %4d" % (life, n) + bytes(300))
            items.append(known[-1])
            if rng.random() < syncs:
                items.sync()
                synced = len(known)
            elif rng.random() < 0.2:
                items.log.flush()
        if syncs and life % 3 == 2:
            items.checkpoint()
            synced = len(known)
        images = list(device.images(len(device.events), rng, mixed=6))
        images *= 4 // len(images) + 1
        # Mostly the one that lacks the life's first write and has all others.
        device = device.reopened(images[3] if rng.random() < 0.6 else rng.choice(images))
        after = AppendList(device, buffer_bytes=BUFFER, read_only=True)
        assert after.report.ok
        found = after.items()
        assert found == known[: len(found)]
        assert len(found) >= synced
        base = (0, tuple(found))


def test_runs_of_a_dropped_life_are_no_continuation():
    """Life A loses its first run and keeps the later ones; life B writes the same sizes to the
    same places and loses all but its first run, behind which A's still lie."""

    def life(device, name):
        items = AppendList(device, buffer_bytes=BUFFER, rng=SeededRandom(ord(name)))
        assert items.items() == []
        for n in range(30):
            items.append(b"%s %4d" % (name.encode(), n) + bytes(300))
        items.log.flush()
        durable, writes = device.durable_at(len(device.events))
        return durable, [write for write in writes if any(write.data)]

    device = CrashDevice(SLOTS, SEGMENT)
    durable, writes = life(device, "A")
    device = device.reopened(applied(durable, writes[1:]))
    durable, writes = life(device, "B")
    _, items = recovered(device, applied(durable, writes[:1]))
    assert items.report.ok
    assert 0 < len(items.places) < 15
    assert all(data.startswith(b"B") for data in items.items())


def test_crash_while_recovering_and_opening(seed):
    """Crash, open and write a little, crash at every one of those writes."""
    rng = random.Random(f"{seed} reopen")
    device = CrashDevice(SLOTS, SEGMENT)
    history = History(device, rng, 1)
    for _ in range(40):
        history.step()
    history.items.append(b"unsynced" * 200)
    history.items.log.flush()
    history.states.append(history.state())
    history.moments.append(len(device.events))
    for image in device.images(len(device.events), rng, mixed=8):
        second = device.reopened(image)
        again = History(second, rng, 2)
        assert again.states[0] in history.states
        again.items.append(b"after")
        again.states.append(again.state())
        again.moments.append(len(second.events))
        again.items.sync()
        again.note_synced(1)
        again.items.checkpoint()
        again.states.append(again.state())
        again.moments.append(len(second.events))
        for moment in range(len(second.events) + 1):
            for inner in second.images(moment, rng, mixed=3):
                check(again, moment, inner)


@pytest.mark.parametrize("call", ["write", "sync"])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_failure_of_every_single_call(call, error, seed):
    """The n-th write or sync fails, for every n: from then on nothing is called durable, and what
    was before comes back."""
    nth, failed, said = 0, True, 0
    while failed:
        nth, failed = nth + 1, False
        rng = random.Random(f"{seed} fail")
        inner = CrashDevice(SLOTS, SEGMENT)
        device = FaultDevice(inner, Fault(call, nth, error, keep=512 if call == "write" else None))
        history = History(device, rng, 1, events=inner)
        try:
            for _ in range(40):
                history.step()
            history.items.close()
        except ReadOnly as caught:
            failed, said = True, caught.errno
            if len(history.states) <= 40:  # else it was the close
                check_failed(history)
        except DeviceFailed as caught:  # the superblock's write: the log itself is whole
            failed, said = True, caught.errno
        assert not failed or said == error
        allowed = history.states[history.synced[-1][1] :]
        if len(history.states) <= 40:
            allowed.append(history.state())
        for image in inner.images(len(inner.events), rng, mixed=4) if failed else ():
            _, again = recovered(inner, image)
            assert again.report.ok
            assert (again.first, tuple(again.items())) in allowed
    assert nth > 4


def check_failed(history: History) -> None:
    """Nothing is taken or called durable any more; what there was is still read."""
    log = history.items.log
    stable = log.stable_position
    for attempt in (lambda: history.items.append(b"late"), log.sync, log.flush):
        with pytest.raises(ReadOnly):
            attempt()
    assert log.stable_position == stable
    history.state()


def test_threads_with_durable_commits(seed):
    """Several threads commit durably while the medium is photographed: a thread's items come back
    in its order, none missing that it was told is durable."""
    rng = random.Random(f"{seed} threads")
    device = CrashDevice(120, SEGMENT)
    items = AppendList(device, buffer_bytes=BUFFER, rng=SeededRandom(1), pool=WorkerPool(2))
    told: list[list[tuple[int, int]]] = [[] for _ in range(4)]  # (events, its n-th item)

    def work(number: int) -> None:
        for n in range(40):
            items.append(b"%d %d " % (number, n) + bytes(n * 31 % 700))
            items.sync()
            told[number].append((len(device.events), n))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for moment in rng.sample(range(len(device.events) + 1), 60):
        for image in device.images(moment, rng, mixed=3):
            _, again = recovered(device, image)
            assert again.report.ok
            found: list[list[int]] = [[] for _ in range(4)]
            for data in again.items():
                number, n, *_ = data.split()
                found[int(number)].append(int(n))
            for number in range(4):
                assert found[number] == list(range(len(found[number])))
                durable = [n for events, n in told[number] if events <= moment]
                assert len(found[number]) > max(durable, default=-1)


# Damage ------------------------------------------------------------------------------------------


def written_list(count=60, size=400, checkpoints=()):
    """Items that were synced now and then, and the device."""
    device = CrashDevice(SLOTS, SEGMENT)
    items = AppendList(device, buffer_bytes=BUFFER, rng=SeededRandom(5))
    for n in range(count):
        items.append(b"%6d" % n + bytes([n % 251]) * size)
        if n % 7 == 6:
            items.sync()
        if n in checkpoints:
            items.checkpoint()
    items.sync()
    return device, items


def places(items: AppendList, device: CrashDevice) -> dict[int, int]:
    """Item: address of its record on the medium."""
    slots = {segment["version"]: segment["slot"] for segment in items.log.segments()}
    return {
        index: device.address(slots[place[0] // SEGMENT], place[0] % SEGMENT)
        for index, place in items.places.items()
    }


def survivors(items: AppendList, count: int) -> dict[int, bytes]:
    return {index: items[index] for index in range(count) if index in items.places}


def test_any_flipped_bit_of_stable_data_is_reported_and_costs_one_record(seed):
    device, items = written_list()
    right = dict(enumerate(items.items()))
    rng = random.Random(f"{seed} flip")
    address = places(items, device)
    last_frame = max(address) - 16  # behind the last run header damage looks like a torn tail
    for index in range(0, last_frame, 3):
        image = bytearray(device.content)
        at = address[index] + rng.randrange(8 + 8 + len(right[index]))
        image[at] ^= 1 << rng.randrange(8)
        _, again = recovered(device, image)
        assert not again.report.ok
        problem = again.report.problems[0]
        assert problem.what == "record"
        assert problem.position == items.places[index][0]
        assert "offset" in problem.where
        left = survivors(again, len(right))
        assert left == {n: data for n, data in right.items() if n != index}


def test_every_flipped_bit_of_headers_keeps_later_data(seed):
    """Segment and run headers: at most one run is lost, what follows is replayed."""
    device, items = written_list(count=200)
    right = dict(enumerate(items.items()))
    segments = items.log.segments()
    for segment in segments[:-1]:
        for offset in (0, 20, 40, 92, 100, 110, 140):  # segment header, then its first run's
            image = bytearray(device.content)
            image[device.address(segment["slot"], offset)] ^= 4
            _, again = recovered(device, image)
            assert not again.report.ok, (segment["slot"], offset)
            left = survivors(again, len(right))
            assert all(right[n] == data for n, data in left.items())
            lost = sorted(set(right) - set(left))
            assert len(lost) <= BUFFER // 400 + 1
            assert max(left) == max(right)


def test_damaged_data_is_never_returned_by_a_read():
    device, items = written_list()
    address = places(items, device)
    device.content[address[3] + 100] ^= 1
    with pytest.raises(Corruption):
        items[3]
    assert items[4].startswith(b"     4")


def test_damage_stays_reported_until_it_is_dropped():
    device, items = written_list()
    items.close()
    image = bytearray(device.content)
    image[places(items, device)[10] + 50] ^= 1
    crashed = device.reopened(image)
    for _ in range(3):
        again = AppendList(crashed, buffer_bytes=BUFFER)
        assert [problem.what for problem in again.report.problems] == ["record"]
        assert again.report.needs_checkpoint
        again.append(b"goes on")
        again.close()
    again = AppendList(crashed, buffer_bytes=BUFFER)
    assert len(again.places) == 60 - 1 + 3
    again.checkpoint()
    again.close()
    healed = AppendList(crashed, buffer_bytes=BUFFER)
    assert healed.report.ok  # the damaged record is behind the checkpoint, and in no table


def test_damaged_checkpoint_falls_back_to_the_one_before():
    device, items = written_list(checkpoints=(20, 40))
    right = items.items()
    block = device.superblock
    for position, slot in ((block.checkpoint_position, block.checkpoint_slot),):
        image = bytearray(device.content)
        image[device.address(slot, position % SEGMENT) + 12] ^= 1
        _, again = recovered(device, image)
        assert "checkpoint" in again.report.problems[0].what
        assert again.items() == right
    image = bytearray(device.content)
    for position, slot in (
        (block.checkpoint_position, block.checkpoint_slot),
        (block.checkpoint_before, block.checkpoint_before_slot),
    ):
        image[device.address(slot, position % SEGMENT) + 12] ^= 1
    _, again = recovered(device, image)
    assert again.items() == right  # nothing was reused yet: from the beginning


def test_truncation_at_every_block_and_odd_byte_of_the_last_segments(tmp_path):
    path = tmp_path / "data"

    def open_list():
        device = FileDevice([(path, None)], SEGMENT, engine="test", preallocate=False)
        return device, AppendList(device, buffer_bytes=BUFFER)

    device, items = open_list()
    for n in range(60):
        items.append(b"%6d" % n + bytes(500))
        if n == 30:
            items.sync()
    right = items.items()
    items.close()
    device.close()
    whole = path.read_bytes()
    start = len(whole) - 3 * SEGMENT
    for size in sorted({*range(start, len(whole), 509), *range(start, len(whole), 4096)}):
        path.write_bytes(whole[:size])
        device, items = open_list()
        left = [items[n] for n in sorted(items.places)]
        assert left == right[: len(left)]
        assert items.report.ok == (len(left) == len(right))
        items.append(b"on it goes")
        items.sync()
        device.close()


@pytest.mark.parametrize("kind", ["zeros", "ones", "random"])
def test_overwritten_unsynced_tail_is_a_torn_tail(kind, seed):
    rng = random.Random(f"{seed} tail {kind}")
    device = CrashDevice(SLOTS, SEGMENT)
    items = AppendList(device, buffer_bytes=BUFFER, rng=SeededRandom(3))
    for n in range(20):
        items.append(b"%6d" % n + bytes(500))
    items.sync()
    synced, stable = len(items.places), items.log.stable_position
    for n in range(20, 45):
        items.append(b"%6d" % n + bytes(500))
    items.log.flush()
    right = items.items()
    slots = {segment["version"]: segment["slot"] for segment in items.log.segments()}
    for _ in range(40):
        image = bytearray(device.content)
        position = rng.randrange(stable, items.log.end)
        if position // SEGMENT not in slots:
            continue
        at = device.address(slots[position // SEGMENT], position % SEGMENT)
        size = min(rng.choice([1, 16, 512, 4096]), SEGMENT - position % SEGMENT)
        image[at : at + size] = {
            "zeros": bytes(size),
            "ones": b"\xff" * size,
            "random": rng.randbytes(size),
        }[kind]
        _, again = recovered(device, image)
        left = again.items()
        assert again.report.ok
        assert left == right[: len(left)]
        assert len(left) >= synced


@pytest.mark.parametrize("number", range(150))
def test_arbitrary_bytes_give_an_error_or_a_list(number, seed):
    rng = random.Random(f"{seed} garbage {number}")
    device, items = written_list(count=30, checkpoints=(10, 20))
    image = bytearray(device.content)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(image) // 2)
        size = rng.choice([1, 4, 64, 512, 4096, 20000])
        image[at : at + size] = rng.randbytes(len(image[at : at + size]))
    try:
        _, again = recovered(device, image)
    except SiltstoneError:
        return
    right = items.items()
    for index in again.places:
        try:
            assert again[index] == right[index]
        except SiltstoneError:
            pass  # damaged behind a checkpoint: said when it is read
    again.append(b"usable")
    again.sync()


# Kills -------------------------------------------------------------------------------------------

CHILD = """
import sys
sys.path[:0] = [{tests!r}]
from appendlist import AppendList
from siltstone.log.device import FileDevice
from siltstone.log.workers import WorkerPool
device = FileDevice([(sys.argv[1], None)], 65536, engine="test", preallocate=False)
items = AppendList(device, buffer_bytes=16384, pool=WorkerPool(2))
assert items.report.ok, items.report
number = items.next
print("open", number, items.first, flush=True)
while True:
    data = b"%d " % number * (number % 200)
    items.append(data)
    number += 1
    if number % 10 == 0:
        items.sync()
        print("synced", number, flush=True)
    if number % 100 == 0:
        items.trim(max(items.first, number - 150))
        items.compact()
        items.checkpoint()
"""


def test_kill_nine_of_a_writing_child(tmp_path, rng):
    path = tmp_path / "data"
    code = CHILD.format(tests=str(Path(__file__).parent.parent))
    synced = 0
    for _ in range(20):
        with subprocess.Popen(
            [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
        ) as child:
            word, number, *_ = child.stdout.readline().split()
            assert word == "open"
            assert int(number) >= synced
            for _ in range(rng.randint(1, 30)):
                synced = int(child.stdout.readline().split()[1])
            os.kill(child.pid, signal.SIGKILL)
            for line in child.stdout:  # what it had said before it died
                if line.startswith("synced") and line.endswith("\n"):
                    synced = int(line.split()[1])
    with FileDevice([(path, None)], 65536, engine="test", preallocate=False) as device:
        items = AppendList(device, buffer_bytes=16384)
        assert items.report.ok
        assert items.next >= synced
        for index in items.places:
            assert items[index] == b"%d " % index * (index % 200)
        items.close()


def test_a_thousand_restarts_keep_the_file_small():
    """Each life writes a little, syncs, and is cut off."""
    device = CrashDevice(20, SEGMENT)
    largest = 0
    for life in range(1000):
        items = AppendList(device, buffer_bytes=BUFFER, rng=SeededRandom(life))
        assert items.report.ok
        assert items.next == life
        items.append(b"%d" % life + bytes(200))
        items.trim(max(items.first, life - 50))
        live = -(-items.live_bytes() // SEGMENT)
        if len(items.log.segments()) > 2 * live + 2:
            items.log.roll()
            items.compact()
            items.checkpoint()
            items.checkpoint()
        items.sync()
        largest = max(largest, device.slots_present() - 2 * live)
        device = device.reopened(device.content)
    assert largest <= 8
    assert items.items() == [b"%d" % n + bytes(200) for n in range(949, 1000)]
