"""Large values as files: written in pieces and seen when they are closed, read from any place.

A writer stores its pieces in the log as they come, in pages that belong to nobody until the value
is committed; `close()` commits. Left by an exception, abandoned or forgotten, it leaves nothing.
A reader shows the value as of the moment when it was opened. Files are one thread's at a time.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, Protocol

from siltstone.errors import Closed, InvalidValue, TooLarge

INLINE_BYTES = 64 << 10  # up to so much is gathered and stored like any value


class BlobWriter(Protocol):
    """What the tree gives for a value that comes in pieces."""

    def write(self, data: Any) -> None: ...

    def commit(self, durable: bool | None) -> None: ...

    def abandon(self) -> None: ...


class ValueWriter(io.BufferedIOBase):
    """See the module. `open_blob()` begins a large value, `set_small(value)` stores a small one."""

    def __init__(
        self,
        key: bytes,
        size_max: int,
        open_blob: Callable[[], BlobWriter],
        set_small: Callable[[bytes], object],
        durable: bool | None,
    ) -> None:
        self.key, self.name = key, key
        self.mode = "wb"
        self._size_max = size_max
        self._open_blob, self._set_small, self._durable = open_blob, set_small, durable
        self._pieces: list[bytes] = []
        self._waiting = 0
        self._size = 0
        self._blob: BlobWriter | None = None
        self._ended = False

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        self._check()
        return self._size

    def _check(self) -> None:
        if self._ended:
            raise Closed("this file is closed")

    def write(self, data: Any) -> int:
        """Bytes written: all. TooLarge beyond `value_size_max`; then the value is given up."""
        self._check()
        try:
            piece = bytes(memoryview(data))  # bytes(3) would be three zeros
        except TypeError:
            raise InvalidValue(
                f"a value is made of bytes, not {type(data).__name__}; encode it first"
            ) from None
        if self._size + len(piece) > self._size_max:
            self.abandon()
            raise TooLarge(f"a value of more than {self._size_max} bytes (value_size_max)")
        self._pieces.append(piece)
        self._waiting += len(piece)
        self._size += len(piece)
        if self._waiting > INLINE_BYTES:
            self._pass_on()
        return len(piece)

    def _pass_on(self) -> None:
        if self._blob is None:
            self._blob = self._open_blob()
        self._blob.write(b"".join(self._pieces))
        self._pieces, self._waiting = [], 0

    def close(self) -> None:
        """Commit the value: it is visible, whole, from now on. Idempotent."""
        if self._ended:
            return
        try:
            if self._blob is None:
                self._set_small(b"".join(self._pieces))
            else:
                if self._pieces:
                    self._pass_on()
                self._blob.commit(self._durable)
            self._blob = None
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Give the value up; nothing of it stays. Idempotent."""
        if not self._ended:
            self._ended = True
            self._pieces = []
            blob, self._blob = self._blob, None
            if blob is not None:
                blob.abandon()
        super().close()

    @property
    def closed(self) -> bool:
        return self._ended

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    def __del__(self) -> None:
        self.abandon()


class BlobReader(Protocol):
    """What the tree gives to read a value in parts."""

    size: int

    def read_at(self, offset: int, size: int) -> bytes: ...

    def close(self) -> None: ...


class ValueReader(io.RawIOBase):
    """The parts of a value; wrapped by io.BufferedReader for whoever reads small pieces."""

    def __init__(self, key: bytes, blob: BlobReader) -> None:
        self.name = key
        self.mode = "rb"
        self.size = blob.size
        self._blob = blob
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self.size}.get(whence)
        if start is None:
            raise InvalidValue(f"whence is 0, 1 or 2, not {whence!r}")
        if start + offset < 0:
            raise InvalidValue(f"seek to {start + offset}: before the beginning")
        self._place = start + offset
        return self._place

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self._blob.read_at(self._place, len(view))
        view[: len(data)] = data
        self._place += len(data)
        return len(data)

    def readall(self) -> bytes:
        data = self._blob.read_at(self._place, max(0, self.size - self._place))
        self._place += len(data)
        return data

    def close(self) -> None:
        if not self.closed:
            self._blob.close()
        super().close()
