"""Checking all that is stored: every header, descriptor, index and chunk, by reading it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from siltstone.errors import Corruption, EnvironmentFailure
from siltstone.metrics import chunks as codecs
from siltstone.metrics.report import Report
from siltstone.metrics.segment import (
    HEADER_SIZE,
    TIER,
    Chunks,
    Segment,
    load_index,
    load_parts,
    read_extent,
    read_header,
)

if TYPE_CHECKING:
    from siltstone.metrics.engine import Engine


def verify(engine: Engine) -> Report:
    """Nothing is dropped meanwhile; writing goes on. What opening found is reported, too."""
    report = Report(problems=list(engine.problems))
    with engine.work, engine.reader.reading():
        for segment in sorted(engine.segments.values(), key=lambda one: one.version):
            report.segments += 1
            report.bytes += segment.end
            try:
                _segment(engine, segment, report)
            except (Corruption, EnvironmentFailure) as error:
                report.problems.append(str(error))
    engine.head.check_invariants()
    return report


def _segment(engine: Engine, segment: Segment, report: Report) -> None:
    read_header(engine.device, segment)
    if not segment.sealed:
        parts = load_parts(engine.device, segment, engine.intern).parts
        chunks = np.concatenate(parts)
    else:
        chunks = load_index(engine.device, segment, engine.intern)
        found, offset = 0, HEADER_SIZE
        while offset < segment.index_offset:
            extent = read_extent(engine.device, segment, offset)
            found += extent.chunks.size
            offset += extent.length
        if found != chunks.size:
            raise Corruption(
                f"segment {segment.version} has {found} chunks, its index {chunks.size}"
            )
    _chunks(engine, segment, chunks, report)


def _chunks(engine: Engine, segment: Segment, chunks: Chunks, report: Report) -> None:
    for row in chunks:
        report.chunks += 1
        count = int(row["count"])
        try:
            data = engine.device.read(segment.slot, int(row["offset"]), int(row["size"]))
            expected = codecs.checksum(data, segment.salt, segment.version, int(row["offset"]))
            if expected != int(row["crc"]):
                where = engine.device.handle.describe(segment.slot, int(row["offset"]))
                raise Corruption(f"the chunk at {where} fails its checksum", path=where)
            if segment.kind >= TIER:
                times, _ = codecs.decode_points(data, count)
            else:
                times, values = np.empty(count, np.int64), np.empty(count, np.float64)
                codecs.decode_into(int(row["codec"]), data, times, values)
                report.samples += count
            if times[0] != row["start_ms"] or times[-1] != row["end_ms"]:
                raise Corruption(f"a chunk of segment {segment.version} is not what it says")
        except (Corruption, EnvironmentFailure) as error:
            report.problems.append(str(error))
