"""The merge: small chunks of fresh segments become long ones of raw segments, and tiers follow.

It takes sealed fresh segments, all at once, once they hold enough samples of a series on average
for long chunks, or once there are many of them. Series by series the samples are put in order,
each once (the last write wins), without what was deleted. One record makes the new segments count
and the old ones not. Reads go first (courtesy.py). The caller holds the engine's work lock, or
this does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from siltstone.errors import EnvironmentFailure, SiltstoneError
from siltstone.metrics import chunks as codecs
from siltstone.metrics.change import Change, fresh
from siltstone.metrics.courtesy import Courtesy
from siltstone.metrics.head import CHUNK, NONE_MS
from siltstone.metrics.picture import Picture, sorted_picture
from siltstone.metrics.query import Run
from siltstone.metrics.segment import FRESH, RAW, Chunks, Segment, joined
from siltstone.metrics.tiers import Tiers

if TYPE_CHECKING:
    from siltstone.metrics.engine import Engine

EXTENTS_AT_ONCE: Final = 4  # encoded before they are written


class Merger:
    """See the module's docstring."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.tiers = Tiers(engine)

    @property
    def fresh_segments_max(self) -> int:
        return max(1, self._engine.settings.slots // 16)

    def merge_if_due(self) -> bool:
        with self._engine.work:
            sealed = [one for one in fresh(self._engine.segments) if one.sealed]
            if not sealed:
                return False
            samples = sum(one.samples for one in sealed)
            series = max(1, self._engine.head.live)
            if len(sealed) < self.fresh_segments_max and (
                samples < series * self._engine.settings.merge_samples
            ):
                return False
            self.merge(sealed[: 2 * self.fresh_segments_max])
            return True

    def compact(self) -> None:
        """Everything that is sealed or waits for it, now: what a long rest would do."""
        engine = self._engine
        with engine.work:
            engine.checkpoint()
            change = Change(engine)
            segments = fresh(engine.segments)
            try:
                for segment in segments:
                    if not segment.sealed:
                        change.seal(segment)
                change.commit()
            except BaseException:
                change.abandon()
                raise
            segments = fresh(engine.segments)
            if segments:
                self.merge(segments)

    def merge(self, inputs: list[Segment]) -> None:
        """These sealed fresh segments, the oldest there are, into raw ones; then the tiers."""
        engine = self._engine
        with engine.work:
            # At worst nothing gets smaller, and each tier opens a segment.
            engine.retention.protected = {segment.version for segment in inputs}
            engine.retention.make_room(len(inputs) + len(engine.settings.tiers))
            picture = self._picture(inputs)
            rows = picture.rows
            change = Change(engine)
            try:
                firsts = self._write(change, picture)
                for segment in inputs:
                    change.drop(segment)
                change.commit()
            except BaseException:
                change.abandon()
                raise
            finally:
                engine.retention.protected = set()
            counters = engine.counters
            counters["merges"] += 1
            counters["merged_chunks_in"] += rows.size
            counters["merged_samples_in"] += int(rows["count"].sum(dtype=np.int64))
            counters["merged_bytes_in"] += int(rows["size"].sum(dtype=np.int64))
            for id, first in firsts.items():
                if NONE_MS != engine.derived(id) >= first:
                    engine.set_derived(id, first - 1)  # from there on they are derived again
            self.tiers.derive(list(firsts), firsts)

    def _picture(self, inputs: list[Segment]) -> Picture:
        parts: list[Chunks] = []
        places = [np.empty(0, np.int64)]
        for number, segment in enumerate(inputs):
            chunks = self._engine.reader.chunks.index(segment)
            parts.append(chunks)
            places.append(np.full(chunks.size, number))
        rows, places_ = joined(parts), np.concatenate(places)
        return sorted_picture(np.unique(rows["series"]), rows, places_, inputs)

    def _write(self, change: Change, picture: Picture) -> dict[int, int]:
        """Series by series; the time of each one's first sample."""
        firsts: dict[int, int] = {}
        out_rows: list[Any] = []
        out_data: list[bytes] = []
        size = 0
        runs = self._engine.reader.runs(picture)
        courtesy = Courtesy(self._engine)
        for id, run in zip(picture.ids.tolist(), runs, strict=True):
            self._note(run)
            if not run.times.size:
                continue
            firsts[id] = int(run.times[0])
            sequence = int(run.rows["sequence"].max())
            for row, data in self._encoded(id, run.times, run.values, sequence):
                out_rows.append(row)
                out_data.append(data)
                size += len(data)
            if size >= EXTENTS_AT_ONCE * self._engine.extent_bytes:
                self._put(change, out_rows, out_data)
                out_rows, out_data, size = [], [], 0
            courtesy.step()
        if out_rows:
            self._put(change, out_rows, out_data)
        return firsts

    def _note(self, run: Run) -> None:
        """Count what was left out of a series."""
        engine = self._engine
        if run.plain:
            return
        for row in run.rows[~run.good]:
            engine.problems.append(
                f"a chunk of {row['count']} samples from {row['start_ms']} ms on is damaged: "
                "the merge went on without it"
            )
        if run.good.all() and not engine.reader.tombstones_of(run.rows):
            engine.counters["merged_duplicates"] += int(run.rows["count"].sum()) - run.times.size

    def _encoded(self, id: int, times: Any, values: Any, sequence: int) -> Any:
        engine = self._engine
        # Of eight bytes a sample at worst a chunk stays well below a segment.
        most = min(engine.settings.merge_samples, engine.settings.segment_size // 64)
        pieces = -(-times.size // most)
        for first in range(0, times.size, -(-times.size // pieces)):
            part = slice(first, first + -(-times.size // pieces))
            data = codecs.encode(times[part], values[part])
            row = np.zeros((), CHUNK)
            row["series"], row["size"], row["count"] = id, len(data), times[part].size
            row["start_ms"], row["end_ms"] = times[part][0], times[part][-1]
            row["sequence"], row["codec"] = sequence, codecs.LONG
            engine.counters["merged_chunks_out"] += 1
            engine.counters["merged_samples_out"] += int(times[part].size)
            engine.counters["merged_bytes_out"] += len(data)
            yield row, data

    def _put(self, change: Change, rows: list[Any], data: list[bytes]) -> None:
        chunks = np.array(rows, CHUNK)
        sizes = chunks["size"].astype(np.int64)
        chunks["offset"] = np.cumsum(sizes) - sizes
        change.write(RAW, chunks, np.frombuffer(b"".join(data), np.uint8))

    # Before raw data goes

    def derive_before_drop(self, segment: Segment) -> None:
        """What the segment alone still knows enters the tiers. Without room for it, it does not."""
        engine = self._engine
        if not engine.settings.tiers:
            return
        rows = engine.reader.chunks.index(segment)
        behind = []
        for id in np.unique(rows["series"]).tolist():
            last = int(rows["end_ms"][rows["series"] == id].max())
            derived = engine.derived(id)
            if derived != NONE_MS and derived < last:
                behind.append(id)
        if not behind or (segment.kind == FRESH and not engine.log.slots_free):
            return
        try:
            self.tiers.derive(behind, final=True)
        except (EnvironmentFailure, SiltstoneError) as error:
            engine.problems.append(f"tiers lack what segment {segment.version} held: {error}")
