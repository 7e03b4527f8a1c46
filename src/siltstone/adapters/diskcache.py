"""Taking over a directory of diskcache (5.x: Cache, FanoutCache, DjangoCache, Deque, Index).

Facts of the format, as its tables show: a directory holds `cache.db`, SQLite, with a table Cache;
a FanoutCache has such directories 000, 001, ... in it. `raw` = 1: the key is as it stands, else it
is pickled. `mode`: 1 the value is as it stands, 2 bytes and 3 text in a file, 4 pickled (in `value`
or in a file); `filename` is relative to the directory; `expire_time` is Unix seconds.

Whoever can write such a directory can put a pickle into it that runs code when it is read. So
pickles are read by a reader that knows no class and no function: lists, dicts, sets, numbers, None
and the like come over, all else is left out and counted, unless `unpickle=True` says to trust it.
"""

from __future__ import annotations

import dataclasses
import io
import pickle
import sqlite3
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from siltstone import errors
from siltstone.cache.cache import Cache

RAW, BYTES_FILE, TEXT_FILE, PICKLE = 1, 2, 3, 4
DATABASE: Final = "cache.db"
FIELDS: Final = "rowid, key, raw, expire_time, tag, mode, filename, value"


@dataclasses.dataclass
class Report:
    """What became of the items: how many were stored, had expired, and why each was left out."""

    items: int = 0
    expired: int = 0
    problems: list[str] = dataclasses.field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Nothing was left out."""
        return not self.problems


def import_directory(
    directory: str | Path,
    cache: Cache,
    *,
    unpickle: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> Report:
    """Store every item of diskcache's `directory` in `cache`, with its time to live and tag.

    Nothing in `directory` is changed; doing it again changes nothing. `unpickle`: trust the
    directory, and run what its pickles say. `progress` is told (items done, of).
    """
    databases = databases_of(Path(directory))
    report, done = Report(), 0
    total = sum(_count(database) for database in databases)
    for database in databases:
        for row in _rows(database):
            _store(cache, row, database.parent, unpickle, report)
            done += 1
            if progress is not None:
                progress(done, total)
    return report


def databases_of(directory: Path) -> list[Path]:
    """The database of a Cache, or those of the parts of a FanoutCache; EnvironmentFailure: none."""
    parts = sorted(directory.glob(f"[0-9][0-9][0-9]/{DATABASE}"))
    found = [database for database in (directory / DATABASE, *parts) if database.is_file()]
    if not found:
        raise errors.EnvironmentFailure(
            f"{directory}: no {DATABASE} of diskcache here, nor in directories 000, 001, ..."
        )
    return found


def bytes_in(directory: Path) -> int:
    """What the directory's files hold."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def _connect(database: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(f"file:{urllib.parse.quote(str(database))}?mode=ro", uri=True)
    connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
    return connection


def _failed(database: Path, error: sqlite3.Error) -> errors.EnvironmentFailure:
    return errors.EnvironmentFailure(f"{database} cannot be read as diskcache's: {error}")


def _count(database: Path) -> int:
    try:
        with closing(_connect(database)) as connection:
            return int(connection.execute("SELECT COUNT(*) FROM Cache").fetchone()[0])
    except sqlite3.Error as error:
        raise _failed(database, error) from error


def _rows(database: Path) -> Iterator[tuple[Any, ...]]:
    try:
        with closing(_connect(database)) as connection:
            yield from connection.execute(f"SELECT {FIELDS} FROM Cache ORDER BY rowid")
    except sqlite3.Error as error:
        raise _failed(database, error) from error


def _store(
    cache: Cache, row: tuple[Any, ...], directory: Path, unpickle: bool, report: Report
) -> None:
    number, key, raw, expire_time, tag, mode, filename, value = row
    name = f"row {number}"
    try:
        ttl = None if expire_time is None else expire_time - cache._clock.now_ms() / 1000
        if ttl is not None and ttl <= 0:
            report.expired += 1
            return
        key = key if raw else _unpickled(key, unpickle)
        name = f"{key!r:.60}"
        content = _content(value, mode, filename, directory, unpickle)
        cache.set(_whole_key(key), content, ttl, None if tag is None else _tag(tag))
        report.items += 1
    except (errors.CallerError, OSError, ValueError, TypeError) as error:  # SQLite checks no types
        report.problems.append(f"{name}: {error}")


def _whole_key(key: Any) -> Any:
    # 2 and 2.0 are one key in SQLite's eyes and in Python's
    return int(key) if isinstance(key, float) and key.is_integer() else key


def _tag(tag: Any) -> str:
    return tag.decode("utf-8", "replace") if isinstance(tag, bytes) else str(tag)


def _content(value: Any, mode: int, filename: str | None, directory: Path, unpickle: bool) -> Any:
    data = value if filename is None else _file(directory, filename)
    if mode in (RAW, BYTES_FILE):
        return data
    if mode == TEXT_FILE:
        return data.decode("utf-8")
    if mode == PICKLE:
        return _unpickled(data, unpickle)
    raise errors.InvalidValue(f"mode {mode} is not one that diskcache 5 writes")


def _file(directory: Path, filename: str) -> bytes:
    """A file of the directory; never one outside, whatever the table says."""
    path = (directory / filename).resolve()
    if not path.is_relative_to(directory.resolve()):
        raise errors.InvalidValue(f"its file {filename!r} is outside of the directory")
    return path.read_bytes()


class _PlainData(pickle.Unpickler):
    """Reads what needs no class and no function; so nothing in a pickle can be called."""

    def find_class(self, module: str, name: str) -> Any:
        raise errors.InvalidValue(
            f"pickled with {module}.{name}, which is not plain data: "
            "left out (--unpickle, unpickle=True reads it, and runs what is in it)"
        )


def _unpickled(data: Any, trusted: bool) -> Any:
    if not isinstance(data, bytes):
        raise errors.InvalidValue("a pickle that is no bytes")
    try:
        return pickle.loads(data) if trusted else _PlainData(io.BytesIO(data)).load()
    except errors.InvalidValue:
        raise
    except Exception as error:  # a damaged pickle raises what it likes
        raise errors.InvalidValue(f"a pickle that cannot be read: {error}") from error
