"""What writers told of metrics: type, help, unit. For pickers and tooltips.

Kept in memory and in one small file, which is replaced as a whole: a crash leaves the former one.
Bounded, since names come from outside. `Metadata` may be used in any thread; `MetadataKeeper` is a
`Service` that saves what changed.

    siltstone metadata 1 CRC32C\\n      of what follows, eight hexadecimal digits
    {"name": ["type", "help", "unit"], ...}
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import ItemsView
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Final

import msgspec

from siltstone.errors import WrongFormat
from siltstone.log.checksum import crc32c
from siltstone.log.device import remove_files, rename_file
from siltstone.log.foreign import ForeignFile, NewFile

log = logging.getLogger("siltstone.serve")

NAMES_MAX: Final = 20_000
TEXT_MAX: Final = 1024
FILE_SIZE_MAX: Final = 256 << 20
SAVE_SECONDS: Final = 10.0
TYPES: Final = frozenset(
    ("counter", "gauge", "histogram", "summary", "info", "stateset", "gaugehistogram", "unknown")
)
_HEAD: Final = b"siltstone metadata 1 %08x\n"
_HEAD_SIZE: Final = len(_HEAD % 0)


@dataclass(frozen=True, slots=True)
class About:
    """Of one metric."""

    type: str = "unknown"
    help: str = ""
    unit: str = ""

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


class Metadata:
    """Name -> `About`; further names are not noted once there are NAMES_MAX. With a file: begins
    with what is in it."""

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self._known: dict[str, About] = {}
        self._changed = False
        self._lock = threading.Lock()
        self._saving = threading.Lock()
        if file is not None and file.exists():
            self._load(file)

    def note(self, name: str, type: str = "unknown", help: str = "", unit: str = "") -> None:
        about = About(type if type in TYPES else "unknown", help[:TEXT_MAX], unit[:TEXT_MAX])
        with self._lock:
            known = self._known.get(name)
            if known != about and (known is not None or len(self._known) < NAMES_MAX):
                self._known[name] = about
                self._changed = True

    def items(self) -> ItemsView[str, About]:
        with self._lock:
            return dict(sorted(self._known.items())).items()

    def save(self) -> bool:
        """Write the file anew if anything changed; durable when it returns. OSError: it is not,
        and what was there is untouched."""
        with self._saving:
            with self._lock:
                if self.file is None or not self._changed:
                    return False
                text = msgspec.json.encode(
                    {name: astuple(one) for name, one in self._known.items()}
                )
                self._changed = False
            try:
                self._replace(self.file, _HEAD % crc32c(text) + text)
            except OSError:
                self._changed = True
                raise
            return True

    def _replace(self, file: Path, data: bytes) -> None:
        fresh = file.with_name(file.name + ".new")
        remove_files([fresh])
        writer = NewFile(fresh)
        try:
            writer.append(data)
        finally:
            writer.close()
        rename_file(fresh, file)

    def _load(self, file: Path) -> None:
        """What cannot be read is told and forgotten: the next scrapes tell it again."""
        try:
            with ForeignFile(file) as reader:
                data = reader.read(0, min(reader.size, FILE_SIZE_MAX))
            head, text = data[:_HEAD_SIZE], data[_HEAD_SIZE:]
            if head != _HEAD % crc32c(text):
                raise WrongFormat(f"{file} is damaged", path=str(file))
            rows = msgspec.json.decode(text, type=dict[str, tuple[str, str, str]])
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("types and help texts of metrics are lost: %s", error)
            return
        self._known = {name: About(*row) for name, row in rows.items()}


class MetadataKeeper:
    """Saves every few seconds what changed, and at the stop."""

    def __init__(self, metadata: Metadata, seconds: float = SAVE_SECONDS) -> None:
        self.metadata = metadata
        self.seconds = seconds
        self.failures = 0
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._keep_saving())

    async def stop(self) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.save()

    async def save(self) -> None:
        try:
            await asyncio.to_thread(self.metadata.save)
        except OSError as error:
            self.failures += 1
            if self.failures == 1:
                log.warning("types and help texts of metrics are not saved: %s", error)
        else:
            self.failures = 0

    async def _keep_saving(self) -> None:
        while True:
            await asyncio.sleep(self.seconds)
            await self.save()
