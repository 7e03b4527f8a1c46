"""A log against a dict, step by step, with its arena lost now and then; and threads on one log."""

from __future__ import annotations

import random
import threading

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from logrig import BLOCK, BUSY, GONE, NO_BUFFER, NO_SEGMENT, NOTHING, OK, small_log

from siltstone.log.device import MemoryDevice
from siltstone.log.livemap import LiveMap
from siltstone.log.log_face import Log
from siltstone.log.recovery import recover
from siltstone.log.scan import PythonFound

SEGMENTS, SEGMENT_BYTES = 6, 4 * BLOCK


class LogAgainstDict(RuleBasedStateMachine):
    """`stored` has every record of the current versions, `live` those whose bit is set."""

    def __init__(self) -> None:
        super().__init__()
        self.device = MemoryDevice(SEGMENTS, SEGMENT_BYTES)
        self.live_map = LiveMap(SEGMENTS, SEGMENT_BYTES, self.device.superblock.uuid)
        self.log = small_log(self.device, live_map=self.live_map)
        self.stored: dict[int, tuple[int, bytes]] = {}
        self.live: set[int] = set()
        self.highest = 0
        self.now_ms = 0

    @rule(
        stream=st.integers(0, 3),
        kind=st.integers(1, 254),
        size=st.one_of(st.integers(0, 200), st.integers(0, 3944)),
        live=st.booleans(),
    )
    def append(self, stream: int, kind: int, size: int, live: bool) -> None:
        data = random.Random(size).randbytes(size)
        status, position = self.log.try_append(stream, kind, data)
        if status == NO_BUFFER:
            assert self.log.write_one() == OK
            return
        if status == NO_SEGMENT:
            self.forget_oldest()
            return
        assert status == OK
        # versions rise, and so do positions inside one
        assert position // SEGMENT_BYTES >= 1
        assert position not in self.stored
        self.highest = max(self.highest, position // SEGMENT_BYTES)
        self.stored[position] = (kind, data)
        if live:
            assert self.log.live(position)
            self.live.add(position)
        self.drop_freed()

    def drop_freed(self) -> None:
        """Segments in which nothing lives may go at any time; the others may not."""
        for position in list(self.stored):
            if not self.log.is_current(position):
                assert position not in self.live
                assert not any(p // SEGMENT_BYTES == position // SEGMENT_BYTES for p in self.live)
                del self.stored[position]

    @rule()
    def write(self) -> None:
        assert self.log.write_one() in (OK, NOTHING)

    @rule(age_ms=st.integers(0, 2000))
    def time_passes(self, age_ms: int) -> None:
        self.now_ms += age_ms
        self.log.seal_idle(self.now_ms, 1000)

    @precondition(lambda self: self.stored)
    @rule(data=st.data(), live=st.booleans())
    def link_or_unlink(self, data: st.DataObject, live: bool) -> None:
        position = data.draw(st.sampled_from(sorted(self.stored)))
        if live:
            assert self.log.live(position)
            self.live.add(position)
        else:
            self.log.dead(position)
            self.live.discard(position)

    @rule()
    def forget_oldest(self) -> None:
        info = self.log.oldest()
        if info is None:
            self.log.write_one()
            return
        assert self.log.forget(info["slot"], info["version"]) == OK
        gone = {p for p in self.stored if p // SEGMENT_BYTES == info["version"]}
        assert info["records"] >= len(gone)  # after a recovery: some beside the live ones
        assert info["live_records"] == len(gone & self.live)
        for position in gone:
            assert self.log.read(position) is None
            del self.stored[position]
        self.live -= gone

    @rule(slot=st.integers(0, SEGMENTS - 1))
    def forget_any(self, slot: int) -> None:
        version = self.log.segments()[slot]["version"]
        assert self.log.forget(slot, version) == (OK if version else GONE)
        gone = {p for p in self.stored if version and p // SEGMENT_BYTES == version}
        for position in gone:
            del self.stored[position]
        self.live -= gone

    @rule()
    def compact_emptiest(self) -> None:
        info = self.log.emptiest()
        if info is not None:
            found = self.log.records(info["slot"], info["version"])
            expected = {
                p: r for p, r in self.stored.items() if p // SEGMENT_BYTES == info["version"]
            }
            walked = {p: (kind, data) for p, kind, data in found or []}
            assert {p: walked.get(p) for p in expected} == expected
            assert len(walked) == info["records"]

    @rule(flushed=st.booleans())
    def lose_the_arena(self, flushed: bool) -> None:
        if flushed:
            self.log.flush()
        self.log = small_log(self.device, live_map=self.live_map)
        found: dict[int, tuple[int, bytes]] = {}

        def keep(position: int, kind: int, payload: bytes) -> bool:
            found[position] = (kind, payload)
            return True

        recover(self.log, PythonFound(keep), warm=True)
        assert found == {p: self.stored[p] for p in found}
        assert set(found) <= self.live
        if flushed:
            assert set(found) == self.live
        self.stored, self.live = found, set(found)
        # records beside the live ones may still be read; they are nobody's

    @invariant()
    def all_is_readable(self) -> None:
        for position, record in self.stored.items():
            assert self.log.read(position) == record
            assert self.log.is_live(position) == (position in self.live)

    @invariant()
    def consistent(self) -> None:
        self.log.check_invariants()


TestLogAgainstDict = LogAgainstDict.TestCase
TestLogAgainstDict.settings = settings(max_examples=100, stateful_step_count=50)


# Threads -------------------------------------------------------------------------------------


def churn(log: Log, seed: int, rounds: int, wrong: list[object]) -> None:
    rng = random.Random(seed)
    mine: list[tuple[int, bytes]] = []
    for _ in range(rounds):
        data = rng.randbytes(8) * rng.randrange(1, 300)
        status, position = log.try_append(rng.randrange(4), 1, data)
        if status == NO_BUFFER:
            log.make_room()
        elif status == NO_SEGMENT:
            info = log.oldest()
            if info is None:
                log.write_one()
            else:
                log.forget(info["slot"], info["version"])
        elif status == OK:
            if log.live(position):
                mine.append((position, data))
        elif status != BUSY:
            wrong.append(status)
        if len(mine) > 30:
            log.dead(mine.pop(rng.randrange(30))[0])
        if mine:
            position, data = rng.choice(mine)
            found = log.read(position)
            if found is not None and found != (1, data):
                wrong.append((position, data, found))


def test_threads_on_one_log() -> None:
    log = small_log(MemoryDevice(10, SEGMENT_BYTES), buffers=7)
    wrong: list[object] = []

    def work(seed: int) -> None:
        try:
            churn(log, seed, 1500, wrong)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert wrong == []
    log.flush()
    log.check_invariants()
    assert log.stats()["checksum_failures"] == 0
    assert log.stats()["segments_opened"] > 100
