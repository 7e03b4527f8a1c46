"""A process that changes pages until it is killed; run by tests/crash/test_page_cache_kill.py.

Commit n is a function of n alone: one batch that writes n to one page and changes some others. The
process prints n once that commit is durable.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from typing import Any

PAGES = 40
SMALL: dict[str, Any] = {
    "segment_size": "64KiB",
    "buffer_size": "16KiB",
    "cache": "64KiB",
    "flush_interval": 0.02,
}


class Joined:
    def merge(self, fragments: Sequence[bytes]) -> bytes:
        return b"".join(fragments)


def changes(n: int) -> list[tuple[int, bool, bytes]]:
    """What commit n does beside its number: (page, whether it is replaced, bytes)."""
    rng = random.Random(n)
    return [
        (rng.randrange(PAGES), rng.random() < 0.1, b"%d " % n * rng.choice([1, 10, 60]))
        for _ in range(rng.choice([0, 1, 1, 5, 30]))
    ]


def apply(said: list[bytes], n: int) -> None:
    for page, replaced, data in changes(n):
        said[page] = data if replaced else said[page] + data


def first(pages: Any) -> list[int]:
    """The pids: of the page with the number, then of the others. Made when there are none."""
    index = pages.root("index")
    if not index:
        with pages.batch():
            pids = [pages.allocate(b"0")[0]] + [pages.allocate(b"")[0] for _ in range(PAGES)]
            index, _ = pages.allocate(b" ".join(b"%d" % pid for pid in pids))
            pages.compare_and_set_root("index", None, index)
    return [int(pid) for pid in pages.get(index)[0].split()]


def commit(pages: Any, pids: list[int], n: int) -> None:
    with pages.batch():
        pages.replace(pids[0], pages.get(pids[0])[1], b"%d" % n)
        for page, replaced, data in changes(n):
            pid = pids[1 + page]
            change = pages.replace if replaced else pages.link
            change(pid, pages.get(pid)[1], data)


def main(path: str, durability: str) -> None:
    import siltstone

    pages = siltstone.PageCache(path, Joined(), durability=durability, **SMALL)
    pids = first(pages)
    n = int(pages.get(pids[0])[0])
    print("open", n, flush=True)
    while True:
        n += 1
        commit(pages, pids, n)
        if n % 9 == 0:
            pages.sync()
        if n % 9 == 0 or durability == "sync":
            print(n, flush=True)
        if n % 200 == 0:
            pages.collect_garbage()
        if n % 31 == 0:
            pages.generate_id()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
