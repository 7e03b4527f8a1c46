"""Recovery of an ordered log: which checkpoint, what is replayed, how it ended.

Decides; the record loop is replay.pyx's. Reads only, except for one sync and the superblock's
clean mark at the very end. The engine sees its checkpointed state first (`restore`), then every
record of the stream behind it in order (`visit`), a group's records at its commit mark or never.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from siltstone.errors import Corruption, SiltstoneError
from siltstone.log.checkpoint import Checkpoint, Collector
from siltstone.log.regroup import Replay, Visitor
from siltstone.log.replay import Walk

if TYPE_CHECKING:
    from siltstone.log.ordered_log import OrderedLog

# Payloads of open groups are kept up to this; of the rest only the places, read again later.
KEPT_BYTES_MAX = 4 << 20
CHECKPOINT_PART = 0x71
CHECKPOINT_END = 0x72

Visit = Callable[[int, int, bytes, int], object]
Restore = Callable[[bytes], object]


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something below the stable position that is not what was written."""

    what: str
    position: int
    where: str

    def __str__(self) -> str:
        return f"{self.what} at position {self.position} ({self.where})"


@dataclasses.dataclass
class Recovery:
    """How it went. `outcome`: "new", "clean", or "torn" (the end that a crash leaves)."""

    outcome: str = "new"
    end: int = 0
    stable: int = 0
    records: int = 0
    groups: int = 0
    groups_open: int = 0
    segments_read: int = 0
    checkpoint: int = 0
    needs_checkpoint: bool = False
    problems: list[Problem] = dataclasses.field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems


