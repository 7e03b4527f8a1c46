"""The rare commands of a memcached server: statistics, flushing, limits, dumps, runtime settings.

Owns the grammar and reply lines of all that the session's C loop does not know. Promises: a line
is always answered, an unknown one with ERROR; nothing here raises for what a client sends. Called
by sessions, in the server's thread. What the commands do is the cache's: see `Backend`.
"""

from __future__ import annotations

import binascii
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import quote_from_bytes

from siltstone.clock import SYSTEM_CLOCK, Clock
from siltstone.config import MIB
from siltstone.errors import SiltstoneError, memcached_reply
from siltstone.serve import statistics
from siltstone.serve.memcache import CLOSE, Shared, item_class, item_size
from siltstone.serve.settings import Settings

log = logging.getLogger("siltstone.serve")

Answer = bytes | Iterator[bytes] | object

ERROR: Final = b"ERROR\r\n"
OK: Final = b"OK\r\n"
BAD_FORMAT: Final = b"CLIENT_ERROR bad command line format\r\n"
BAD_CLASS: Final = b"BADCLASS invalid class id\r\n"
RELATIVE_TIME_MAX: Final = 60 * 60 * 24 * 30
CLASS_MAX: Final = 63
CACHEDUMP_SIZE_MAX: Final = 2 * MIB
DUMP_PIECE: Final = 64 * 1024
PREFIXES_MAX: Final = 10_000  # of `stats detail`: clients choose them
LOG_LEVELS: Final = (logging.WARNING, logging.INFO, logging.DEBUG)


class ItemInfo(NamedTuple):
    """What a dump tells of an item."""

    key: bytes
    value_size: int
    client_flags: int
    cas: int
    expire_ms: int  # Unix, 0 = never
    accessed_ms: int  # Unix
    fetched: bool
    on_flash: bool


class SegmentInfo(NamedTuple):
    """A page of `stats extstore`."""

    version: int
    live_bytes: int
    stream: int


class Backend(Protocol):
    """What the commands need of a cache."""

    @property
    def engine(self) -> Any: ...
    def stats(self) -> Mapping[str, Any]: ...
    def flush_at(self, due_ms: int) -> None:
        """Everything stored before `due_ms` (Unix) is gone once that time comes."""

    def resize(self, ram: int) -> None:
        """Set the memory limit."""

    def tune(self, name: str, value: float) -> None:
        """Change a setting of CacheSettings while running."""

    def expire(self) -> int:
        """Remove what has expired."""

    def scan(self) -> Iterable[ItemInfo]: ...
    def segments(self) -> Iterable[SegmentInfo]: ...


