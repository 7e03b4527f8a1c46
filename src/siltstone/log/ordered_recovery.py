"""Recovery of an ordered log: which checkpoint, what is replayed, how it ended.

Decides; the record loop is replay.pyx's. Reads only, except for one sync and the superblock's
clean mark at the very end. The engine sees its checkpointed state first (`restore`), then every
record of the stream behind it in order (`visit`), a group's records at its commit mark or never.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from siltstone.errors import Corruption, SiltstoneError
from siltstone.log.checkpoint import Checkpoint, Collector
from siltstone.log.checksum import crc32c
from siltstone.log.replay import Walk

if TYPE_CHECKING:
    from siltstone.log.ordered_log import OrderedLog

KIND_MAX = 0x6F
COMMIT = 0x70
CHECKPOINT_PART = 0x71
CHECKPOINT_END = 0x72
GROUPED = 0x80
GROUP_ID_SIZE = 8
COMMIT_SIZE = 8 + 4 + 4
# Payloads of open groups are kept up to this; of the rest only the positions, read again later.
KEPT_BYTES_MAX = 4 << 20

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


@dataclasses.dataclass
class _Group:
    records: list[tuple[int, int, int, int, bytes | None]] = dataclasses.field(default_factory=list)
    crc: int = 0


def recover(
    log: OrderedLog, recovery: Recovery, visit: Visit | None, restore: Restore | None
) -> None:
    """Fill the log's segment table, show the engine everything, set the append point."""
    block = log.device.superblock
    checkpoint, kept = _load_checkpoint(log, recovery)
    if checkpoint is not None:
        recovery.checkpoint = checkpoint.start
        for segment in checkpoint.segments:
            log._enter(*segment)
        if restore is not None:
            restore(checkpoint.state)
    replay = _Replay(log, recovery, checkpoint, visit)
    replay.run(block.stable_position)
    walk = replay.walk
    recovery.end = replay.end
    recovery.stable = walk.stable
    recovery.groups_open = len(replay.groups)
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
    while event[0] != "end":
        if event[0] == "damage":
            raise Corruption(f"{event[1]} is damaged")
        if event[0] == "record" and event[1] == CHECKPOINT_PART:
            collector.part(event[3])
        elif event[0] == "record" and event[1] == CHECKPOINT_END:
            found = collector.end(event[3])
            if found is not None:
                return found
        event = walk.next()
    raise Corruption("its end is missing")


# Replay --------------------------------------------------------------------------------------


class _Replay:
    """One walk from where the checkpoint says to the end of the stream."""

    def __init__(
        self,
        log: OrderedLog,
        recovery: Recovery,
        checkpoint: Checkpoint | None,
        visit: Visit | None,
    ) -> None:
        self.log = log
        self.recovery = recovery
        self.checkpoint = checkpoint
        self.visit = visit
        self.start = checkpoint.start if checkpoint is not None else 0
        self.groups: dict[int, _Group] = {}
        self.kept_bytes = 0
        self.end = 0

    def run(self, stable: int) -> None:
        log = self.log
        self.walk = Walk(
            log.device.handle,
            log.device.superblock.uuid,
            max(stable, self.start),
            log.device.slots_present(),
        )
        event = self.walk.start(*self._begin())
        while event[0] != "end":
            if event[0] == "record":
                self._record(*event[1:])
            elif event[0] == "segment":
                self._segment()
            else:
                self._damage(*event[1:])
            event = self.walk.next()
        self.end = event[1]
        self._never_committed()
        version, _, _ = self.walk.segment
        if version:
            segment_bytes = log.device.segment_bytes
            base = version * segment_bytes
            log._filled(version, max(0, min(segment_bytes, self.end - base)))

    def _never_committed(self) -> None:
        """What groups that were open at the checkpoint had appended counts as live in its table."""
        for identity in self.checkpoint.groups if self.checkpoint is not None else ():
            for _, at, _, size, _ in self.groups.get(identity, _Group()).records:
                if at < self.start:
                    self.log.dead(at, size, grouped=True)

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

    def _record(self, kind: int, position: int, payload: bytes, checksum: int) -> None:
        if kind & GROUPED:
            self._grouped(kind & ~GROUPED, position, payload, checksum)
        elif position < self.start:
            return
        elif kind == COMMIT:
            self._commit(position, payload)
        elif kind <= KIND_MAX:
            self.log.live(position, len(payload))
            self._show(kind, position, payload, position)

    def _show(self, kind: int, position: int, payload: bytes, mark: int) -> None:
        if kind != COMMIT:
            self.recovery.records += 1
        if self.visit is not None:
            self.visit(kind, position, payload, mark)

    # Groups

    def _grouped(self, kind: int, position: int, payload: bytes, checksum: int) -> None:
        identity = int.from_bytes(payload[:GROUP_ID_SIZE], "little") or position
        group = self.groups.setdefault(identity, _Group())
        group.crc = crc32c(checksum.to_bytes(4, "little"), group.crc)
        body: bytes | None = payload[GROUP_ID_SIZE:]
        if self.kept_bytes + len(payload) > KEPT_BYTES_MAX:
            body = None
        else:
            self.kept_bytes += len(payload)
        slot = self.walk.segment[1]
        group.records.append((kind, position, slot, len(payload) - GROUP_ID_SIZE, body))

    def _commit(self, position: int, payload: bytes) -> None:
        identity = int.from_bytes(payload[:8], "little")
        count = int.from_bytes(payload[8:12], "little")
        expected = int.from_bytes(payload[12:16], "little")
        group = self.groups.pop(identity, _Group())
        self.kept_bytes -= sum(
            len(body) + GROUP_ID_SIZE for *_, body in group.records if body is not None
        )
        if len(group.records) != count or group.crc != expected:
            where = f"{len(group.records)} of {count} records are there"
            self.recovery.problems.append(Problem("incomplete group", position, where))
            return
        self.recovery.groups += 1
        for kind, at, slot, size, body in group.records:
            if at >= self.start:  # else the checkpoint's table counts it already
                self.log.live(at, size, grouped=True)
            self._show(kind, at, self._body(at, slot, size, body), position)
        self._show(COMMIT, position, payload[COMMIT_SIZE:], position)

    def _body(self, position: int, slot: int, size: int, body: bytes | None) -> bytes:
        if body is not None:
            return body
        offset = position % self.log.device.segment_bytes + 8 + GROUP_ID_SIZE
        data: Any = self.log.device.read(slot, offset, size)
        return bytes(data)
