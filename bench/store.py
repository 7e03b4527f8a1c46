"""The store beside py-lmdb, rocksdict and sqlite3: 24-byte random keys, 100-byte values.

`python -m bench store` runs all parts, `store.get` one of them; each part in a fresh process. Every
side gets the same keys in the same order. Sides that are much slower are asked less and judged by
their rate. Loads are followed by what each side offers to settle, so that no peer pays for the
background work of the row before.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from bench import harness, store_space
from bench.harness import OURS, Row, Settings
from bench.store_sides import CACHE, Pair, Rocksdict, Side, Siltstone, sides

TITLE = "Store: 24-byte random keys, 100-byte values"
RECORDS = 1_000_000
QUICK_RECORDS = 200_000
KEY_SIZE, VALUE_SIZE = 24, 100
ASKED = 500_000  # operations of one round of reads
SCAN_RANGE = 100
THREADS = 8
DURABLE_SECONDS = 2.0
ZIPF_SKEW = 0.99


# Data -----------------------------------------------------------------------------------------


def records(count: int, seed: int = 7) -> list[Pair]:
    """Keys of random bytes; values that no compression makes smaller."""
    rng = random.Random(seed)
    keys = rng.randbytes(KEY_SIZE * count)
    noise = rng.randbytes(1 << 20)
    return [
        (keys[n * KEY_SIZE : (n + 1) * KEY_SIZE], noise[at : at + VALUE_SIZE])
        for n, at in enumerate(rng.choices(range((1 << 20) - VALUE_SIZE), k=count))
    ]


def zipf(count: int, size: int, rng: random.Random) -> list[int]:
    """`count` ranks below `size`, drawn by Zipf's law."""
    weights = list(itertools.accumulate(1 / (rank + 1) ** ZIPF_SKEW for rank in range(size)))
    total = weights[-1]
    return [bisect.bisect_left(weights, rng.random() * total) for _ in range(count)]


def count_of(settings: Settings) -> int:
    return settings.items or settings.pick(RECORDS, QUICK_RECORDS)


def asked_of(settings: Settings) -> int:
    return min(ASKED, 2 * count_of(settings))


# Opening --------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(
    kinds: list[type[Side]], settings: Settings, *, durable: bool = False, cache: int = CACHE
) -> Iterator[list[Side]]:
    with settings.directory() as directory, contextlib.ExitStack() as stack:
        made = []
        for kind in kinds:
            made.append(kind(directory / kind.name, durable=durable, cache=cache))
            stack.callback(made[-1].close)
        yield made


@contextlib.contextmanager
def loaded(settings: Settings, pairs: list[Pair], cache: int = CACHE) -> Iterator[list[Side]]:
    """All sides, holding the records; a sample is read back."""
    with opened(sides(settings.peers_only), settings, cache=cache) as made:
        for side in made:
            side.load(pairs)
            side.settle()
            for key, value in random.Random(3).sample(pairs, 500):
                if side.get(key) != value:
                    raise AssertionError(f"{side.name} does not give back what was stored")
        yield made


def fresh(
    settings: Settings,
    measure: Callable[[Side], float],
    *,
    durable: bool = False,
    kinds: list[type[Side]] | None = None,
) -> dict[str, list[float]]:
    """Rates of a row that starts with empty stores, each round anew."""

    def once(kind: type[Side]) -> float:
        with opened([kind], settings, durable=durable) as made:
            return measure(made[0])

    named = {kind.name: kind for kind in kinds or sides(settings.peers_only)}
    return harness.alternate(named, once, settings.rounds)


def rate(count: int, work: Callable[[], Any]) -> float:
    """Operations a second."""
    with harness.quiet():
        began = time.perf_counter()
        work()
        return count / (time.perf_counter() - began)


def each(function: Callable[..., Any], arguments: list[Any]) -> None:
    for argument in arguments:
        function(argument)


def each_pair(function: Callable[..., Any], pairs: list[Pair]) -> None:
    for key, value in pairs:
        function(key, value)


