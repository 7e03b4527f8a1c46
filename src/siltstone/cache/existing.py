"""What a data directory says of its cache, so that tools open it as its owner did.

Reads the text of `lock` (attachment.py writes it, and keeps the sizes there after the last close).
Opens no cache and creates nothing. For the command line, on its one thread.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from siltstone.errors import WrongFormat
from siltstone.log.device import open_lock_file
from siltstone.log.directory import engine_in

DOOR_TEXT_BYTES: Final = 1024
# name in the lock file's text: name of the setting
SIZES: Final = {
    "ram": "ram",
    "flash": "flash",
    "segment": "segment_size",
    "buffer": "buffer_size",
    "buffers": "buffers",
}
# What a directory without a cache may hold, and who reads that.
INSTEAD: Final = {
    "store": "but a store: say --store instead of --path",
    "pages": "but the pages of a siltstone.PageCache",
    "metrics": "but time series: siltstone query, inspect and verify read them",
}


def existing_options(path: Path) -> dict[str, Any]:
    """The options for `Cache` that open what is in `path`; WrongFormat when that is no cache."""
    lock = path / "lock"
    door = _door(lock) if lock.is_file() else None
    if door is None or not set(SIZES) <= set(door):
        instead = INSTEAD.get(engine_in(path) or "", "and neither a store nor time series")
        raise WrongFormat(f"{path} holds no cache, {instead}", path=str(path))
    options: dict[str, Any] = {name: door[key] for key, name in SIZES.items()}
    if "files" in door:
        if not door["files"]:
            raise WrongFormat(f"{path} lies on files of other names; open it with its settings")
        options["files"] = door["files"]
        del options["flash"]
    if door.get("private"):
        options["arena"] = "private"
    for file in _flash_files(path, options):
        # opening would make an empty one, and all that it held would be a miss
        if not file.is_file():
            raise WrongFormat(f"{path}: its flash file {file} is missing", path=str(file))
    return {"path": path, **options}


def _flash_files(path: Path, options: dict[str, Any]) -> list[Path]:
    if "files" in options:
        return [Path(file) for file, _ in options["files"]]
    return [path / "flash"] if options["flash"] else []


def _door(path: Path) -> dict[str, Any] | None:
    with open_lock_file(path, create=False) as lock:
        text = lock.read(0, DOOR_TEXT_BYTES).strip(b"\0 \n")
    try:
        door = json.loads(text)
    except ValueError:
        return None
    return door if isinstance(door, dict) else None
