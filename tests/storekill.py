"""A process that commits to a store until it is killed; run by tests/crash/test_store_kill.py.

Commit number n is a function of n alone, so that whoever opens the store afterwards can say what
must be in it: key b"n" holds the number of the last commit, and the rest follows. The process
writes a number to stdout once that commit is durable.
"""

from __future__ import annotations

import random
import sys
from typing import Any

NUMBER = b"n"
SMALL = {
    "segment_size": "64KiB",
    "buffer_size": "16KiB",
    "page_size": 512,
    "cache": "128KiB",
    "flush_interval": 0.02,
}


def changes(n: int) -> list[tuple[str, bytes, bytes | None]]:
    """What commit n does: (tree, key, value or None)."""
    rng = random.Random(n)
    made: list[tuple[str, bytes, bytes | None]] = [("", NUMBER, b"%d" % n)]
    for _ in range(rng.choice([0, 0, 1, 4, 40])):
        key = b"key:%04d" % rng.randrange(600)
        tree = rng.choice(["", "users"])
        size = rng.choice([3, 30, 120, 120, 30_000 if rng.random() < 0.02 else 200])
        made.append((tree, key, None if rng.random() < 0.3 else b"%d " % n * (size // 5)))
    return made


def apply(trees: dict[str, dict[bytes, bytes]], n: int) -> None:
    for tree, key, value in changes(n):
        if value is None:
            trees[tree].pop(key, None)
        else:
            trees[tree][key] = value


def commit(store: Any, n: int, durable: bool | None) -> None:
    made = changes(n)
    if len(made) == 1:
        store.set(made[0][1], made[0][2], durable=durable)
        return
    with store.batch(durable=durable) as batch:
        for tree, key, value in made:
            part = batch.tree(tree) if tree else batch
            if value is None:
                part.delete(key)
            else:
                part[key] = value


def main(path: str, durability: str, checkpoint_every: int) -> None:
    import siltstone

    store = siltstone.Store(path, durability=durability, **SMALL)
    n = int(store.get(NUMBER, b"0"))
    print("open", n, flush=True)
    while True:
        n += 1
        durable = n % 7 == 0 or durability == "sync"
        commit(store, n, durable)
        if n % checkpoint_every == 0:
            store.checkpoint()
        if durable:
            print(n, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
