"""`Metrics`: a time-series database in one directory, under one quota.

Owns what Python users call; the engine behind it is engine.py. Promises: a sample is visible as
soon as it is given, exact to the bit; a crash costs at most `flush_interval` of what was appended
and nothing of what `flush()` (killed process) or `sync()` (power cut) returned for; the directory
never takes more than `retention_size`; any thread may call.

Non-goals: several writers of one directory (use the server), strings, distributed storage.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import numpy as np

from siltstone.clock import SYSTEM_CLOCK, SYSTEM_RANDOM, Clock, Random
from siltstone.config import build, data_directory, format_duration, parse_duration
from siltstone.errors import (
    Closed,
    Corruption,
    DeviceFailed,
    ForkedProcess,
    InvalidQuery,
    InvalidValue,
    LimitReached,
    ReadOnly,
    SiltstoneError,
    SnapshotTooOld,
)
from siltstone.log.device import Device, FileDevice, superblock_of
from siltstone.log.directory import check_free_for, make_directory
from siltstone.log.openers import Reader, Writer
from siltstone.log.superblock import FIRST_DATA_OFFSET
from siltstone.log.workers import WorkerPool
from siltstone.metrics import promql as evaluator
from siltstone.metrics.background import CARE, FLUSH, Background
from siltstone.metrics.cardinality import Cardinality, cardinality
from siltstone.metrics.engine import Engine
from siltstone.metrics.handle import SeriesHandle, handle_of
from siltstone.metrics.keys import key_of, labels_of
from siltstone.metrics.netdata_import import ImportReport
from siltstone.metrics.query import TierSeries
from siltstone.metrics.report import Report
from siltstone.metrics.result import Result
from siltstone.metrics.retention import quota_of
from siltstone.metrics.selectors import matchers_of
from siltstone.metrics.settings import MetricsSettings
from siltstone.metrics.source import NAME_LABEL, Latest, Matcher, Points, Series
from siltstone.metrics.times import time_ms
from siltstone.metrics.values import number_of

FILE: Final = "metrics"  # in the data directory
ENGINE: Final = "metrics"
LOOKS_MAX: Final = 5  # of a reader, while a writer changes what it looks at
Match = str | Sequence[Matcher] | None
A = TypeVar("A")
_FOREVER: Final = 1 << 62


class Metrics:
    """A time-series database. `path`: the data directory, made when it is missing.

    Settings are those of `siltstone.metrics.settings.MetricsSettings`. Times are Unix seconds,
    datetime or datetime64; series of `select` carry int64 milliseconds.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        clock: Clock = SYSTEM_CLOCK,
        rng: Random = SYSTEM_RANDOM,
        **options: Any,
    ) -> None:
        self.path = data_directory(path)
        file = self.path / FILE
        found = _sizes_of(file)
        if options.get("read_only"):  # the quota is the writer's
            options = {**options, **found}
        self.settings = build(MetricsSettings, {"path": self.path, **found, **options})
        self._clock, self._rng = clock, rng
        self._own_tiers = "tiers" not in options
        self._closed = False
        self._pid = os.getpid()
        self._close_lock = threading.Lock()
        self._pool: WorkerPool | None = None
        self._background: Background | None = None
        self._opener: Writer | Reader | None
        if self.settings.read_only:
            self._opener = Reader(os.fspath(self.path))
        else:
            check_free_for(FILE, self.path)
            make_directory(self.path)
            self._opener = Writer(os.fspath(self.path))
        try:
            self._open(self._device())
        except BaseException:
            self._opener.close()
            raise

    def _device(self) -> FileDevice:
        """The file, with as many slots as the quota holds; more, if it has them already."""
        device = self._file_device(None if (self.path / FILE).exists() else self.settings.slots)
        if device.segment_count >= self.settings.slots or self.settings.read_only:
            return device
        try:
            device.grow(self.settings.slots)
        finally:
            device.close()
        return self._file_device(None)

    def _file_device(self, slots: int | None) -> FileDevice:
        read_only = self.settings.read_only
        size = None if slots is None else slots * self.settings.segment_size
        return FileDevice(
            [(self.path / FILE, size)],
            self.settings.segment_size,
            engine=ENGINE,
            create=not read_only,
            lock=None if read_only else "exclusive",
            preallocate=False,
            read_only=read_only,
            rng=self._rng,
        )

    @classmethod
    def on_device(
        cls, device: Device, settings: MetricsSettings, *, clock: Clock = SYSTEM_CLOCK,
        rng: Random = SYSTEM_RANDOM,
    ) -> Self:  # fmt: skip
        """On any device, a MemoryDevice for one: nothing is left of that when it is closed."""
        self = cls.__new__(cls)
        self.path, self.settings = settings.path or Path(), settings
        self._clock, self._rng, self._own_tiers = clock, rng, False
        self._closed, self._pid, self._close_lock = False, os.getpid(), threading.Lock()
        self._pool, self._background, self._opener = None, None, None
        self._open(device)
        return self

    def _open(self, device: Device) -> None:
        try:
            if isinstance(device, FileDevice) and self.settings.read_only:
                self._engine = self._seen(device)
            else:
                if isinstance(device, FileDevice):
                    self._pool = WorkerPool(2, name="siltstone-metrics")
                self._engine = self._engine_on(device)
        except BaseException:
            device.close()
            if self._pool is not None:
                self._pool.close()
            raise
        if self.settings.background and not self.settings.read_only:
            self._background = Background(self._engine, self.settings.flush_interval)

    def _engine_on(self, device: Device) -> Engine:
        return Engine(
            device, self.settings, pool=self._pool, clock=self._clock, rng=self._rng,
            own_tiers=self._own_tiers or self.settings.read_only,
            opener=self._opener if isinstance(self._opener, Writer) else None,
        )  # fmt: skip

    def _seen(self, device: FileDevice) -> Engine:
        """What is there for a reader. A writer may use segments again while they are read: what
        looks damaged is read once more, and is damaged if it looks the same."""
        looked: list[str] | None = None
        for _ in range(LOOKS_MAX):
            if not self._looked_at_newest(device):
                continue
            try:
                engine = self._engine_on(device)
            except (Corruption, DeviceFailed) as error:
                if looked == [str(error)]:
                    raise
                looked = [str(error)]
                continue
            if not engine.problems or engine.problems == looked:
                return engine
            looked = engine.problems
            engine.close()
            device = self._device()
        device.close()
        raise SnapshotTooOld(errno.ESTALE, "the writer changes it faster than it can be read")

    def _looked_at_newest(self, device: FileDevice) -> bool:
        """Hold the newest checkpoint before it is trusted; False: two came since."""
        assert isinstance(self._opener, Reader)
        position = device.reload_superblock().checkpoint_position
        self._opener.look_at(position)
        block = device.reload_superblock()
        return position in (block.checkpoint_position, block.checkpoint_before)

    @property
    def engine(self) -> Engine:
        """For tools and tests; Closed after close()."""
        if self._closed:
            raise Closed("these metrics are closed")
        if self._pid != os.getpid():
            raise ForkedProcess(f"these metrics belong to pid {self._pid}; open them again here")
        return self._engine

    @property
    def _writer(self) -> Engine:
        engine = self.engine
        if self.settings.read_only:
            raise ReadOnly(30, f"{self.path} was opened read-only")
        if self._background is not None:
            self._background.check()
        return engine

    # Writing

    def series(
        self, name: str, labels: Mapping[str, str] | None = None, **more: str
    ) -> SeriesHandle:
        """The series with this name and these labels, for appending to it often."""
        engine = self._writer
        if not isinstance(labels, Mapping | None):
            raise InvalidValue(f"labels are a mapping, {{name: value}}, not {labels!r}")
        wanted = {**(labels or {}), **more}
        if name:
            wanted[NAME_LABEL] = name
        key = key_of(wanted, engine.limits)
        with engine.lock:
            return handle_of(engine.head, engine.live_id(key), labels_of(key))

    def append(
        self, name: str, labels: Mapping[str, str], time: Any, value: float, *,
        backfill: bool = False,
    ) -> bool:  # fmt: skip
        """One sample; False when it is older than the out-of-order window (and counted)."""
        return self.series(name, labels).append(time, value, backfill=backfill)

    def extend(
        self, name: str, labels: Mapping[str, str], times: Any, values: Any, *,
        backfill: bool = False,
    ) -> int:  # fmt: skip
        """Arrays of one series; how many samples were accepted."""
        return self.series(name, labels).extend(times, values, backfill=backfill)

    def write(self, rows: Iterable[tuple[str, Mapping[str, str], Any, float]], *,
              backfill: bool = False) -> int:  # fmt: skip
        """Rows of (name, labels, time, value); how many were accepted. All are checked first."""
        engine = self._writer
        ids: list[int] = []
        times: list[int] = []
        values: list[float] = []
        for number, row in enumerate(rows):
            if number >= self.settings.request_samples_max:
                raise LimitReached(
                    f"over {number} samples at once: request_samples_max allows no more"
                )
            try:
                name, labels, time, value = row
            except (TypeError, ValueError):
                raise InvalidValue(
                    f"row {number} is {row!r}, not (name, labels, time, value)"
                ) from None
            if not isinstance(labels, Mapping):
                raise InvalidValue(f"row {number}: labels are a mapping, not {labels!r}")
            key = key_of({**labels, NAME_LABEL: name} if name else labels, engine.limits)
            ids.append(engine.live_id(key))
            times.append(time_ms(time))
            values.append(number_of(value))
        return self.write_ids(
            np.array(ids, np.uint32), np.array(times, np.int64), np.array(values, np.float64),
            backfill=backfill,
        )  # fmt: skip

    def write_table(
        self, table: Any, *, time: str = "time", name: str | None = None, value: str = "value",
        backfill: bool = False,
    ) -> int:  # fmt: skip
        """A table of pandas, polars, pyarrow or anything else with `__arrow_c_stream__`.

        With a column `value` a row is one sample, of the series that the column `name` (or the
        argument) and the columns of text say; without, each column of numbers is a metric. How
        many samples were accepted.
        """
        from siltstone.metrics.tables import write_table

        return write_table(
            self._writer, table, time=time, name=name, value=value, backfill=backfill
        )

    def write_ids(self, ids: Any, times: Any, values: Any, *, backfill: bool = False) -> int:
        """A sample for each id (of `series(...).id`); times in ms. For decoders of requests."""
        return self._writer.head.write(ids, times, values, backfill)

    def delete(self, match: Match, start: Any = None, end: Any = None) -> int:
        """Delete the samples of these series within [start, end]; how many series that touched.

        All series: '{__name__=~".*"}'. None is refused: it may stand for a name that was forgotten.
        """
        if match is None:
            raise InvalidValue("say which series: '{__name__=~\".+\"}' are all")
        from siltstone.metrics.deletion import delete

        return delete(self._writer, matchers_of(match), *_range(start, end))

    # Reading

    def select(
        self, match: Match, start: Any = None, end: Any = None, *, tier: str | float | None = None
    ) -> list[Any]:
        """Series with samples within [start, end], both included, by their sorted labels.

        With `tier` ("1m", or seconds): `TierSeries` with sum, min, max and count of each step.
        """
        low, high = _range(start, end)
        if tier is None:
            return self.engine.reader.select(matchers_of(match), low, high)
        return self.select_tier(match, low, high, tier)

    def select_tier(self, match: Match, low: int, high: int, tier: str | float) -> list[TierSeries]:
        """What `select(..., tier=)` gives, of int64 Unix milliseconds low to high."""
        step = round(parse_duration(tier) * 1000)
        if step not in self.settings.tiers:
            has = ", ".join(format_duration(one / 1000) for one in self.settings.tiers)
            raise InvalidValue(f"there is no tier of {tier!r}: {has or 'none'}")
        number = self.settings.tiers.index(step)
        return self.engine.reader.select_tier(matchers_of(match), low, high, number)

    def query(self, promql: str, time: Any = None, **limits: Any) -> Result:
        """A PromQL expression at one moment; None: now. `limits`: see `promql.query`."""
        moment = self._clock.now_ms() if time is None else time_ms(time)
        _check_text(promql)
        return evaluator.query(EngineSource(self.engine), promql, moment, **limits)

    def query_range(self, promql: str, start: Any, end: Any, step: Any, **limits: Any) -> Result:
        """A PromQL expression at start, start + step, ... up to end."""
        step_ms = round(parse_duration(step) * 1000)
        _check_text(promql)
        return evaluator.query_range(
            EngineSource(self.engine), promql, time_ms(start), time_ms(end), step_ms, **limits
        )

    def labels(self, match: Match = None) -> list[str]:
        """Names of labels, of all series or of those that match."""
        return self._known(match, lambda registry, ids: registry.names(ids))

    def label_values(self, name: str, match: Match = None) -> list[str]:
        """The values that a label has, of all series or those that match, sorted."""
        return self._known(match, lambda registry, ids: registry.values(name, ids))

    def list_series(
        self, match: Match = None, start: Any = None, end: Any = None
    ) -> list[dict[str, str]]:
        """The label sets of the series that match, by their sorted labels."""
        return self.engine.reader.known(matchers_of(match), *_range(start, end))[1]

    def _known(self, match: Match, ask: Any) -> list[str]:
        engine = self.engine
        ids, _ = engine.reader.known(matchers_of(match), -_FOREVER, _FOREVER)
        with engine.lock:
            found: list[str] = ask(engine.registry, ids)
        return found

    # Durability, care

    def flush(self) -> None:
        """Everything accepted is with the operating system: `kill -9` loses none of it."""
        self._writer.flush()

    def sync(self) -> None:
        """Everything accepted is on the medium."""
        self._writer.sync()

    def checkpoint(self) -> None:
        """Seal all heads; opening then replays nothing."""
        self._do(FLUSH, self._writer.checkpoint)

    def compact(self) -> None:
        """Merge all small chunks now, as the background would in time."""
        self._do(CARE, self._writer.merger.compact)

    def _do(self, priority: int, function: Callable[[], object]) -> None:
        if self._background is None:
            function()
        else:
            self._background.do(priority, function)

    def refresh(self) -> None:
        """Of a read-only opening: see what the writer wrote since."""
        engine = self.engine
        if not self.settings.read_only:
            raise InvalidValue("only what was opened read-only can be refreshed")
        self._engine = self._seen(self._device())
        engine.close()

    def verify(self) -> Report:
        """Read and check everything; writes nothing."""
        from siltstone.metrics.verify import verify

        return verify(self.engine)

    def backup(self, path: str | os.PathLike[str]) -> Report:
        """A copy that opens by itself, of all samples given before the call; writing goes on."""
        from siltstone.metrics.backup import backup

        return backup(self._writer, Path(os.fsdecode(path)))

    def import_netdata(
        self,
        directory: str | os.PathLike[str],
        names: Mapping[Any, Mapping[str, str]] | None = None,
        *,
        tier: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> ImportReport:
        """Netdata's dbengine files into this database: the finest tier, unless told otherwise.

        Resumable and harmless when repeated. `names`: {uuid: labels}, see
        `siltstone.metrics.netdata.open`. `progress(done, of)` counts bytes.
        """
        from siltstone.metrics.imports import import_netdata

        return import_netdata(self._writer, directory, names, tier=tier, progress=progress)

    def stats(self) -> dict[str, Any]:
        """Counts, sizes in bytes and the retention's forecast; see metrics/statistics.py."""
        from siltstone.metrics.statistics import statistics

        found = statistics(self.engine)
        if self._background is not None:
            found["background"] = self._background.stats()
        return found

    def cardinality(self, most: int = 10) -> Cardinality:
        """How many series, labels and values are known, and the `most` largest of each."""
        return cardinality(self.engine, most)

    def segments(self) -> list[dict[str, Any]]:
        """The segment map: each slot's state, stream, filled and live bytes."""
        from siltstone.metrics.statistics import segment_map

        return segment_map(self.engine)

    @property
    def size_on_disk(self) -> int:
        """Bytes of allocated blocks; never above retention_size."""
        return self.engine.device.size_on_disk

    def close(self) -> None:
        """Write everything down, end. Idempotent."""
        with self._close_lock:
            if self._closed:
                return
            if self._pid != os.getpid():
                self._closed = True
                return
            try:
                if self._background is not None:
                    self._background.close()
                self._engine.close()
            finally:
                self._closed = True
                if self._pool is not None:
                    self._pool.close()
                if self._opener is not None:
                    self._opener.close()

    def __enter__(self) -> Self:
        _ = self.engine  # says that it is closed, or the parent's
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """By path, for reading: a second process cannot write beside this one."""
        return _reopen, (str(self.path),)

    def __repr__(self) -> str:
        return f"<Metrics {self.path}{' closed' if self._closed else ''}>"


class EngineSource:
    """What the evaluator of PromQL asks (source.py), answered by an engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def select(
        self, matchers: Sequence[Matcher], start_ms: int, end_ms: int, step_hint_ms: int = 0
    ) -> list[Series]:
        return self._engine.reader.select(matchers, start_ms, end_ms)

    def latest(self, matchers: Sequence[Matcher], end_ms: int, lookback_ms: int) -> Latest:
        return self._engine.reader.latest(matchers, end_ms - lookback_ms, end_ms)

    def each(
        self, matchers: Sequence[Matcher], start_ms: int, end_ms: int,
        function: Callable[[list[Series]], A],
    ) -> Iterator[A]:  # fmt: skip
        return self._engine.reader.each(matchers, start_ms, end_ms, function, stand_in=True)

    def points(
        self, matchers: Sequence[Matcher], start_ms: int, end_ms: int, grid_ms: int
    ) -> Points | None:
        return self._engine.reader.points_for(matchers, start_ms, end_ms, grid_ms)


def _reopen(path: str) -> Metrics:
    return Metrics(path, read_only=True)


def _check_text(promql: object) -> None:
    if not isinstance(promql, str):
        raise InvalidQuery(f"a query is PromQL, a str, not {type(promql).__name__}")


def _range(start: Any, end: Any) -> tuple[int, int]:
    low = -_FOREVER if start is None else time_ms(start)
    high = _FOREVER if end is None else time_ms(end)
    if low > high:
        raise InvalidValue(f"the range ends before it starts: {start!r} to {end!r}")
    return low, high


def _sizes_of(file: Path) -> dict[str, Any]:
    """The geometry that a file was made with, so that it is opened as its owner did."""
    try:
        superblock = superblock_of(file)
    except (OSError, SiltstoneError):
        return {}  # opening says what is wrong
    if superblock is None or superblock.engine != ENGINE:
        return {}
    size = superblock.segment_bytes
    slots = quota_of(superblock)
    return {"segment_size": size, "retention_size": slots * size + FIRST_DATA_OFFSET}
