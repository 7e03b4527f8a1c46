"""A queue on disk of what is to be sent: messages, each with a count of samples, in files.

    000000000001.queue   "SILTOUT1", then records: length u32, samples u32, crc32c u32, message
    000000000001.sent    offsets in the queue file up to which all is sent: offset u64, crc32c u32

Numbers are little-endian; a record's checksum covers file number, offset, length, samples and
message. Messages are appended to the newest file, and read from the oldest; a file is removed when
all of it is sent. What was added survives `kill -9` (each `add` hands it to the operating system);
a power cut may cost what the system had not written yet, and what is damaged is counted and passed
over up to the file's end. After a kill a message may be sent a second time, if it was being sent.

Beyond `size_max` bytes the oldest file is dropped, and the samples in it counted. Any thread may
`add`; `take` and `done` are for one thread: the sender's.
"""

from __future__ import annotations

import struct
import threading
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from siltstone.errors import SiltstoneError
from siltstone.log.checksum import crc32c
from siltstone.log.device import remove_files
from siltstone.log.directory import make_directory
from siltstone.log.foreign import ForeignFile, NewFile, names_in

MAGIC: Final = b"SILTOUT1"
HEAD: Final = struct.Struct("<III")  # length, samples, checksum
BOUND: Final = struct.Struct("<QQII")  # what the checksum covers beside the message
SENT: Final = struct.Struct("<QI")
QUEUE, SENT_NAME = ".queue", ".sent"
FILES: Final = 16  # how many there are when the queue is full
FILE_SIZE_MIN: Final = 64 << 10
MESSAGE_SIZE_MAX: Final = 64 << 20


@dataclass
class _File:
    """One file: `size` bytes, read up to `read`; samples not read yet."""

    number: int
    size: int
    read: int = len(MAGIC)
    samples: int = 0
    sent: NewFile | None = None


@dataclass
class Taken:
    """Messages that are being sent, and how many samples are in them."""

    messages: list[bytes] = field(default_factory=list)
    samples: int = 0


