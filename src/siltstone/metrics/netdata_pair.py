"""A datafile with its journal: opened, checked, replayed, salvaged; extents read.

    datafile-1-0000000001.ndf, journalfile-1-0000000001.njf; the first 4,096 bytes of each:
    offset  0                      32              48
            name, 32 bytes         "1.0", 16 b.    datafile only: 1

The journal is the index. What of the datafile no journal names (a journal that is lost or damaged,
or what Netdata had not journaled when it was killed) is scanned for extents whose CRC-32 fits.
Nothing is ever written. A problem is noted and leaves a gap; only a pair that cannot be used at
all raises. Any thread; opening is the caller's alone.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from siltstone.errors import Corruption, DeviceFailed, SiltstoneError, WrongFormat
from siltstone.log.foreign import ForeignFile
from siltstone.metrics import netdata_extent as extents
from siltstone.metrics import netdata_journal as journal
from siltstone.metrics import netdata_page as pages
from siltstone.metrics.netdata_extent import BLOCK, Extent
from siltstone.metrics.netdata_page import Rows

DATAFILE: Final = re.compile(r"datafile-1-(\d{10})\.ndf")
JOURNAL: Final = re.compile(r"journalfile-1-(\d{10})\.njf")
DATA_MAGIC: Final = b"netdata-data-file"
JOURNAL_MAGIC: Final = b"netdata-journal-file"
VERSION: Final = b"1.0"
MAGIC_BYTES, VERSION_BYTES = 32, 16
JOURNAL_READ_BYTES: Final = 256 * BLOCK


class Problem(NamedTuple):
    """Something that could not be used, and where; what it held reads as gaps."""

    path: str
    offset: int  # -1: the file as a whole
    text: str

    def __str__(self) -> str:
        place = self.path if self.offset < 0 else f"{self.path} at {self.offset}"
        return f"{place}: {self.text}"


class Place(NamedTuple):
    """Where an extent lies, and how it is known: transaction 0 means found by salvage."""

    offset: int
    size: int
    transaction: int


def data_name(number: int) -> str:
    return f"datafile-1-{number:010}.ndf"


def journal_name(number: int) -> str:
    return f"journalfile-1-{number:010}.njf"


def super_block(magic: bytes) -> bytes:
    """The first block of a file."""
    head = magic.ljust(MAGIC_BYTES, b"\0") + VERSION.ljust(VERSION_BYTES, b"\0")
    return (head + (b"\1" if magic == DATA_MAGIC else b"")).ljust(BLOCK, b"\0")


def check_super_block(file: ForeignFile, magic: bytes) -> None:
    """WrongFormat unless `file` starts as one of Netdata's files of version 1.0."""
    head = file.read(0, BLOCK)
    found, version = head[:MAGIC_BYTES], head[MAGIC_BYTES : MAGIC_BYTES + VERSION_BYTES]
    if found.rstrip(b"\0") != magic:
        what = "is empty" if not head else "is not one of Netdata's files"
        raise WrongFormat(
            f"{file.path} {what}", path=file.path, offset=0, expected=magic, found=found
        )
    if version.rstrip(b"\0") != VERSION:
        text = version.rstrip(b"\0").decode("ascii", "replace")
        raise WrongFormat(
            f"{file.path} has format version {text!r}; only '1.0' is supported",
            path=file.path,
            offset=MAGIC_BYTES,
            expected=VERSION,
            found=version,
        )
    if len(head) < BLOCK:
        raise WrongFormat(f"{file.path} ends within its first block", path=file.path)
    if magic == DATA_MAGIC and head[MAGIC_BYTES + VERSION_BYTES] != 1:
        tier = head[MAGIC_BYTES + VERSION_BYTES]
        raise WrongFormat(f"{file.path} says tier {tier}, which is unknown", path=file.path)