def compare(
    name: str, rates: dict[str, list[float]], targets: dict[str, float | None]
) -> list[Row]:
    return [
        Row(name, "op/s", rates.get(OURS, []), peer, rates[peer], target)
        for peer, target in targets.items()
    ]


def best_of(rates: dict[str, list[float]]) -> str:
    return max((name for name in rates if name != OURS), key=lambda name: max(rates[name]))


# Reads ----------------------------------------------------------------------------------------


def get(settings: Settings, scale: int = 1) -> list[Row]:
    pairs = records(count_of(settings) * scale)
    keys = [key for key, _ in random.Random(5).choices(pairs, k=asked_of(settings))]

    def measure(side: Side) -> float:
        with side.reader() as read:
            return rate(len(keys), lambda: each(read, keys))

    with loaded(settings, pairs, CACHE * scale) as made:
        named = {side.name: side for side in made}
        rates = harness.alternate(named, measure, settings.rounds)
    title = f"random get, warm, {len(pairs):,} records"
    return compare(title, rates, {"py-lmdb": 1.2, "rocksdict": 4.0, "sqlite3": None})


def get_more(settings: Settings) -> list[Row]:
    return get(settings, scale=2)


def scan(settings: Settings) -> list[Row]:
    pairs = records(count_of(settings))
    starts = [key for key, _ in random.Random(6).sample(pairs, settings.pick(20_000, 5_000))]
    rows = []
    with loaded(settings, pairs) as made:
        named = {side.name: side for side in made}
        for title, reverse in (("full scan", False), ("reverse scan", True)):
            rates = harness.alternate(
                named,
                lambda side, way=reverse: rate(len(pairs), lambda: side.scan(way)),
                settings.rounds,
            )
            rows += compare(title, rates, {"py-lmdb": 1.0, "rocksdict": None, "sqlite3": None})
        rates = harness.alternate(
            named,
            lambda side: rate(len(starts), lambda: side.ranges(starts, SCAN_RANGE)),
            settings.rounds,
        )
    title = f"ranges of {SCAN_RANGE} records"
    return rows + compare(title, rates, {"py-lmdb": 1.2, "rocksdict": None, "sqlite3": None})


# Relaxed writes -------------------------------------------------------------------------------


