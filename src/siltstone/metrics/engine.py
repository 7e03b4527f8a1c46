"""The engine behind `Metrics`: opens, recovers, journals, seals, checkpoints, closes.

Owns one device under one quota: the ordered log is the journal, and the slots that it does not use
hold segments of chunks. Samples go to the head and the journal (head.pyx); what the head seals is
`pending` until it is written to fresh segments; merges (merge.py) turn those into raw segments of
long chunks and derive tiers; retention.py drops the oldest before room is needed.

Locks, in this order: `work` (one change to segments, checkpoint or delete at a time), `lock` (the
registry, the table of segments, pending pieces, tombstones: never held during I/O), the head's, the
log's. After a failed journal write nothing is accepted until it is opened again; a failed write to
a segment changes nothing, is counted, and is tried again: what it held is in the journal.
"""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from typing import Any, Final

import numpy as np

from siltstone.clock import SYSTEM_CLOCK, SYSTEM_RANDOM, Clock, Random
from siltstone.errors import (
    ConfigError,
    Corruption,
    LimitReached,
    ReadOnly,
    SiltstoneError,
)
from siltstone.log.device import Device
from siltstone.log.openers import Writer
from siltstone.log.ordered_log import OrderedLog
from siltstone.log.workers import WorkerPool
from siltstone.metrics.ahead import Ahead
from siltstone.metrics.change import Change, Piece, cut
from siltstone.metrics.head import NONE_MS, Head
from siltstone.metrics.held import HeldSlots
from siltstone.metrics.keys import Limits
from siltstone.metrics.merge import Merger
from siltstone.metrics.query import Reader
from siltstone.metrics.readcache import ReadCache
from siltstone.metrics.registry import Registry
from siltstone.metrics.replay import Arrivals
from siltstone.metrics.retention import Retention
from siltstone.metrics.segment import FRESH, Segment, load_parts
from siltstone.metrics.settings import TIERS, MetricsSettings
from siltstone.metrics.state import (
    CHANGED,
    DELETED,
    EVER,
    FORMAT,
    MARKED,
    POINTS,
    RUN,
    SERIES,
    Changed,
    Live,
    State,
    Tombstone,
    pack,
    unpack_changed,
    unpack_mark,
    unpack_state,
    unpack_tombstone,
)

EXTENT_BYTES: Final = 1 << 18
JOURNAL_BYTES_MAX: Final = 64 << 20  # replayed in about a second
UNCOLLECTED_MAX: Final = 4 << 20
UNCOLLECTED_HARD: Final = 64 << 20
GROUP_CHUNKS_MAX: Final = 8192  # of one record that says which samples were consumed
COUNTERS: Final = (
    *("segments_opened", "segments_dropped", "segment_writes", "segment_write_bytes"),
    *("write_errors", "read_errors", "corrupt_chunks", "corrupt_indexes", "checkpoints", "merges"),
    *("merged_chunks_in", "merged_chunks_out", "merged_samples_in", "merged_samples_out"),
    *(
        "merged_bytes_in",
        "merged_bytes_out",
        "merged_duplicates",
        "tier_points",
        "reads",
        "reads_again",
        "tier_reads",
    ),
    *("pressure_waits", "deletes", "series_created", "series_forgotten", "flushes", "syncs"),
    *("index_reads", "chunk_reads", "dropped_bytes", "dropped_samples"),
)


