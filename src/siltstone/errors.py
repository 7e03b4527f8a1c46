"""Every error that siltstone raises: one tree, four branches, each also the built-in that fits.

`CallerError` is the caller's mistake, `PeerError` a client's, `EnvironmentFailure` the machine's
(disk full, lock held, device broken), `Corruption` bytes that are not what was written.
`MEMCACHED_REPLIES` maps the tree to the lines that a memcached client sees.
"""

from __future__ import annotations


class SiltstoneError(Exception):
    """The root of the tree."""


# The caller's mistake -----------------------------------------------------------------------


class CallerError(SiltstoneError):
    """The call itself is wrong; the same call will fail again."""


class ConfigError(CallerError, ValueError):
    """A setting that cannot work; the text says which value would."""


class KeyMissing(CallerError, KeyError):
    """No item under this key."""


class OutOfRange(CallerError, IndexError):
    """There is no value at that place of a sequence."""


class InvalidKey(CallerError, ValueError):
    """A key of the wrong type, empty, or longer than the limit."""


class InvalidValue(CallerError, ValueError):
    """A value that the codec or the operation cannot take."""


class TooLarge(CallerError, ValueError):
    """An item above `item_size_max`."""


class LimitReached(CallerError, ValueError):
    """A limit of the settings: too many series, labels or samples. The text names the setting."""


class NotANumber(CallerError, ValueError):
    """incr or decr on a value that is not a decimal number."""


class Closed(CallerError, ValueError):
    """Use after close()."""


class NotHeld(CallerError, RuntimeError, AssertionError):
    """A lock was released that its caller does not hold."""


class Conflict(CallerError, RuntimeError):
    """What the transaction read was changed by another meanwhile; nothing was written: again."""


class Outdated(CallerError, RuntimeError):
    """The page changed since this pointer was had; `actual` is the pointer that it has now."""

    def __init__(self, message: str, actual: object = None) -> None:
        super().__init__(message)
        self.actual = actual


class ForkedProcess(CallerError, RuntimeError):
    """A handle of one process used in its forked child; open a new one there."""


class InvalidQuery(CallerError, ValueError):
    """A query that cannot be parsed, or a time range that makes no sense."""


class QueryFailed(CallerError, ValueError):
    """A query that is well formed and cannot be answered on this data."""


class QueryTooLarge(QueryFailed):
    """A query that needs more points or samples than the limits allow."""


class QueryCancelled(CallerError, RuntimeError):
    """A query that its caller stopped."""


class EventsLost(CallerError, RuntimeError):
    """A watch was read too slowly, or its tree cleared or dropped: `count` events are missing here.
    Iterating again goes on."""

    def __init__(self, count: int) -> None:
        super().__init__(
            f"{count} events are missing: the watch was read too slowly, or its tree was cleared "
            "or dropped; read again what it is about"
        )
        self.count = count


# A client's mistake -------------------------------------------------------------------------


class PeerError(SiltstoneError):
    """A client spoke out of protocol."""


class ProtocolError(PeerError, ValueError):
    """A request that cannot be parsed."""


# The environment ----------------------------------------------------------------------------


class EnvironmentFailure(SiltstoneError, OSError):
    """The machine refused: a device, a lock, memory."""


class Busy(EnvironmentFailure, TimeoutError):
    """A shared lock was not had in time; its holder is named. Nothing was changed: try again."""


class QueryTimeout(EnvironmentFailure, TimeoutError):
    """A query took longer than its time limit. Nothing was changed."""


class OutOfMemory(EnvironmentFailure, MemoryError):
    """The memory limit is reached and nothing could be evicted."""


class Locked(EnvironmentFailure):
    """The data is open in another process, whose pid the text names."""


class DeviceFailed(EnvironmentFailure):
    """A read, write or sync on the device failed; the text names file, offset and errno."""


class ReadOnly(EnvironmentFailure, PermissionError):
    """After a failed sync nothing more is written until the data is opened again."""


class SnapshotTooOld(EnvironmentFailure):
    """The old versions that a snapshot needs went over `snapshot_bytes_max`, or are gone."""


# Corruption ---------------------------------------------------------------------------------


class Corruption(SiltstoneError, OSError):
    """Stored bytes fail their check. `path`, `offset`, `expected` and `found` say where."""

    def __init__(
        self,
        message: str,
        *,
        path: str = "",
        offset: int = -1,
        expected: object = None,
        found: object = None,
    ) -> None:
        super().__init__(message)
        self.path, self.offset, self.expected, self.found = path, offset, expected, found


class WrongFormat(Corruption):
    """A file that is not ours, of another engine, or of a format version we do not read."""


# What a memcached client is told. The first class in this order that fits decides.
MEMCACHED_REPLIES: tuple[tuple[type[SiltstoneError], bytes], ...] = (
    (TooLarge, b"SERVER_ERROR object too large for cache"),
    (OutOfMemory, b"SERVER_ERROR out of memory storing object"),
    (Busy, b"SERVER_ERROR busy"),
    (NotANumber, b"CLIENT_ERROR cannot increment or decrement non-numeric value"),
    (InvalidKey, b"CLIENT_ERROR bad command line format"),
    (ProtocolError, b"CLIENT_ERROR bad command line format"),
    (CallerError, b"CLIENT_ERROR bad command line format"),
    (SiltstoneError, b"SERVER_ERROR internal error"),
)


def memcached_reply(error: SiltstoneError) -> bytes:
    """The line (without CRLF) that a memcached client gets for `error`."""
    for kind, line in MEMCACHED_REPLIES:
        if isinstance(error, kind):
            return line
    raise AssertionError("the root of the tree is in the table")
