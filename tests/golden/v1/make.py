"""Made the files beside it, once, with siltstone 0.1.0: never to be run again over them.

    python tests/golden/v1/make.py DIRECTORY

A store with every kind of record that format 1 has, another one with zstd, a dump, and what is in
them. That later versions read them is tested by tests/unit/test_golden_store.py.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from pathlib import Path
from typing import Any

import siltstone

TINY: dict[str, Any] = {
    "segment_size": "16KiB",
    "buffer_size": "4KiB",
    "page_size": 512,
    "cache": "64KiB",
    "flush_interval": 3600,
    "workers": 0,
}


def fill(path: Path, **options: Any) -> None:
    rng = random.Random(1)
    with siltstone.Store(path, background=False, **TINY, **options) as store:
        users = store.tree("users")
        for number in range(120):
            store[b"key:%03d" % number] = b"value %d " % number * 4
            users[rng.randbytes(6)] = rng.randbytes(20)
        store[b""] = b"the empty key"
        store[b"empty value"] = b""
        store[b"long key " + b"k" * 900] = b"v"
        store[b"large"] = random.Random(2).randbytes(20_000)
        for _ in range(3):
            store.generate_id()
        with store.batch() as batch:
            batch[b"key:000"] = b"of a batch"
            batch[b"key:001"] = b"of a batch, too"
            batch.tree("mails")["ü@example.org".encode()] = b"users"
            del batch[b"key:100"]
        store.tree("dropped")[b"k"] = b"v"
        store.drop_tree("dropped")
        for number in range(40, 90):
            store.delete(b"key:%03d" % number)
        store.checkpoint()
        store._pages.collect_garbage()
        for number in range(0, 40, 7):
            store[b"key:%03d" % number] = b"again"
        with store.open(b"streamed", "wb") as file:
            file.write(b"0123456789" * 9_000)


def contents(store: Any) -> dict[str, dict[str, str]]:
    """Keys in hexadecimal; values too, or the SHA-256 of large ones."""
    found = {}
    for name in ("", *store.trees()):
        tree = store.tree(name) if name else store
        found[name] = {key.hex(): shown(value) for key, value in tree.items()}
    return found


def shown(value: bytes) -> str:
    return value.hex() if len(value) <= 200 else "sha256:" + hashlib.sha256(value).hexdigest()


def main(directory: Path) -> None:
    for name, options in (("store", {}), ("store-zstd", {"compression": "zstd"})):
        path = directory / name
        fill(path, **options)
        (path / "lock").unlink()
        with siltstone.Store(path, read_only=True) as store:
            text = json.dumps(contents(store), indent=1, sort_keys=True)
            (directory / f"{name}.json").write_text(text + "\n")
            if name == "store":
                with open(directory / "dump", "wb") as file:
                    store.dump(file)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
