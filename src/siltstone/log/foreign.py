"""Files of other programs: read without ever changing them, or written for another to read.

Part of the one seam to files, beside device.py. Reading is by `pread` and bounded by what the file
holds at that moment, never by a mapping: a file that its owner truncates gives short reads, not
SIGBUS. No locks are taken, so the owner may be running. Any thread; each object is its caller's.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Self

from siltstone.errors import ConfigError, DeviceFailed, EnvironmentFailure

StrPath = str | os.PathLike[str]


class ForeignFile:
    """A regular file, opened for reading only."""

    def __init__(self, path: StrPath) -> None:
        self.path = os.fspath(path)
        try:
            # a named pipe would block without O_NONBLOCK
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise _failed(self.path, "cannot be opened", error) from error
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            self.close()
            raise ConfigError(f"{self.path} is not a regular file")

    @property
    def size(self) -> int:
        """Bytes in the file now; its owner may change that at any time."""
        return os.fstat(self._descriptor).st_size

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes; fewer only where the file ends. DeviceFailed when it cannot."""
        parts: list[bytes] = []
        while size > 0:
            try:
                part = os.pread(self._descriptor, size, offset)
            except OSError as error:
                raise DeviceFailed(
                    error.errno, f"{self.path} at {offset} cannot be read: {error.strerror}"
                ) from error
            if not part:
                break
            parts.append(part)
            offset += len(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class NewFile:
    """A file that must not be there yet, written from its front to its end."""

    def __init__(self, path: StrPath, *, mode: int = 0o600) -> None:
        self.path = os.fspath(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            self._descriptor = os.open(path, flags, mode)
        except OSError as error:
            raise _failed(self.path, "cannot be created", error) from error
        self.size = 0

    def append(self, data: bytes) -> None:
        """At the end. After an error the file holds nothing that may be used."""
        view = memoryview(data)
        while view:
            try:
                written = os.pwrite(self._descriptor, view, self.size)
            except OSError as error:
                raise DeviceFailed(
                    error.errno, f"{self.path} at {self.size}: {error.strerror}"
                ) from error
            self.size += written
            view = view[written:]

    def close(self, *, sync: bool = True) -> None:
        """Durable when it returns, if `sync`."""
        if self._descriptor < 0:
            return
        descriptor, self._descriptor = self._descriptor, -1
        try:
            if sync:
                os.fsync(descriptor)
        except OSError as error:
            raise DeviceFailed(error.errno, f"{self.path}: {error.strerror}") from error
        finally:
            os.close(descriptor)


def names_in(directory: StrPath) -> list[str]:
    """The sorted names in a directory; EnvironmentFailure when it cannot be listed."""
    try:
        return sorted(os.listdir(directory))
    except OSError as error:
        raise _failed(os.fspath(directory), "cannot be listed", error) from error


def _failed(path: str, what: str, error: OSError) -> EnvironmentFailure:
    if error.errno == errno.ENOENT and not os.path.lexists(path):
        what = "does not exist" if os.path.isdir(os.path.dirname(path) or ".") else what
    return EnvironmentFailure(error.errno, f"{path} {what}: {error.strerror}")
