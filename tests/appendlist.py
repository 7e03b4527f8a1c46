"""A list of byte strings on an ordered log: the smallest engine that needs all of it.

Append at the end, trim at the front, several items at once or none of them; it checkpoints, moves
items out of sparse segments, and comes back after a crash. Order of locks: list, then log.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterable

from siltstone.log.device import Device
from siltstone.log.ordered_log import OrderedLog, record_size

ITEM, TRIM = 1, 2
INDEX = struct.Struct("<Q")
STATE = struct.Struct("<QQ")
ENTRY = struct.Struct("<QQI?")


class AppendList:
    def __init__(self, device: Device, **options: object) -> None:
        self.log = OrderedLog(device, **options)  # type: ignore[arg-type]
        self.first = self.next = 0
        self.places: dict[int, tuple[int, int, bool]] = {}  # index: position, payload size, grouped
        self._lock = threading.RLock()
        self.report = self.log.recover(self._visit, self._restore)

    # Recovery

    def _restore(self, state: bytes) -> None:
        self.first, self.next = STATE.unpack_from(state)
        for index, position, size, grouped in ENTRY.iter_unpack(state[STATE.size :]):
            self.places[index] = (position, size, grouped)

    def _visit(self, kind: int, position: int, payload: bytes, mark: int) -> None:
        if kind == ITEM:
            (index,) = INDEX.unpack_from(payload)
            self._place(index, position, len(payload), mark != position)
            self.next = max(self.next, index + 1)
        elif kind == TRIM:
            self.log.dead(position, len(payload))
            self._trimmed(*INDEX.unpack(payload))

    def _place(self, index: int, position: int, size: int, grouped: bool) -> None:
        self._forget(index)
        if index < self.first:
            self.log.dead(position, size, grouped=grouped)
        else:
            self.places[index] = (position, size, grouped)

    def _forget(self, index: int) -> None:
        place = self.places.pop(index, None)
        if place is not None:
            self.log.dead(place[0], place[1], grouped=place[2])

    def _trimmed(self, first: int) -> None:
        for index in range(self.first, first):
            self._forget(index)
        self.first = max(self.first, first)

    # Use

    def append(self, data: bytes) -> int:
        with self._lock:
            index = self.next
            payload = INDEX.pack(index) + data
            self.places[index] = (self.log.append(ITEM, payload), len(payload), False)
            self.next += 1
            return index

    def extend(self, items: Iterable[bytes], *, commit: bool = True) -> int:
        """All of them or none; the position to sync up to."""
        with self._lock:
            group, placed = self.log.group(), []
            for number, data in enumerate(items):
                payload = INDEX.pack(self.next + number) + data
                placed.append((group.append(ITEM, payload), len(payload), True))
            if not commit:
                group.abandon()
                for position, size, grouped in placed:
                    self.log.dead(position, size, grouped=grouped)
                return 0
            end = group.commit()
            for place in placed:
                self.places[self.next] = place
                self.next += 1
            return end

    def trim(self, first: int) -> None:
        """Forget the items below `first`."""
        with self._lock:
            payload = INDEX.pack(first)
            self.log.dead(self.log.append(TRIM, payload, urgent=True), len(payload))
            self._trimmed(min(first, self.next))

    def __getitem__(self, index: int) -> bytes:
        kind, payload = self.log.read(self.places[index][0])
        assert kind == ITEM
        assert INDEX.unpack_from(payload)[0] == index
        return payload[INDEX.size :]

    def items(self) -> list[bytes]:
        return [self[index] for index in range(self.first, self.next)]

    def sync(self) -> None:
        self.log.sync()

    def checkpoint(self) -> None:
        with self._lock:
            begun = self.log.begin_checkpoint()
            entries = [ENTRY.pack(index, *place) for index, place in self.places.items()]
            state = STATE.pack(self.first, self.next) + b"".join(entries)
        self.log.finish_checkpoint(begun, state)

    def compact(self, below: float = 0.5) -> int:
        """Move what lives in segments that are less than `below` full of it; how many moved."""
        size = self.log.device.segment_bytes
        with self._lock:
            sparse = {
                segment["version"]
                for segment in self.log.segments()
                if segment["state"] == "sealed" and segment["live_bytes"] < below * size
            }
            moved = [i for i, place in self.places.items() if place[0] // size in sparse]
            for index in moved:
                payload = INDEX.pack(index) + self[index]
                position = self.log.append(ITEM, payload, urgent=True)
                self._place(index, position, len(payload), False)
            return len(moved)

    def live_bytes(self) -> int:
        return sum(record_size(size, grouped) for _, size, grouped in self.places.values())

    def close(self) -> None:
        self.log.close()