class Control:
    """Shared by all sessions of a server."""

    def __init__(
        self,
        cache: Backend,
        settings: Settings,
        *,
        clock: Clock = SYSTEM_CLOCK,
        shutdown: Callable[[bool], None] | None = None,
        connections: Callable[[], Iterable[Mapping[str, Any]]] = lambda: (),
    ) -> None:
        self.cache = cache
        self.settings = settings
        self.clock = clock
        self.shutdown = shutdown
        self.connections = connections
        self.refresh_certificates: Callable[[], None] | None = None  # the server's, with TLS
        self.shared = Shared(settings.buffered_max)
        self.counters = statistics.ServerCounters(started_ms=clock.now_ms())
        self.prefixes: dict[bytes, list[int]] = {}
        self.shared.detail = bool(settings.prefix_delimiter)
        self._delimiter = (settings.prefix_delimiter or ":")[:1].encode()
        self._baseline: dict[str, Any] = {}
        self._commands: dict[bytes, Callable[[list[bytes], bool], Answer]] = {
            b"stats": self._stats,
            b"flush_all": self._flush_all,
            b"verbosity": self._verbosity,
            b"cache_memlimit": self._cache_memlimit,
            b"shutdown": self._shutdown,
            b"lru_crawler": self._lru_crawler,
            b"lru": self._lru,
            b"slabs": self._slabs,
            b"extstore": self._extstore,
            b"watch": self._watch,
            b"refresh_certs": self._refresh_certificates,
        }

    def command(self, line: bytes, first: bool) -> Answer:
        """The answer to a line: bytes, pieces of bytes, or CLOSE.

        `first`: nothing is waiting to be sent before it.
        """
        words = line.split(b" ")
        words = [word for word in words if word]
        if not words or words[0] not in self._commands:
            if words and words[-1].startswith(b"HTTP/"):
                return CLOSE  # a browser, or worse: a page that posts to us
            return ERROR
        quiet = len(words) > 1 and words[-1] == b"noreply"
        try:
            answer = self._commands[words[0]](words, first)
        except SiltstoneError as error:
            self.failed(error)
            answer = memcached_reply(error) + b"\r\n"
        return b"" if quiet and words[0] != b"stats" and isinstance(answer, bytes) else answer

    def failed(self, error: Exception) -> None:
        """A command failed for a reason of our own."""
        log.warning("command failed: %s: %s", type(error).__name__, error)

    # Statistics -----------------------------------------------------------------------------

    def count_prefix(self, key: bytes, what: int) -> None:
        """`stats detail`: 0 a miss, 1 a hit, 2 a set, 3 a delete of `key`."""
        prefix, delimiter, _ = key.partition(self._delimiter)
        if not delimiter:
            return
        counts = self.prefixes.get(prefix)
        if counts is None:
            if len(self.prefixes) >= PREFIXES_MAX:
                return
            counts = self.prefixes[prefix] = [0, 0, 0, 0]
        if what <= 1:
            counts[0] += 1
            counts[1] += what
        else:
            counts[what] += 1

    def _counted(self) -> dict[str, Any]:
        return statistics.since(self.cache.stats(), self._baseline)

    def _stats(self, words: list[bytes], first: bool) -> Answer:
        if len(words) == 1:
            shared = self.shared
            rows = statistics.general(
                self._counted(), self.counters, self.settings, self.clock,
                shared.bytes_read, shared.bytes_written,
            )  # fmt: skip
            return statistics.lines(rows)
        match words[1]:
            case b"reset":
                self._baseline = dict(self.cache.stats())
                self.counters = statistics.ServerCounters(
                    started_ms=self.counters.started_ms, connections=self.counters.connections
                )
                return b"RESET\r\n"
            case b"settings":
                return statistics.lines(
                    statistics.settings_rows(self.cache.stats(), self.settings, self.shared.detail)
                )
            case b"items":
                return statistics.lines(statistics.items(self._counted()))
            case b"slabs":
                return statistics.lines(statistics.slabs(self._counted()))
            case b"sizes":
                return statistics.lines([("sizes_status", "disabled")])
            case b"conns":
                return statistics.lines(self._conns())
            case b"extstore":
                return statistics.lines(self._pages())
            case b"detail":
                return self._detail(words)
            case b"cachedump":
                return self._cachedump(words)
        return ERROR

    def _conns(self) -> Iterator[tuple[str, Any]]:
        for connection in self.connections():
            number = connection["number"]
            for name, value in connection.items():
                if name != "number":
                    yield f"{number}:{name}", value

    def _pages(self) -> Iterator[tuple[str, Any]]:
        for number, segment in enumerate(self.cache.segments()):
            yield f"{number}:version", segment.version
            yield f"{number}:bytes", segment.live_bytes
            yield f"{number}:bucket", segment.stream
            yield f"{number}:free_bucket", 0

    def _detail(self, words: list[bytes]) -> Answer:
        what = words[2] if len(words) == 3 else b""
        if what in (b"on", b"off"):
            self.shared.detail = what == b"on"
            return OK
        if what != b"dump":
            return b"CLIENT_ERROR usage: stats detail on|off|dump\r\n"
        return (
            b"".join(
                b"PREFIX %s get %d hit %d set %d del %d\r\n" % (prefix, gets, hits, sets, deletes)
                for prefix, (gets, hits, sets, deletes) in self.prefixes.items()
            )
            + b"END\r\n"
        )

    def _cachedump(self, words: list[bytes]) -> Answer:
        if not self.settings.allow_dump:
            return b"CLIENT_ERROR stats cachedump not allowed\r\n"
        if len(words) < 4:
            return b"CLIENT_ERROR bad command line\r\n"
        number, limit = _unsigned(words[2]), _unsigned(words[3])
        if number is None or limit is None:
            return BAD_FORMAT
        if number > CLASS_MAX:
            return b"CLIENT_ERROR Illegal slab id\r\n"
        found: list[bytes] = []
        size = 0
        for item in self.cache.scan():
            whole = item_size(len(item.key), item.client_flags, item.value_size)
            if item_class(whole) != number:
                continue
            line = b"ITEM %s [%d b; %d s]\r\n" % (item.key, item.value_size, item.expire_ms // 1000)
            size += len(line)
            if size > CACHEDUMP_SIZE_MAX:
                break
            found.append(line)
            if len(found) == limit:
                break
        return b"".join(found) + b"END\r\n"

    # Flushing and limits --------------------------------------------------------------------

    def _flush_all(self, words: list[bytes], first: bool) -> Answer:
        if len(words) > 3:
            return ERROR
        if not self.settings.allow_flush:
            return b"CLIENT_ERROR flush_all not allowed\r\n"
        delay: int | None = 0
        if len(words) > 1 and not (len(words) == 2 and words[1] == b"noreply"):
            delay = _signed(words[1])
        if delay is None:
            return b"CLIENT_ERROR invalid exptime argument\r\n"
        now_ms = self.clock.now_ms()
        if delay > RELATIVE_TIME_MAX:
            due_ms = delay * 1000
        else:
            due_ms = now_ms + delay * 1000
        self.counters.flushes += 1
        # a time that has come is seen by the next command, whatever the clock does
        self.cache.flush_at(due_ms if due_ms > now_ms else 1)
        return OK

    def _verbosity(self, words: list[bytes], first: bool) -> Answer:
        if not 2 <= len(words) <= 3:
            return ERROR
        level = _unsigned(words[1])
        if level is None:
            return BAD_FORMAT
        logging.getLogger("siltstone").setLevel(LOG_LEVELS[min(level, 2)])
        return OK

    def _cache_memlimit(self, words: list[bytes], first: bool) -> Answer:
        limit = _unsigned(words[1]) if 2 <= len(words) <= 3 else None
        if limit is None:
            return ERROR
        if limit < 8:
            return b"MEMLIMIT_TOO_SMALL cannot set maxbytes to less than 8m\r\n"
        if limit > 1_000_000_000:
            return b"MEMLIMIT_ADJUST_FAILED input value is megabytes not bytes\r\n"
        try:
            self.cache.resize(limit * MIB)
        except SiltstoneError as error:
            log.warning("cache_memlimit %d: %s", limit, error)
            return b"MEMLIMIT_ADJUST_FAILED out of bounds or unable to adjust\r\n"
        return OK

    def _shutdown(self, words: list[bytes], first: bool) -> Answer:
        if not self.settings.allow_shutdown or self.shutdown is None:
            return b"ERROR: shutdown not enabled\r\n"
        if len(words) == 1 or (len(words) == 2 and words[1] == b"graceful"):
            log.info("shutdown command received")
            self.shutdown(len(words) == 2)
            return CLOSE
        return b"CLIENT_ERROR invalid shutdown mode\r\n" if len(words) == 2 else ERROR

    def _refresh_certificates(self, words: list[bytes], first: bool) -> Answer:
        if self.refresh_certificates is None:
            return b"Error TLS not enabled\r\n"
        try:
            self.refresh_certificates()
        except SiltstoneError as error:
            log.warning("refresh_certs: %s", error)
            return b"Error %s\r\n" % str(error).encode()
        return OK

    def _watch(self, words: list[bytes], first: bool) -> Answer:
        if not self.settings.allow_watch:
            return b"CLIENT_ERROR watch commands not allowed\r\n"
        return ERROR

    # The crawler and dumps ------------------------------------------------------------------

    def _lru_crawler(self, words: list[bytes], first: bool) -> Answer:
        what, rest = (words[1], words[2:]) if len(words) > 1 else (b"", [])
        if what in (b"enable", b"disable") and not rest:
            return OK  # expired items are found in passing; there is no thread to stop
        if what in (b"metadump", b"mgdump") and len(rest) == 1:
            return self._dump(what, rest[0], first)
        if what == b"crawl" and len(rest) == 1:
            if not _classes(rest[0]):
                return BAD_CLASS
            self.counters.crawls += 1
            self.cache.expire()
            return OK
        if what in (b"sleep", b"tocrawl") and len(rest) == 1:
            number = _unsigned(rest[0])
            if number is None:
                return BAD_FORMAT
            if what == b"sleep" and number > 1_000_000:
                return b"CLIENT_ERROR sleep must be one second or less\r\n"
            return OK
        return ERROR

    def _dump(self, what: bytes, classes: bytes, first: bool) -> Answer:
        if not self.settings.allow_dump:
            return b"ERROR metadump not allowed\r\n"
        if not first:
            return b"ERROR cannot pipeline other commands before metadump\r\n"
        chosen = None if classes == b"hash" else _classes(classes)
        if chosen is not None and not chosen:
            return BAD_CLASS
        if what == b"mgdump":
            return self._pieces(_mgdump_line, chosen, b"OK\r\n", b"EN\r\n")
        return self._pieces(_metadump_line, chosen, b"", b"END\r\n")

    def _pieces(
        self,
        form: Callable[[ItemInfo, int, int], bytes],
        chosen: frozenset[int] | None,
        head: bytes,
        tail: bytes,
    ) -> Iterator[bytes]:
        piece = bytearray(head)
        for item in self.cache.scan():
            size = item_size(len(item.key), item.client_flags, item.value_size)
            number = item_class(size)
            if chosen is not None and number not in chosen:
                continue
            piece += form(item, number, size)
            if len(piece) >= DUMP_PIECE:
                yield bytes(piece)
                piece.clear()
        yield bytes(piece + tail)

    # Settings at run time -------------------------------------------------------------------

    def _lru(self, words: list[bytes], first: bool) -> Answer:
        match words[1:]:
            case [b"tune", hot, warm, hot_factor, warm_factor]:
                parts = _unsigned(hot), _unsigned(warm)
                if None in parts or None in (_float(hot_factor), _float(warm_factor)):
                    return ERROR
                if (parts[0] or 0) + (parts[1] or 0) > 80:
                    return b"ERROR hot and warm pcts must not exceed 80\r\n"
                return OK
            case [b"mode", b"flat" | b"segmented"]:
                return OK
            case [b"temp_ttl", ttl]:
                return ERROR if _signed(ttl) is None else OK
        return ERROR

    def _slabs(self, words: list[bytes], first: bool) -> Answer:
        """There are no slabs to move; the answers are those of a server with nothing to spare."""
        match words[1:]:
            case [b"reassign", source, target]:
                numbers = _signed(source), _signed(target)
                if None in numbers:
                    return BAD_FORMAT
                if numbers[0] == numbers[1]:
                    return b"SAME src and dst class are identical\r\n"
                if any(not 1 <= (number or 0) <= CLASS_MAX for number in numbers):
                    return b"BADCLASS invalid src or dst class id\r\n"
                return b"NOSPARE source class has no spare pages\r\n"
            case [b"automove", b"ratio" | b"freeratio", value]:
                number = _float(value)
                if number is None or not 0 <= number <= 1:
                    return ERROR
                return OK
            case [b"automove", b"window", value]:
                return ERROR if _unsigned(value) is None else OK
            case [b"automove", value]:
                if _unsigned(value) is None and value not in (b"ratio", b"freeratio", b"window"):
                    return BAD_FORMAT
                return OK if value in (b"0", b"1", b"2") else ERROR
        return ERROR

    def _extstore(self, words: list[bytes], first: bool) -> Answer:
        if len(words) < 3:
            return ERROR
        name, value = words[1], words[2]
        if name == b"free_memchunks":
            return ERROR if len(words) < 4 else OK
        setting = FLASH_SETTINGS.get(name)
        number = _float(value) if name == b"max_frag" else _unsigned(value)
        if setting is None or number is None:
            return ERROR
        if setting:
            self.cache.tune(setting, number)
        return OK


# memcached's name -> CacheSettings' name; "": taken, without effect here.
FLASH_SETTINGS: Final[dict[bytes, str]] = {
    b"item_size": "item_size_min",
    b"item_age": "item_age",
    b"low_ttl": "low_ttl",
    b"recache_rate": "recache_rate",
    b"compact_under": "compact_under",
    b"drop_under": "drop_under",
    b"max_frag": "max_fragmentation",
    b"drop_unread": "drop_unread",
    b"max_sleep": "",
}


def _metadump_line(item: ItemInfo, number: int, size: int) -> bytes:
    return b"key=%s exp=%d la=%d cas=%d fetch=%s cls=%d size=%d\n" % (
        quote_from_bytes(item.key, safe="").encode(),
        item.expire_ms // 1000 if item.expire_ms else -1,
        item.accessed_ms // 1000,
        item.cas,
        b"yes" if item.fetched else b"no",
        number,
        size,
    )


def _mgdump_line(item: ItemInfo, number: int, size: int) -> bytes:
    if any(byte <= 32 or byte == 127 for byte in item.key):
        return b"mg " + binascii.b2a_base64(item.key, newline=False) + b" b\r\n"
    return b"mg " + item.key + b"\r\n"


def _classes(text: bytes) -> frozenset[int]:
    """Of "all" or "1,2,3"; empty when it is neither."""
    if text == b"all":
        return frozenset(range(CLASS_MAX + 1))
    numbers = [_unsigned(part) for part in text.split(b",")]
    if any(number is None or not 1 <= number <= CLASS_MAX for number in numbers):
        return frozenset()
    return frozenset(number for number in numbers if number is not None)


def _unsigned(text: bytes) -> int | None:
    return int(text) if text.isdigit() and len(text) <= 20 else None


def _signed(text: bytes) -> int | None:
    number = _unsigned(text[1:] if text[:1] in (b"-", b"+") else text)
    return None if number is None else -number if text[:1] == b"-" else number


def _float(text: bytes) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
