"""Slots that no segment has any more, but that readers of other openings may still read.

Such a reader knows the segments of its moment and holds a lock that stands for the checkpoint it
began at (log/openers.py). A slot whose segment goes afterwards is kept back until nobody looks at a
checkpoint of before. That is bounded, since the quota is: beyond an eighth of the slots, and when
the journal would have no room, the oldest are used again all the same. Their reader then finds
other bytes, which fail their checksums: SnapshotTooOld.

The caller holds the engine's work lock.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from siltstone.log.device import Device
from siltstone.log.openers import Writer
from siltstone.log.ordered_log import OrderedLog

SHARE: Final = 8  # of the slots, at most one in so many is kept back


class HeldSlots:
    """See the module's docstring. `opener`: of the writer; None: nobody can look."""

    def __init__(self, device: Device, log: OrderedLog, opener: Writer | None) -> None:
        self._device, self._log, self._opener = device, log, opener
        self._held: deque[tuple[int, int]] = deque()  # newest checkpoint then, slot; oldest first
        self._checkpoints: set[int] = set()  # those that somebody may look at
        if opener is not None:
            opener.others(*self._newest())  # readers of before our time: kept apart by it

    def __len__(self) -> int:
        return len(self._held)

    def _newest(self) -> tuple[int, int]:
        block = self._device.superblock
        return block.checkpoint_before, block.checkpoint_position

    def _looked_at(self) -> list[int]:
        """The checkpoints that readers look at; 0: one of before our time."""
        if self._opener is None:
            return []
        newest = self._newest()
        known = {0, *newest, *self._checkpoints}
        found = [position for position in known if self._opener.looked_at(position)]
        self._checkpoints = {*newest, *found}
        return found

    def give(self, slot: int) -> None:
        """A slot whose segment went, in a record that is on the medium."""
        # Asked after that: who takes the lock later reads the record.
        if not self._looked_at():
            self._log.give_slot(slot)
            return
        self._held.append((self._newest()[1], slot))
        while len(self._held) > self._log.slots_max // SHARE:
            self.give_oldest()

    def give_oldest(self) -> bool:
        """Use it again whoever looks; False: there is none."""
        if not self._held:
            return False
        self._log.give_slot(self._held.popleft()[1])
        return True

    def release(self) -> None:
        """What nobody needs any more."""
        if not self._held:
            return
        oldest = min(self._looked_at(), default=None)
        while self._held and (oldest is None or self._held[0][0] < oldest):
            self.give_oldest()