def recover(
    log: OrderedLog,
    recovery: Recovery,
    visit: Visit | Visitor | None,
    restore: Restore | None,
) -> None:
    """Fill the log's segment table, show the engine everything, set the append point."""
    block = log.device.superblock
    checkpoint, kept = _load_checkpoint(log, recovery)
    if checkpoint is not None:
        recovery.checkpoint = checkpoint.start
        for segment in checkpoint.segments:
            log._enter(*segment)
        for version, slot, salt in checkpoint.met:
            # Records of the engine's state may lie in them, behind what the table says.
            log._enter(version, slot, salt)
            log._filled(version, log.device.segment_bytes)
        if restore is not None:
            restore(checkpoint.state)
    replay = _Replay(log, recovery, checkpoint, visit)
    replay.run(block.stable_position)
    if checkpoint is None and block.checkpoint_before and not replay.whole():
        raise _no_way_in(log, recovery)
    walk = replay.walk
    recovery.end = replay.end
    recovery.stable = walk.stable
    if replay.end == 0:
        recovery.outcome = "new"
    elif block.clean and not recovery.problems and block.stable_position == replay.end:
        recovery.outcome = "clean"
    else:
        recovery.outcome = "torn"
    version, slot, _ = walk.segment
    version_min = max(walk.version_max, replay.end // log.device.segment_bytes)
    next_slots = (0xFFFFFFFF, 0xFFFFFFFF) if walk.chain_broken else walk.next_slots
    recovery.needs_checkpoint = bool(recovery.problems) or (replay.end > 0 and walk.chain_broken)
    log._start(replay.end, version, slot, next_slots, version_min, kept)
    if not log.read_only:
        _make_durable(log, recovery)


def _no_way_in(log: OrderedLog, recovery: Recovery) -> Corruption:
    """Segments from before the checkpoints have been used again, and both of these are lost."""
    name = log.device.handle.names[0]
    return Corruption(
        f"neither checkpoint of {name} can be read ({'; '.join(map(str, recovery.problems))}): "
        "siltstone repair makes a store of the rest",
        path=name,
        offset=log.device.superblock.checkpoint_position,
    )


def _make_durable(log: OrderedLog, recovery: Recovery) -> None:
    """What was read may be in the operating system's memory only: sync before calling it stable."""
    block = log.device.superblock
    if recovery.outcome == "torn":
        log.device.handle.mark_written()
        log.device.sync()
    if block.clean or recovery.outcome == "torn":
        log.device.write_superblock(clean=False, stable_position=recovery.end)


# Checkpoints ---------------------------------------------------------------------------------


def _load_checkpoint(
    log: OrderedLog, recovery: Recovery
) -> tuple[Checkpoint | None, tuple[tuple[int, int], tuple[int, int]]]:
    """The newest that can be read, and (start, replay_from) of both that are kept."""
    block = log.device.superblock
    none = (0, 0)
    kept = [none, none]
    chosen: Checkpoint | None = None
    places = [
        (block.checkpoint_position, block.checkpoint_slot),
        (block.checkpoint_before, block.checkpoint_before_slot),
    ]
    for number, (position, slot) in enumerate(places):
        if position == 0:
            continue
        try:
            found = _read_checkpoint(log, position, slot)
        except SiltstoneError as error:
            if chosen is None:
                where = log.device.handle.describe(slot, position % log.device.segment_bytes)
                recovery.problems.append(Problem(f"checkpoint: {error}", position, where))
            continue
        kept[number] = (found.start, found.replay_from)
        if chosen is None:
            chosen = found
    return chosen, (kept[0], kept[1])


def _read_checkpoint(log: OrderedLog, position: int, slot: int) -> Checkpoint:
    walk = Walk(log.device.handle, log.device.superblock.uuid)
    collector = Collector(position)
    event = walk.start(slot, position)
    met = [walk.segment]
    while event[0] != "end":
        if event[0] == "segment":
            met.append(walk.segment)
        if event[0] == "damage":
            raise Corruption(f"{event[1]} is damaged")
        if event[0] == "record" and event[1] == CHECKPOINT_PART:
            collector.part(event[3])
        elif event[0] == "record" and event[1] == CHECKPOINT_END:
            found = collector.end(event[3])
            if found is not None:
                return dataclasses.replace(found, met=met)
        event = walk.next(CHECKPOINT_PART, CHECKPOINT_END)
    raise Corruption("its end is missing")


# Replay --------------------------------------------------------------------------------------


class _Replay:
    """One walk from where the checkpoint says to the end of the stream."""

    def __init__(
        self,
        log: OrderedLog,
        recovery: Recovery,
        checkpoint: Checkpoint | None,
        visit: Visit | Visitor | None,
    ) -> None:
        self.log = log
        self.recovery = recovery
        self.checkpoint = checkpoint
        self.visit = visit
        self.start = checkpoint.start if checkpoint is not None else 0
        self.end = 0
        self._first = 0  # version of the first segment

    def run(self, stable: int) -> None:
        log = self.log
        self.walk = Walk(
            log.device.handle,
            log.device.superblock.uuid,
            max(stable, self.start),
            log.device.slots_present(),
        )
        replay = Replay(log, self.walk, self.visit, self.start, KEPT_BYTES_MAX)
        event = self.walk.start(*self._begin())
        self._first = self.walk.segment[0]
        while event[0] != "end":
            if event[0] == "segment":
                self._segment()
            elif event[0] == "damage":
                self._damage(*event[1:])
            elif event[0] == "incomplete":
                self._incomplete(*event[1:])
            elif event[0] == "stopped":
                raise Corruption(f"the engine refused a record: {event[1]}")
            event = replay.run()
        self.end = event[1]
        if self.checkpoint is not None:
            replay.never_committed(self.checkpoint.groups)
        self._note(replay)

    def whole(self) -> bool:
        """Whether this was the stream from its very first segment on, none missing."""
        gaps = {Walk.REASONS[1], Walk.REASONS[4]}
        return self._first == 1 and all(p.what not in gaps for p in self.recovery.problems)

    def _note(self, replay: Replay) -> None:
        self.recovery.records = replay.records
        self.recovery.groups = replay.groups
        self.recovery.groups_open = replay.groups_open
        version, _, _ = self.walk.segment
        if version:
            segment_bytes = self.log.device.segment_bytes
            base = version * segment_bytes
            self.log._filled(version, max(0, min(segment_bytes, self.end - base)))

    def _begin(self) -> tuple[int, int]:
        if self.checkpoint is None:
            return 0, 0
        position = self.checkpoint.replay_from
        slot = self.checkpoint.slot_of(position // self.log.device.segment_bytes)
        if slot is None:
            raise Corruption(f"the checkpoint's table lacks the segment of position {position}")
        return slot, position

    def _segment(self) -> None:
        version, slot, salt = self.walk.segment
        self.recovery.segments_read += 1
        self.log._enter(version, slot, salt)
        # Until the walk has seen more: its end is known when the next one begins.
        self.log._filled(version, self.log.device.segment_bytes)

    def _damage(self, what: str, position: int, slot: int) -> None:
        where = self.log.device.handle.describe(slot, position % self.log.device.segment_bytes)
        self.recovery.problems.append(Problem(what, position, where))
        if self.walk.segment[0]:
            self._segment()

    def _incomplete(self, position: int, found: int, expected: int) -> None:
        where = f"{found} of {expected} records are there"
        self.recovery.problems.append(Problem("incomplete group", position, where))