class Pair:
    """One datafile and its journal. `places` and `rows` (their pages) once `load` has run."""

    def __init__(self, directory: Path, number: int, *, salvage: bool = True) -> None:
        self.number = number
        self.problems: list[Problem] = []
        self.places: list[Place] = []
        self.salvaged = 0
        self.sound_until = 1 << 62  # a later look may find extents at and above this offset
        self.pages: Rows = np.empty(0, pages.PAGE)  # `extent` counts within this pair
        self.data = ForeignFile(directory / data_name(number))
        try:
            check_super_block(self.data, DATA_MAGIC)
            self._load(directory / journal_name(number), salvage)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.data.close()

    # Opening

    def _load(self, path: Path, salvage: bool) -> None:
        known: dict[int, tuple[Place, Rows]] = {}
        self.data_bytes, self.journal_bytes = self.data.size, 0
        try:
            with ForeignFile(path) as file:
                check_super_block(file, JOURNAL_MAGIC)
                self.journal_bytes = file.size
                for transaction in self._replay(file):
                    place = Place(transaction.offset, transaction.size, transaction.number)
                    if place.offset in known:
                        text = f"transaction {place.transaction} names this extent again"
                        self.problems.append(Problem(self.data.path, place.offset, text))
                    known[place.offset] = place, transaction.descriptors
        except SiltstoneError as error:
            self.problems.append(Problem(str(path), -1, _without_path(error, str(path))))
        if salvage:
            for place, descriptors in self._salvage(sorted(place for place, _ in known.values())):
                self.salvaged += 1
                known[place.offset] = place, descriptors
        self._index(known)

    def _replay(self, file: ForeignFile) -> Iterator[journal.Transaction]:
        end = file.size
        for start in range(BLOCK, end, JOURNAL_READ_BYTES):
            data = file.read(start, min(JOURNAL_READ_BYTES, end - start))
            for at in range(0, len(data), BLOCK):
                for record in journal.records(data[at : at + BLOCK]):
                    if isinstance(record, journal.BadRecord):
                        offset = start + at + record.offset
                        self.problems.append(Problem(file.path, offset, record.text))
                    elif record.offset + record.size > self.data_bytes:
                        text = f"an extent of {record.size} bytes that the file ends before"
                        self.problems.append(Problem(self.data.path, record.offset, text))
                    else:
                        yield record

    def _index(self, known: dict[int, tuple[Place, Rows]]) -> None:
        rows, end = [], 0
        for number, offset in enumerate(sorted(known)):
            place, descriptors = known[offset]
            if offset < end:
                text = "an extent that lies within the one before it"
                self.problems.append(Problem(self.data.path, offset, text))
            end = max(end, offset + place.size)
            faults = pages.faults(descriptors)
            for bad in np.flatnonzero(faults)[:1]:
                text = f"{np.count_nonzero(faults)} pages are left out, the first for this: "
                text += pages.fault_text(descriptors[bad], int(faults[bad]))
                self.problems.append(Problem(self.data.path, offset, text))
            self.places.append(place)
            rows.append(pages.index(descriptors, number, faults == 0))
        if rows:
            self.pages = np.concatenate(rows)

    # Salvage

    def _salvage(self, named: list[Place]) -> Iterator[tuple[Place, Rows]]:
        """Extents in the parts of the datafile that the journal says nothing about."""
        free_from = BLOCK
        for place in named:
            if place.offset > free_from:
                yield from self._scan(free_from, place.offset)
            free_from = max(free_from, place.offset + extents.padded(place.size))
        yield from self._scan(free_from, self.data_bytes)

    def _scan(self, start: int, end: int) -> Iterator[tuple[Place, Rows]]:
        """Extents between two offsets; one problem for each run of blocks that holds none."""
        lost_from, offset = start, start
        while offset < end:
            place, descriptors = self._found_at(offset, end)
            if place is None or descriptors is None:
                offset += BLOCK
                continue
            self._lost(lost_from, offset)
            yield place, descriptors
            lost_from = offset = offset + extents.padded(place.size)
        self._lost(lost_from, min(end, self.data_bytes))

    def _found_at(self, offset: int, end: int) -> tuple[Place, Rows] | tuple[None, None]:
        head = self._read(offset, extents.HEADER.size)
        size = extents.size_by_header(head or b"")
        if not size or offset + size > end:
            return None, None
        data = self._read(offset, size)
        try:
            found = extents.parse(data or b"")
        except Corruption:
            return None, None
        return Place(offset, size, 0), found.descriptors

    def _lost(self, start: int, end: int) -> None:
        if end > start:
            self.sound_until = min(self.sound_until, start)
            text = f"{end - start} bytes that no journal names and that hold no whole extent"
            self.problems.append(Problem(self.data.path, start, text))

    def _read(self, offset: int, size: int) -> bytes | None:
        try:
            return self.data.read(offset, size)
        except DeviceFailed as error:
            self.problems.append(Problem(self.data.path, offset, _without_path(error, "")))
            return None

    # Reading

    def identity(self) -> int:
        """A number by which the pair is known again, wherever its files are copied to."""
        return zlib.crc32(self._read(BLOCK, BLOCK) or b"")

    def extent(self, number: int) -> Extent:
        """A checked extent; Corruption or DeviceFailed when it cannot be had."""
        place = self.places[number]
        data = self.data.read(place.offset, place.size)
        if len(data) < place.size:
            raise Corruption(
                "the file ends within this extent", expected=place.size, found=len(data)
            )
        return extents.parse(data)


def pair_numbers(names: list[str]) -> list[int]:
    """The numbers of the datafiles among the names of a directory, ascending."""
    return sorted(int(match[1]) for name in names if (match := DATAFILE.fullmatch(name)))


def _without_path(error: SiltstoneError, path: str) -> str:
    return str(error).removeprefix(path).strip()
