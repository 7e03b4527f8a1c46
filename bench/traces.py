"""Request streams with a fixed seed: what the hit-ratio and churn benches play. Keys are ints."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

SEED = 20240


def zipf(random_: random.Random, keys: int, count: int, alpha: float) -> list[int]:
    """Rank r is asked for in proportion to r ** -alpha; which key has which rank is shuffled."""
    ranks = list(itertools.accumulate(1 / (rank + 1) ** alpha for rank in range(keys)))
    names = random_.sample(range(keys), keys)
    return [names[rank] for rank in random_.choices(range(keys), cum_weights=ranks, k=count)]


def popular(capacity: int, count: int) -> list[int]:
    """A fixed Zipf popularity over ten times as many keys as fit."""
    return zipf(random.Random(SEED), 10 * capacity, count, 0.9)


def scanned(capacity: int, count: int) -> list[int]:
    """The same, with scans of keys that are never asked for again, each half the cache long."""
    random_ = random.Random(SEED + 1)
    base = iter(zipf(random_, 10 * capacity, count, 0.9))
    fresh = itertools.count(1 << 40)
    stream: list[int] = []
    while len(stream) < count:
        stream += itertools.islice(base, 2 * capacity)
        stream += itertools.islice(fresh, capacity // 2)
    return stream[:count]


def looping(capacity: int, count: int) -> list[int]:
    """Round and round over 1.3 times what fits: LRU and FIFO never hit."""
    length = capacity * 13 // 10
    return [index % length for index in range(count)]


def shifting(capacity: int, count: int) -> list[int]:
    """Zipf whose popular keys are others after each tenth of the stream."""
    random_ = random.Random(SEED + 2)
    stream: list[int] = []
    for phase in range(10):
        stream += [
            (key + phase * 3 * capacity) % (10 * capacity)
            for key in zipf(random_, 10 * capacity, count // 10, 0.9)
        ]
    return stream


def once(capacity: int, count: int) -> list[int]:
    """As behind a web proxy: half of the requests are for keys that never come again."""
    random_ = random.Random(SEED + 3)
    fresh = itertools.count(1 << 41)
    return [
        next(fresh) if random_.random() < 0.5 else key
        for key in zipf(random_, 4 * capacity, count, 1.0)
    ]


TRACES: dict[str, Callable[[int, int], list[int]]] = {
    "Zipf 0.9": popular,
    "Zipf and scans": scanned,
    "loop of 1.3 x": looping,
    "shifting Zipf": shifting,
    "half seen once": once,
}
