"""Second implementations of the seams: time, chance, and devices that fail or crash on purpose."""

from __future__ import annotations

import dataclasses
import errno
import os
import random
import threading
from collections.abc import Callable, Iterator

from siltstone.log.device import Device
from siltstone.log.device_io import DeviceHandle
from siltstone.log.superblock import FIRST_DATA_OFFSET, Superblock, newest

HEADER_SLOT = 0xFFFFFFFF
NOWAIT = 1  # flag of a read
SECTOR = 512
BLOCK = 4096


class ManualClock:
    """Time that passes only when told to."""

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self.wall_ms = now_ms
        self.elapsed_ns = 0

    def now_ms(self) -> int:
        return self.wall_ms

    def monotonic_ns(self) -> int:
        return self.elapsed_ns

    def sleep(self, seconds: float) -> None:
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        self.wall_ms += round(seconds * 1000)
        self.elapsed_ns += round(seconds * 1e9)


class SeededRandom:
    """Chance that repeats: one seed, one run."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)

    def bytes(self, size: int) -> bytes:
        return self._random.randbytes(size)

    def uniform(self) -> float:
        return self._random.random()


@dataclasses.dataclass
class Fault:
    """What happens to the n-th call (from 1, counted for each kind of call) and, with `last`, to
    all from the n-th to the `last`-th. Writes of nothing but zeros (new segments) are not counted.

    `error`: errno to fail with. `keep`: bytes of a write that still reach the device before it
    fails, or bytes that a read returns. `before`: called first (a delay, a barrier).
    """

    call: str
    nth: int = 1
    error: int = 0
    keep: int | None = None
    before: Callable[[], object] | None = None
    last: int = 0

    def hits(self, call: str, count: int) -> bool:
        return call == self.call and self.nth <= count <= max(self.nth, self.last)


class FaultDevice(Device):
    """Another device with faults in its calls. `calls` counts; `faults` may be added later."""

    def __init__(self, inner: Device, *faults: Fault) -> None:
        self.inner = inner
        self.faults = list(faults)
        self.full = False  # writes of zeros, which make the file grow, fail with ENOSPC
        self.cached = True  # False: reads that must not wait are refused
        self.calls = {"read": 0, "write": 0, "sync": 0}
        self.growable = inner.growable
        self.handle = DeviceHandle.of_object(
            _Faulty(self), inner.segment_bytes, inner.segment_count, FIRST_DATA_OFFSET
        )
        self.superblock = inner.superblock

    def add(self, call: str, error: int = 0, **more: object) -> None:
        """A fault in the next call of that kind."""
        self.faults.append(Fault(call, self.calls[call] + 1, error, **more))  # type: ignore

    def fault(self, call: str) -> Fault | None:
        self.calls[call] += 1
        for fault in self.faults:
            if fault.hits(call, self.calls[call]):
                if fault.before is not None:
                    fault.before()
                return fault
        return None

    def slots_present(self) -> int:
        return self.inner.slots_present()

    def punch(self, slot: int, begin: int = 0) -> None:
        self.inner.punch(slot, begin)

    def slots_with_holes(self) -> set[int]:
        return self.inner.slots_with_holes()

    def truncate(self, slots: int) -> None:
        self.inner.truncate(slots)

    @property
    def size_on_disk(self) -> int:
        return self.inner.size_on_disk

    def close(self) -> None:
        self.inner.close()


class _Faulty:
    """The calls of a FaultDevice's handle."""

    def __init__(self, device: FaultDevice) -> None:
        self._device = device

    def read(self, slot: int, offset: int, size: int, flags: int) -> bytes:
        if flags & NOWAIT and not self._device.cached:
            raise BlockingIOError(errno.EAGAIN, "not in memory")
        fault = self._device.fault("read")
        if fault is not None and fault.error:
            raise OSError(fault.error, os.strerror(fault.error))
        data = self._device.inner.read(slot, offset, size, flags)
        return data if fault is None or fault.keep is None else data[: fault.keep]

    def write(self, slot: int, offset: int, data: bytes) -> None:
        if self._device.full and not any(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fault = self._device.fault("write") if any(data) else None
        if fault is None or not fault.error:
            self._device.inner.write(slot, offset, data)
            return
        if fault.keep:
            self._device.inner.write(slot, offset, data[: fault.keep])
        raise OSError(fault.error, os.strerror(fault.error))

    def sync(self) -> None:
        fault = self._device.fault("sync")
        if fault is not None and fault.error:
            raise OSError(fault.error, os.strerror(fault.error))
        self._device.inner.sync()


# Crashes -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Write:
    address: int
    data: bytes


class CrashDevice(Device):
    """Memory that remembers every write and sync, and makes images of what a crash could leave.

    Between two syncs each sector (or block) of the medium may hold any of the states that it had
    in that time, independently of every other one: unsynced writes kept, dropped, torn, reordered.
    """

    growable = True

    def __init__(
        self,
        segment_count: int,
        segment_bytes: int,
        *,
        engine: str = "test",
        content: bytes | None = None,
    ) -> None:
        self.size = FIRST_DATA_OFFSET + segment_count * segment_bytes
        self.content = bytearray(content if content is not None else bytes(self.size))
        self.start = bytes(self.content)
        self._lock = threading.Lock()
        self.events: list[Write | None] = []  # None = a sync that returned
        self.observer: Callable[[], object] | None = None  # called after every event
        self.handle = DeviceHandle.of_object(
            _Recording(self), segment_bytes, segment_count, FIRST_DATA_OFFSET
        )
        if content is None:
            self.superblock = Superblock(
                engine, bytes(16), segment_bytes, segment_count, segment_count
            )
            self.write_superblock()
            self.start, self.events = bytes(self.content), []
        else:
            self.superblock = newest(bytes(self.content[:FIRST_DATA_OFFSET]), "image")

    def address(self, slot: int, offset: int) -> int:
        if slot == HEADER_SLOT:
            return offset
        return FIRST_DATA_OFFSET + slot * self.segment_bytes + offset

    def record(self, event: Write | None) -> None:
        with self._lock:
            if event is not None:
                self.content[event.address : event.address + len(event.data)] = event.data
            self.events.append(event)
        if self.observer is not None:
            self.observer()

    def slots_present(self) -> int:
        used = len(bytes(self.content).rstrip(b"\0"))
        return max(0, -(-(used - FIRST_DATA_OFFSET) // self.segment_bytes))

    def punch(self, slot: int, begin: int = 0) -> None:
        self.record(Write(self.address(slot, begin), bytes(self.segment_bytes - begin)))

    def truncate(self, slots: int) -> None:
        for slot in range(slots, self.slots_present()):
            self.punch(slot)

    def reopened(self, content: bytes | bytearray) -> CrashDevice:
        """A device of the same shape over an image."""
        return CrashDevice(self.segment_count, self.segment_bytes, content=bytes(content))

    def durable_at(self, moment: int) -> tuple[bytearray, list[Write]]:
        """What is on the medium for sure after `moment` events, and the writes that may be."""
        synced = max((i + 1 for i in range(moment) if self.events[i] is None), default=0)
        image = bytearray(self.start)
        for event in self.events[:synced]:
            if event is not None:
                image[event.address : event.address + len(event.data)] = event.data
        return image, [event for event in self.events[synced:moment] if event is not None]

    def images(self, moment: int, rng: random.Random, *, mixed: int = 4) -> Iterator[bytearray]:
        """Media that a power cut after `moment` events may leave: all unsynced writes dropped, all
        kept, only the last or the first (that is no zeros) dropped, and `mixed` times any mix of
        whole writes, blocks or sectors.
        """
        durable, writes = self.durable_at(moment)
        yield durable
        if not writes:
            return
        yield applied(durable, writes)
        yield applied(durable, writes[:-1])
        first = next((n for n, write in enumerate(writes) if any(write.data)), 0)
        yield applied(durable, writes[:first] + writes[first + 1 :])
        for number in range(mixed):
            if number % 3 == 0:
                yield applied(durable, [write for write in writes if rng.random() < 0.5])
            else:
                yield torn(durable, writes, rng, SECTOR if number % 3 == 1 else BLOCK)


def applied(image: bytearray, writes: list[Write]) -> bytearray:
    result = bytearray(image)
    for write in writes:
        result[write.address : write.address + len(write.data)] = write.data
    return result


def torn(image: bytearray, writes: list[Write], rng: random.Random, unit: int) -> bytearray:
    """Every unit of the medium holds one of the states it had, chosen by itself."""
    states: dict[int, list[bytes]] = {}
    running = bytearray(image)
    for write in writes:
        running[write.address : write.address + len(write.data)] = write.data
        first, last = write.address // unit, (write.address + len(write.data) - 1) // unit
        for number in range(first, last + 1):
            now = bytes(running[number * unit : (number + 1) * unit])
            before = bytes(image[number * unit : (number + 1) * unit])
            states.setdefault(number, [before]).append(now)
    result = bytearray(image)
    for number, choices in states.items():
        chosen = rng.choice(choices)
        result[number * unit : number * unit + len(chosen)] = chosen
    return result


class _Recording:
    """The calls of a CrashDevice's handle."""

    def __init__(self, device: CrashDevice) -> None:
        self._device = device

    def read(self, slot: int, offset: int, size: int, flags: int) -> bytes:
        start = self._device.address(slot, offset)
        return bytes(self._device.content[start : start + size])

    def write(self, slot: int, offset: int, data: bytes) -> None:
        self._device.record(Write(self._device.address(slot, offset), data))

    def sync(self) -> None:
        self._device.record(None)
