"""An online backup: a device of its own, with the segments as they stand at one checkpoint.

The checkpoint seals all heads, so the segments hold every sample given before it; they are copied,
each up to its end then, into a device of the same geometry and uuid (the checksums are bound to
both), whose journal begins with that checkpoint. Nothing is merged or dropped meanwhile; samples go
on to come in, into the journal and into what lies behind the copied ends. A backup counts only when
it is whole: it gets its name at the very end.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from siltstone.errors import ConfigError
from siltstone.log.device import FileDevice, rename_file
from siltstone.log.directory import make_directory
from siltstone.log.ordered_log import OrderedLog
from siltstone.metrics.report import Report
from siltstone.metrics.segment import Segment
from siltstone.metrics.state import State, pack

if TYPE_CHECKING:
    from siltstone.metrics.engine import Engine

FILE: Final = "metrics"
UNFINISHED: Final = "metrics.unfinished"
COPY_BYTES: Final = 1 << 20


class _SameUuid:
    """Chance for a device that shall have another one's uuid."""

    def __init__(self, uuid: bytes, engine: Engine) -> None:
        self._uuid, self._rng = uuid, engine.rng

    def bytes(self, size: int) -> bytes:
        return self._uuid if size == len(self._uuid) else self._rng.bytes(size)

    def uniform(self) -> float:
        return self._rng.uniform()


def backup(engine: Engine, path: Path) -> Report:
    """Copies into the directory `path`, which must hold no metrics yet."""
    if (path / FILE).exists():
        raise ConfigError(f"{path} holds metrics already: name another directory")
    make_directory(path)
    report = Report()
    with engine.work:
        state = engine.checkpoint()
        device = FileDevice(
            [(path / UNFINISHED, engine.device.segment_count * engine.settings.segment_size)],
            engine.settings.segment_size,
            engine="metrics",
            preallocate=False,
            rng=_SameUuid(engine.device.uuid, engine),
        )
        with device:
            _copy(engine, device, state, report)
    rename_file(path / UNFINISHED, path / FILE)
    return report


def _copy(engine: Engine, device: FileDevice, state: State, report: Report) -> None:
    log = OrderedLog(device, clock=engine.clock, rng=engine.rng)
    log.recover()
    for row in state.segments:
        segment = Segment(*row)
        log.claim_slot(segment.slot)
        for offset in range(0, segment.end, COPY_BYTES):
            size = min(COPY_BYTES, segment.end - offset)
            device.write(segment.slot, offset, engine.device.read(segment.slot, offset, size))
        report.segments += 1
        report.bytes += segment.end
        report.chunks += segment.chunk_count
        report.samples += segment.samples
    device.sync()
    device.write_superblock(engine_data=engine.device.superblock.engine_data)
    log.checkpoint(pack(state))
    log.close()