class Outbox:
    """See the module's docstring. EnvironmentFailure: the directory cannot be used."""

    def __init__(self, directory: Path, *, size_max: int) -> None:
        self.directory = directory
        self.size_max = size_max
        self.file_size = max(size_max // FILES, FILE_SIZE_MIN)
        self.dropped = self.damaged = 0  # samples; places that could not be read
        self._lock = threading.Lock()
        self._files: deque[_File] = deque()
        self._writer: NewFile | None = None  # of the newest file
        self._reader: ForeignFile | None = None
        self._taken_from: _File | None = None
        make_directory(directory)
        self._open()

    # Adding -------------------------------------------------------------------------------

    def add(self, message: bytes, samples: int) -> None:
        """Another one, at the end. DeviceFailed: it is not in the queue (a full disk)."""
        assert len(message) <= MESSAGE_SIZE_MAX
        with self._lock:
            if self._writer is None or self._files[-1].size >= self.file_size:
                self._begin()
            newest, writer = self._files[-1], self._writer
            assert writer is not None
            try:
                writer.append(_packed(newest.number, newest.size, samples, message))
            except SiltstoneError:
                # it may hold a part: nothing more is written behind that
                self._end()
                raise
            newest.size = writer.size
            newest.samples += samples
            while self._size() > self.size_max and len(self._files) > 1:
                self._drop_oldest()

    @property
    def size(self) -> int:
        """Bytes on disk."""
        with self._lock:
            return self._size()

    @property
    def samples(self) -> int:
        """Those that wait, without those that are being sent."""
        with self._lock:
            return sum(file.samples for file in self._files)

    def _size(self) -> int:
        return sum(file.size for file in self._files)

    def _begin(self) -> None:
        self._end()
        number = self._files[-1].number + 1 if self._files else 1
        writer = NewFile(self._path(number, QUEUE))
        writer.append(MAGIC)
        self._writer = writer
        self._files.append(_File(number, len(MAGIC)))

    def _end(self) -> None:
        if self._writer is not None:
            self._writer.close(sync=False)
            self._writer = None

    def _drop_oldest(self) -> None:
        oldest = self._files.popleft()
        self.dropped += oldest.samples
        self._remove(oldest)

    def _remove(self, file: _File) -> None:
        if self._taken_from is file:
            self._taken_from = None
            self._close_reader()
        if file.sent is not None:
            file.sent.close(sync=False)
        remove_files([self._path(file.number, QUEUE), self._path(file.number, SENT_NAME)])

    # Sending ------------------------------------------------------------------------------

    def take(self, samples_max: int, size_max: int) -> Taken:
        """The oldest messages, at least one if there is any; they wait no longer, and are not lost
        before `done`. All from one file."""
        with self._lock:
            taken = Taken()
            while self._files and not taken.messages:
                file = self._files[0]
                if file.read < file.size:
                    self._read(file, taken, samples_max, size_max)
                if file.read >= file.size and not taken.messages:
                    if file is self._files[-1] and self._writer is not None:
                        break
                    self._files.popleft()
                    self._remove(file)
            return taken

    def done(self) -> None:
        """What was taken last need not be sent again."""
        with self._lock:
            file = self._taken_from
            if file is None:
                return  # the file was dropped meanwhile
            try:
                if file.sent is None:
                    remove_files([self._path(file.number, SENT_NAME)])
                    file.sent = NewFile(self._path(file.number, SENT_NAME))
                offset = file.read.to_bytes(8, "little")
                file.sent.append(SENT.pack(file.read, crc32c(offset)))
            except SiltstoneError:
                pass  # a full disk: after a kill it is sent once more

    def close(self) -> None:
        """What waits stays on disk."""
        with self._lock:
            if self._writer is not None:
                self._writer.close(sync=True)
                self._writer = None
            self._close_reader()
            for file in self._files:
                if file.sent is not None:
                    file.sent.close(sync=False)
                    file.sent = None

    def _read(self, file: _File, taken: Taken, samples_max: int, size_max: int) -> None:
        if self._taken_from is not file or self._reader is None:
            self._close_reader()
            self._reader = ForeignFile(self._path(file.number, QUEUE))
            self._taken_from = file
        size = 0
        while file.read < file.size:
            found = _record(self._reader, file.number, file.read, file.size)
            if found is None:
                self._pass_over(file)
                return
            samples, message = found
            if taken.messages and (
                taken.samples + samples > samples_max or size + len(message) > size_max
            ):
                return
            taken.messages.append(message)
            taken.samples += samples
            size += len(message)
            file.read += HEAD.size + len(message)
            file.samples -= samples

    def _pass_over(self, file: _File) -> None:
        """The rest of a file whose next record is damaged."""
        self.damaged += 1
        self.dropped += file.samples
        file.samples = 0
        file.read = file.size
        if self._files[-1] is file:
            self._end()

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    # Opening ------------------------------------------------------------------------------

    def _open(self) -> None:
        names = names_in(self.directory)
        numbers = sorted(
            int(name.removesuffix(QUEUE))
            for name in names
            if name.endswith(QUEUE) and name.removesuffix(QUEUE).isdigit()
        )
        for number in numbers:
            with ForeignFile(self._path(number, QUEUE)) as reader:
                file = _File(number, len(MAGIC))
                if reader.read(0, len(MAGIC)) == MAGIC:
                    self._scan(reader, file)
                else:
                    self.damaged += 1
            if file.read < file.size:
                self._files.append(file)
            else:
                self._remove(file)
        while self._size() > self.size_max and len(self._files) > 1:
            self._drop_oldest()

    def _scan(self, reader: ForeignFile, file: _File) -> None:
        """How far it goes, what of it is sent, and how many samples are left."""
        end, sent = reader.size, self._sent_of(file.number)
        while file.size < end:
            found = _record(reader, file.number, file.size, end)
            if found is None:
                self.damaged += 1  # or cut off by a kill: whoever gave it got no answer
                break
            file.size += HEAD.size + len(found[1])
            if file.size <= sent:
                file.read = file.size
            else:
                file.samples += found[0]

    def _sent_of(self, number: int) -> int:
        path = self._path(number, SENT_NAME)
        sent = 0
        if not path.exists():
            return sent
        with ForeignFile(path) as reader:
            data = reader.read(0, reader.size)
        for offset, check in SENT.iter_unpack(data[: len(data) - len(data) % SENT.size]):
            if crc32c(offset.to_bytes(8, "little")) == check:
                sent = max(sent, offset)
        return sent

    def _path(self, number: int, suffix: str) -> Path:
        return self.directory / f"{number:012}{suffix}"


def left_behind(directory: Path, names: Collection[str]) -> list[str]:
    """Queues in a directory that are none of these."""
    if not directory.is_dir():
        return []
    return [name for name in names_in(directory) if name not in names]


def _checksum(number: int, offset: int, samples: int, message: bytes) -> int:
    return crc32c(message, crc32c(BOUND.pack(number, offset, len(message), samples)))


def _packed(number: int, offset: int, samples: int, message: bytes) -> bytes:
    check = _checksum(number, offset, samples, message)
    return HEAD.pack(len(message), samples, check) + message


def _record(reader: ForeignFile, number: int, offset: int, end: int) -> tuple[int, bytes] | None:
    """Samples and message at this place; None: it is cut off or damaged."""
    head = reader.read(offset, HEAD.size)
    if len(head) < HEAD.size:
        return None
    length, samples, check = HEAD.unpack(head)
    if length > min(end - offset - HEAD.size, MESSAGE_SIZE_MAX):
        return None
    message = reader.read(offset + HEAD.size, length)
    if len(message) < length or _checksum(number, offset, samples, message) != check:
        return None
    return samples, message
