"""Arena files that nobody will use again: found and removed when a cache is opened.

A killed process leaves its arena in /dev/shm (the next opener of that cache goes on with it). What
nobody will ask for is the arena of a data directory that is gone, or whose lock file names another
one by now. Each arena file says in its first page which directory it belongs to. Only this user's
files are looked at, and nothing that a living process may be making is touched: making an arena
happens under the directory's DOOR lock. Called by attachment.py, on the opening thread.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

from siltstone import errors
from siltstone.log.device import (
    close_descriptor,
    identity,
    list_directory,
    open_lock_file,
    remove_files,
)
from siltstone.log.device_io import read_at, write_at
from siltstone.log.lockfile import LockFile

NOTE_OFFSET: Final = 2048  # of an arena file: behind the arena's header, before its sections
NOTE_BYTES: Final = 2048
DOOR_TEXT_BYTES: Final = 1024  # the lock file's text: one JSON object, padded with spaces
NAME_START: Final = "siltstone-"
UNSIGNED_AGE_MS: Final = 3_600_000  # an arena without a note was never finished, unless it is new


def sign(descriptor: int, directory: Path) -> None:
    """Write into a new arena file whose it is."""
    device, inode = identity(directory / "lock")
    note = {"directory": os.fspath(directory.resolve()), "lock": [device, inode]}
    text = json.dumps(note).encode()
    if len(text) <= NOTE_BYTES:
        write_at(descriptor, NOTE_OFFSET, text.ljust(NOTE_BYTES), False)


def read_door(lock: LockFile) -> dict[str, Any]:
    """What the members of a cache agreed on; {} when nobody has yet."""
    text = lock.read(0, DOOR_TEXT_BYTES).strip(b"\0 \n")
    try:
        door = json.loads(text) if text else {}
    except ValueError:
        door = {}
    return door if isinstance(door, dict) else {}


def clean(directory: Path, keep: str, now_ms: int) -> list[str]:
    """Remove the orphans among the arena files in `directory`; their names."""
    gone = []
    for name, descriptor, modified_ms in list_directory(directory, NAME_START):
        try:
            if name != keep and _is_orphan(name, descriptor, now_ms - modified_ms):
                gone.append(name)
        finally:
            close_descriptor(descriptor)
    remove_files(gone)
    return gone


def _is_orphan(name: str, descriptor: int, age_ms: int) -> bool:
    try:
        note = json.loads(read_at(descriptor, NOTE_OFFSET, NOTE_BYTES).strip(b"\0 ") or b"{}")
    except ValueError:
        return False  # not ours to judge
    if not isinstance(note, dict) or "directory" not in note:
        return age_ms > UNSIGNED_AGE_MS
    path = Path(str(note["directory"])) / "lock"
    try:
        if list(identity(path)) != note.get("lock"):
            return True
    except OSError:
        return True
    try:
        lock = open_lock_file(path, create=False)
    except errors.EnvironmentFailure:
        return False
    with lock:
        if lock.holder(LockFile.DOOR):
            return False
        return read_door(lock).get("arena") != name