class Engine:
    """See the module's docstring. `own_tiers`: the data's, where it has any, not the settings'.
    `opener`: knows of readers beside this writer."""

    def __init__(
        self,
        device: Device,
        settings: MetricsSettings,
        *,
        pool: WorkerPool | None = None,
        clock: Clock = SYSTEM_CLOCK,
        rng: Random = SYSTEM_RANDOM,
        own_tiers: bool = False,
        opener: Writer | None = None,
    ) -> None:
        self.device, self.settings, self.clock, self.rng = device, settings, clock, rng
        self.limits = Limits(
            settings.labels_max, settings.label_name_bytes_max, settings.label_value_bytes_max
        )
        self.counters = dict.fromkeys(COUNTERS, 0)
        self._own_tiers = own_tiers
        self.work = threading.RLock()
        self.lock = threading.RLock()
        self.log = OrderedLog(
            device, pool=pool, read_only=settings.read_only, clock=clock, rng=rng,
            buffer_bytes=min(EXTENT_BYTES, max(16384, settings.segment_size // 4)),
        )  # fmt: skip
        self.held = HeldSlots(device, self.log, opener)
        self.extent_bytes = min(EXTENT_BYTES, settings.segment_size // 8)
        self.head = Head(
            self.log, settings.window_ms, self.relieve, self.pressed,
            uncollected_max=min(UNCOLLECTED_MAX, settings.segment_size),
        )  # fmt: skip
        self.registry = Registry()
        self.cache = ReadCache(settings.cache)
        self.ahead = Ahead()
        self.segments: dict[int, Segment] = {}
        self.pending: list[Piece] = []
        self.tombstones: list[Tombstone] = []
        self.rest: dict[int, tuple[int, int]] = {}  # hash of a key: newest, derived
        self.marks: dict[str, int] = {}
        self.problems: list[str] = []
        self.readers = 0
        self._version = 0
        self._next_id = 1
        self._opened_at_checkpoint = 0
        self.reader = Reader(self)
        self.merger = Merger(self)
        self.retention = Retention(self)
        self._recover()

    # Recovery

    def _recover(self) -> None:
        arrivals = Arrivals()
        visitors = {SERIES: arrivals.series, POINTS: arrivals.points, RUN: arrivals.run}

        def visit(kind: int, position: int, payload: bytes, mark: int) -> None:
            self.log.dead(position, len(payload))
            if kind in visitors:
                visitors[kind](payload)
            elif kind == CHANGED:
                record = unpack_changed(payload)
                self._restore_segments(record.segments)
                self._replay_dropped(record)
                self.head.sequence = max(self.head.sequence, record.sequence)
                arrivals.changed(record)
            elif kind == DELETED:
                tombstone = unpack_tombstone(payload)
                self.tombstones.append(tombstone)
                self.head.sequence = max(self.head.sequence, tombstone.sequence)
                arrivals.deleted(tombstone)
            elif kind == MARKED:
                reached = unpack_mark(payload)
                self.marks[reached.key] = reached.value

        self.recovery = self.log.recover(visit, self._restore)
        self.problems += [str(problem) for problem in self.recovery.problems]
        arrivals.start = self.recovery.checkpoint
        self._next_id = arrivals.largest + 1
        self._opened_at_checkpoint = self.log.stats()["segments_opened"]
        for id, key in arrivals.keys.items():
            self.registry.add(key, id)
            self.head.enter(key, id, *self._known(key))
        for segment in [one for one in self.segments.values() if not one.sealed]:
            self.segments[segment.version] = self._loaded(segment)
        for arrived in arrivals.left():
            if arrived.id in self.head:
                self.head.restore(arrived.id, arrived.times, arrived.values, arrived.late)
                self.head.note_newest(arrived.id, arrived.newest)
        self.head.journal_max = self.journal_segments_max * self.settings.segment_size
        if not self.settings.read_only:
            self.retention.keep_quota()
        new = self.recovery.outcome == "new"  # its first checkpoint says which tiers it has
        if (new or self.recovery.needs_checkpoint) and not self.settings.read_only:
            self.checkpoint()

    def _restore(self, payload: bytes) -> None:
        state = unpack_state(payload)
        if self._own_tiers:
            self.settings._set("tiers", tuple(state.tiers))
        elif tuple(state.tiers) != tuple(self.settings.tiers):
            has, asked = TIERS.show(state.tiers), TIERS.show(self.settings.tiers)
            raise ConfigError(f'[metrics] tiers: the data has "{has}", not "{asked}"')
        self._version, self.head.sequence = state.version, state.sequence
        self.tombstones = list(state.tombstones)
        self.marks = dict(state.marks)
        self.retention.dropped_until_ms = state.dropped_until_ms
        self._restore_segments(state.segments)
        hashes = np.frombuffer(state.live.hashes, "<u8").tolist()
        newest = np.frombuffer(state.live.newest, "<i8").tolist()
        derived = np.frombuffer(state.live.derived, "<i8").tolist()
        self.rest = dict(zip(hashes, zip(newest, derived, strict=True), strict=True))

    def _restore_segments(self, rows: list[Any]) -> None:
        for row in rows:
            segment = Segment(*row)
            if segment.version not in self.segments:
                self.log.claim_slot(segment.slot)
            self.segments[segment.version] = segment
            self._version = max(self._version, segment.version)
            self.head.sequence = max(self.head.sequence, segment.sequence_max)

    def _replay_dropped(self, record: Changed) -> None:
        for version in record.dropped:
            segment = self.segments.pop(version, None)
            if segment is not None:
                self.log.give_slot(segment.slot, punch=False)
                if not record.segments:  # else a merge
                    self.retention.note_dropped(segment)

    def _loaded(self, segment: Segment) -> Segment:
        try:
            return load_parts(self.device, segment, self.intern)
        except Corruption as error:
            # Set aside: nothing more is written to it, and readers get what its extents still say.
            self.counters["corrupt_indexes"] += 1
            self.problems.append(str(error))
            return dataclasses.replace(segment, index_offset=segment.end)

    # Series

    def intern(self, key: bytes) -> int:
        """The id of a series that is known from now on."""
        with self.lock:
            id = self.registry.find(key)
            if not id:
                id = self._next_id
                self._next_id += 1
                self.registry.add(key, id)
            return id

    def key(self, id: int) -> bytes:
        return self.registry.key(id)

    def live_id(self, key: bytes) -> int:
        """The id of a series that can be written to."""
        with self.lock:
            id = self.intern(key)
            if id not in self.head:
                if self.head.live >= self.settings.series_max:
                    raise LimitReached(f"{self.head.live} live series: series_max allows no more")
                self.head.enter(key, id, *self._known(key))
                self.counters["series_created"] += 1
            return id

    def _known(self, key: bytes) -> tuple[int, int]:
        return self.rest.get(hash_of(key), (NONE_MS, NONE_MS))

    def derived(self, id: int) -> int:
        """Up to where the series' samples are in the tiers; NONE_MS: unknown."""
        if id in self.head:
            return self.head.derived(id)
        return self._known(self.registry.key(id))[1]

    def set_derived(self, id: int, derived: int) -> None:
        if id in self.head:
            self.head.set_derived(id, derived)
        else:
            key = hash_of(self.registry.key(id))
            self.rest[key] = (self.rest.get(key, (derived, 0))[0], derived)

    def newest(self, id: int) -> int:
        if id in self.head:
            return self.head.newest(id)
        return self._known(self.registry.key(id))[0]

    # What changes make use of

    def next_version(self) -> int:
        self._version += 1
        return self._version

    def salt(self) -> int:
        return int.from_bytes(self.rng.bytes(4), "little") | 1

    def take_slot(self) -> int:
        """For a change under way, which asked retention for room before it began."""
        slot = self.log.take_slot()
        while slot is None and self.held.give_oldest():
            slot = self.log.take_slot()
        if slot is None:
            raise self.retention.full()
        return slot

    def append(self, kind: int, payload: bytes) -> int:
        """A record of ours: the next checkpoint replaces it."""
        position = self.log.append(kind, payload, urgent=True)
        self.log.dead(position, len(payload))
        return position

    def publish(
        self, segments: dict[int, Segment], dropped: list[Segment], pieces: tuple[Piece, ...]
    ) -> None:
        gone = {id(piece[0]) for piece in pieces}
        with self.lock:
            table = dict(self.segments)
            table.update(segments)
            for segment in dropped:
                table.pop(segment.version, None)
            self.segments = table
            self.pending = [piece for piece in self.pending if id(piece[0]) not in gone]
        for segment in dropped:
            self.cache.forget(segment.version)

    # From the head to segments

    def gather(self) -> None:
        """What the head has sealed becomes pending. Under `lock`."""
        sealed = self.head.collect()
        if sealed is not None:
            chunks, data = sealed
            self.pending += cut_pieces(chunks, data, self._group_chunks, self.extent_bytes)

    @property
    def _group_chunks(self) -> int:
        return min(GROUP_CHUNKS_MAX, self.log.payload_max // 16)

    def write_pending(self, moment: int = EVER) -> None:
        """What is pending goes to fresh segments."""
        with self.work:
            with self.lock:
                self.gather()
                pieces = list(self.pending)
            while pieces:
                # Before they are looked at: a checkpoint that makes room writes them, too, and a
                # second record of them would make a replay leave out samples that came later.
                self.retention.make_room(2)
                left = {id(piece[0]) for piece in self.pending}
                pieces = [piece for piece in pieces if id(piece[0]) in left]
                group: list[Piece] = []
                count = 0
                size = 0
                # Less than half a segment: it needs at most one new one.
                while pieces and (
                    not group
                    or (
                        count + pieces[0][0].size <= self._group_chunks
                        and 2 * (size + pieces[0][1].size) <= self.settings.segment_size
                    )
                ):
                    group.append(pieces.pop(0))
                    count += group[-1][0].size
                    size += group[-1][1].size
                if group:
                    self._write_group(tuple(group), moment)
            self.head.uncollected_max = min(UNCOLLECTED_MAX, self.settings.segment_size)

    def _write_group(self, group: tuple[Piece, ...], moment: int) -> None:
        change = Change(self)
        try:
            for chunks, data in group:
                change.write(FRESH, chunks, data)
                change.consume(chunks)
            change.commit(moment, group)
        except BaseException as error:
            self.counters["write_errors"] += isinstance(error, OSError)
            change.abandon()
            raise

    def pressed(self) -> None:
        """The head has sealed much, or the journal is long: do what is due, or allow more while
        another thread is at it."""
        head = self.head
        patient = head.uncollected_max < UNCOLLECTED_HARD and self.journal_is_short
        if not self.work.acquire(blocking=not patient):
            self.counters["pressure_waits"] += 1
            head.uncollected_max *= 2
            head.journal_max += self.settings.segment_size
            return
        try:
            self.write_pending()
            if head.journal_bytes >= head.journal_max:
                self.checkpoint()
            if not self.settings.background:
                self.merger.merge_if_due()
        finally:
            self.work.release()

    @property
    def journal_is_short(self) -> bool:
        return self.log.slots_free > self.settings.slots // 4

    def relieve(self) -> None:
        """The journal has no room: make some."""
        with self.work:
            self.retention.make_room(1)

    # Checkpoints

    @property
    def journal_segments_max(self) -> int:
        """Opened since the last checkpoint: then the next one is due."""
        slots = self.settings.slots
        return max(1, min(slots // 16, JOURNAL_BYTES_MAX // self.settings.segment_size))

    @property
    def checkpoint_due(self) -> bool:
        opened = self.log.stats()["segments_opened"] - self._opened_at_checkpoint
        return bool(opened > self.journal_segments_max)

    def checkpoint(self) -> State:
        """Seal all heads, write what is sealed, and let the journal begin anew."""
        with self.work:
            self.write_pending()
            with self.lock:
                begun = self.head.at_once(self.log.begin_checkpoint)
                if begun is None:
                    raise self.retention.full()
                self.gather()
                tombstones = self._tombstones_left()
            self.write_pending(begun[0])
            opened = self.log.stats()["segments_opened"]
            with self.lock:
                self.tombstones = tombstones
                state = State(
                    FORMAT,
                    self._version,
                    self.head.sequence,
                    [segment.row() for segment in self.segments.values()],
                    tombstones,
                    self._live(),
                    list(self.settings.tiers),
                    self.marks,
                    self.retention.dropped_until_ms,
                )
            self.log.finish_checkpoint(begun, pack(state))
            self._opened_at_checkpoint = opened
            # The background's turn comes first: what it does not get done, who appends does.
            segments = self.journal_segments_max * (2 if self.settings.background else 1)
            self.head.journal_max = self.head.journal_bytes + segments * self.settings.segment_size
            self.counters["checkpoints"] += 1
            self._forget_idle()
            return state

    def _tombstones_left(self) -> list[Tombstone]:
        """Those that something older is left for. Under `lock`."""
        oldest = min((one.sequence_min for one in self.segments.values()), default=0)
        for chunks, _ in self.pending:
            oldest = min(oldest, int(chunks["sequence"].min()))
        return [one for one in self.tombstones if one.sequence >= oldest]

    def _live(self) -> Live:
        """Newest and derived of live series, and of forgotten ones that still matter."""
        ids, newest, derived = self.head.table_of()
        oldest = min((one.start_ms for one in self.segments.values()), default=0)
        rows = {h: row for h, row in self.rest.items() if row[0] >= oldest}
        for id, last, to in zip(ids.tolist(), newest.tolist(), derived.tolist(), strict=True):
            rows[hash_of(self.registry.key(id))] = (last, to)
        self.rest = rows
        hashes = np.array(sorted(rows), "<u8")
        pairs = np.array([rows[int(h)] for h in hashes], "<i8").reshape(-1, 2)
        return Live(
            hashes.tobytes(),
            np.ascontiguousarray(pairs[:, 0]).tobytes(),
            np.ascontiguousarray(pairs[:, 1]).tobytes(),
        )

    def _forget_idle(self) -> None:
        """Series that nobody wrote to for two checkpoints leave memory; they stay on the disk."""
        with self.lock:
            for id in self.head.idle():
                self.counters["series_forgotten"] += self.head.forget(id)
            if self.readers:
                return
            used = [np.empty(0, np.uint32)]
            for segment in self.segments.values():
                used += [part["series"] for part in segment.parts]
            used += [value["series"] for key, value in self.cache.values() if key[1] == -1]
            used += [chunks["series"] for chunks, _ in self.pending]
            kept = set(np.unique(np.concatenate(used)).tolist())
            known = self.registry.all.tolist()
            self.registry.remove(id for id in known if id not in kept and id not in self.head)

    # Time, flush, close

    def flush(self) -> None:
        """Everything accepted is with the operating system."""
        self._check_writable()
        self.head.flush()
        self.log.flush()
        self.counters["flushes"] += 1

    def sync(self) -> None:
        """Everything accepted is on the medium."""
        self._check_writable()
        self.head.flush()
        self.log.sync()
        self.counters["syncs"] += 1

    def _check_writable(self) -> None:
        if self.settings.read_only:
            raise ReadOnly(30, "these metrics were opened read-only")

    def step(self) -> None:
        """One round of everything that is due, by the background thread or by the caller."""
        self.head.flush()
        self.log.tick()
        if self.pending or self.head_is_full:
            self.write_pending()
        if self.checkpoint_due:
            self.checkpoint()
        self.merger.merge_if_due()
        self.retention.expire()
        if self.held:
            with self.work:
                self.held.release()

    @property
    def head_is_full(self) -> bool:
        return self.head.uncollected >= self.extent_bytes

    def close(self) -> None:
        """A clean end: a checkpoint, so that the next opening replays nothing."""
        try:
            if not self.settings.read_only and not self.log.stats()["failed"]:
                self.checkpoint()
        except SiltstoneError:
            self.counters["write_errors"] += 1  # the journal has it all
            raise
        finally:
            self.head.close()
            self.ahead.close()
            try:
                self.log.close()
            finally:
                self.device.close()


def cut_pieces(chunks: Any, data: Any, count_max: int, bytes_max: int) -> list[Piece]:
    pieces: list[Piece] = []
    for some, bytes_ in cut(chunks, data, bytes_max):
        for first in range(0, some.size, count_max):
            part = some[first : first + count_max].copy()
            start = int(part["offset"][0])
            end = int(part["offset"][-1]) + int(part["size"][-1])
            part["offset"] -= np.uint32(start)
            pieces.append((part, bytes_[start:end]))
    return pieces


def hash_of(key: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")