def put(settings: Settings) -> list[Row]:
    pairs = records(count_of(settings))

    def measure(side: Side) -> float:
        chosen = pairs[: len(pairs) // side.share]
        return rate(len(chosen), lambda: each_pair(side.put, chosen))

    rates = fresh(settings, measure)
    return compare(
        "random put, relaxed", rates, {"rocksdict": 2.0, "py-lmdb": None, "sqlite3": None}
    )


def batch(settings: Settings) -> list[Row]:
    pairs = records(count_of(settings))

    def measure(side: Side) -> float:
        chosen = pairs[: len(pairs) // side.share]
        return rate(len(chosen), lambda: side.load(chosen, 1000))

    rates = fresh(settings, measure)
    return compare(
        "random batches of 1,000, relaxed",
        rates,
        {"rocksdict": 1.3, "py-lmdb": None, "sqlite3": None},
    )


def delete(settings: Settings) -> list[Row]:
    pairs = records(count_of(settings))
    keys = [key for key, _ in random.Random(8).sample(pairs, len(pairs) // 2)]

    def measure(side: Side) -> float:
        side.load(pairs)
        side.settle()
        chosen = keys[: len(keys) // side.share]
        return rate(len(chosen), lambda: each(side.delete, chosen))

    rates = fresh(settings, measure)
    return compare("random delete", rates, {"rocksdict": 1.2, "py-lmdb": None, "sqlite3": None})


def mixed(settings: Settings) -> list[Row]:
    pairs = records(count_of(settings))
    rng = random.Random(9)
    ranks = zipf(asked_of(settings), len(pairs), rng)
    steps = [(pairs[rank], rng.random() < 0.5) for rank in ranks]

    def work(side: Side, chosen: list[tuple[Pair, bool]]) -> None:
        read, write = side.get, side.put
        for (key, value), reads in chosen:
            if reads:
                read(key)
            else:
                write(key, value)

    def measure(side: Side) -> float:
        chosen = steps[: len(steps) // side.share]
        return rate(len(chosen), lambda: work(side, chosen))

    with loaded(settings, pairs) as made:
        named = {side.name: side for side in made}
        rates = harness.alternate(named, measure, settings.rounds)
    return compare(
        "half get, half put, Zipf", rates, {"rocksdict": 1.2, "py-lmdb": None, "sqlite3": None}
    )


# Durable writes -------------------------------------------------------------------------------


def durable(settings: Settings) -> list[Row]:
    pairs = records(settings.pick(100_000, 50_000))
    seconds = settings.pick(DURABLE_SECONDS, 0.5)
    rows = []
    for title, target, measure in (
        ("durable put, 1 thread", 1.0, lambda side: _singles(side, pairs, seconds, 1)),
        ("durable batches of 100", 1.5, lambda side: _batches(side, pairs, seconds)),
        (
            f"durable put, {THREADS} threads",
            4.0,
            lambda side: _singles(side, pairs, seconds, THREADS),
        ),
    ):
        rates = fresh(settings, measure, durable=True)
        best = best_of(rates)
        targets: dict[str, float | None] = {name: None for name in rates if name != OURS}
        rows += compare(title, rates, targets | {best: target})
    return rows


def _singles(side: Side, pairs: list[Pair], seconds: float, threads: int) -> float:
    """Puts a second; each thread has its own keys."""
    barrier, counts = threading.Barrier(threads + 1), [0] * threads

    def work(number: int) -> None:
        mine = pairs[number::threads]
        barrier.wait()
        end = time.perf_counter() + seconds
        for key, value in itertools.cycle(mine):
            side.put(key, value)
            counts[number] += 1
            if time.perf_counter() >= end:
                return

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    barrier.wait()
    began = time.perf_counter()
    for worker in workers:
        worker.join()
    return sum(counts) / (time.perf_counter() - began)


def _batches(side: Side, pairs: list[Pair], seconds: float) -> float:
    """Records a second in batches of 100."""
    began, done = time.perf_counter(), 0
    for start in itertools.cycle(range(0, len(pairs), 100)):
        side.put_batch(pairs[start : start + 100])
        done += 100
        if time.perf_counter() - began >= seconds:
            return done / (time.perf_counter() - began)
    raise AssertionError("cycle() does not end")


# Bounded memory, space, opening ---------------------------------------------------------------


def small_cache(settings: Settings) -> list[Row]:
    count = settings.pick(4_000_000, 400_000)  # 4 M records of 124 bytes: 500 MB
    return store_space.small_cache(settings, count, [Siltstone, Rocksdict])


def space(settings: Settings) -> list[Row]:
    return store_space.overwrite(settings, count_of(settings) // 5)


def amplification(settings: Settings) -> list[Row]:
    return store_space.amplification(settings, count_of(settings) // 5)


def opening(settings: Settings) -> list[Row]:
    return store_space.opening(settings, settings.pick(8_000_000, 400_000))


PARTS: dict[str, Callable[[Settings], list[Row]]] = {
    "get": get,
    "get-more": get_more,
    "scan": scan,
    "put": put,
    "batch": batch,
    "delete": delete,
    "mixed": mixed,
    "durable": durable,
    "small-cache": small_cache,
    "space": space,
    "amplification": amplification,
    "open": opening,
}


def run(settings: Settings) -> list[Row]:
    """One part when `settings.part` names it, else all, one after another."""
    if settings.part and settings.part not in PARTS:
        raise ValueError(f"store has no part {settings.part!r}; there are {', '.join(PARTS)}")
    chosen = [settings.part] if settings.part else list(PARTS)
    return [row for name in chosen for row in PARTS[name](settings)]
