"""What a store takes: memory beside a small cache, file size, bytes written, time to open.

Memory is anonymous memory added since before the store was opened (RssAnon), measured in a process
of its own that holds no data but the keys it asks for. Sizes are allocated blocks of the directory,
polled while work goes on for the peak.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench import child
from bench.harness import OURS, Row, Settings
from bench.store_sides import Side, Siltstone, directory_bytes, sides

KEY_SIZE, VALUE_SIZE = 24, 100
RECORD = KEY_SIZE + VALUE_SIZE
SMALL_CACHE = 32 << 20
SEGMENT = 1 << 20
OVERWRITES = 5

_open: list[Any] = []  # keeps a store open until its process is killed


def key_of(number: int) -> bytes:
    """Random bytes that need not be kept, made in a tenth of the time that a put takes."""
    return hashlib.blake2b(number.to_bytes(8), digest_size=KEY_SIZE).digest()


def chunks(first: int, end: int, size: int, seed: int) -> Iterator[list[tuple[bytes, bytes]]]:
    """The records of these numbers, in their order; values differ with the seed."""
    noise = random.Random(seed).randbytes(1 << 16)
    for start in range(first, end, size):
        yield [
            (key_of(n), noise[n * 97 % 65000 :][:VALUE_SIZE])
            for n in range(start, min(start + size, end))
        ]


def anonymous_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


# A small cache --------------------------------------------------------------------------------


def fill(kind: type[Side], path: Path, count: int, cache: int) -> dict[str, float]:
    side = kind(path, cache=cache)
    for chunk in chunks(0, count, 10_000, 1):
        side.put_batch(chunk)
    side.settle()
    began = time.perf_counter()
    side.close()
    return {"close": time.perf_counter() - began}


def ask(
    kind: type[Side], path: Path, count: int, cache: int, asked: int, rounds: int
) -> dict[str, Any]:
    """Rates of random gets, and the anonymous memory that the store has added."""
    keys = [key_of(n) for n in random.Random(2).choices(range(count), k=asked)]
    before = anonymous_bytes()
    side = kind(path, cache=cache)
    rates = []
    for _ in range(rounds):
        began = time.perf_counter()
        for key in keys:
            if side.get(key) is None:
                raise AssertionError(f"{side.name}: a record is missing")
        rates.append(len(keys) / (time.perf_counter() - began))
    added = anonymous_bytes() - before
    side.close()
    return {"rates": rates, "added": added}


def small_cache(settings: Settings, count: int, kinds: list[type[Side]]) -> list[Row]:
    if settings.peers_only:
        kinds = [kind for kind in kinds if kind is not Siltstone]
    asked = settings.pick(100_000, 30_000)
    found: dict[str, dict[str, Any]] = {}
    with settings.directory() as directory:
        for kind in kinds:
            path = directory / kind.name
            child.call(fill, kind, path, count, SMALL_CACHE)
            found[kind.name] = child.call(
                ask, kind, path, count, SMALL_CACHE, asked, settings.rounds
            )
    ours = found.get(OURS, {"rates": [], "added": 0})
    theirs = found["rocksdict"]
    size = f"{count * RECORD / 1e6:.0f} MB of data, 32 MiB cache"
    return [
        Row(f"random get, {size}", "op/s", ours["rates"], "rocksdict", theirs["rates"], 1.2),
        Row(
            f"anonymous memory added, {size}",
            "MiB",
            [ours["added"] / 2**20] if OURS in found else [],
            "rocksdict",
            [theirs["added"] / 2**20],
            48.0,
            at_most=True,
            smaller_is_better=True,
            compare=False,
            exact=True,
        ),
    ]


# Space ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def peak_of(measure: Callable[[], int]) -> Iterator[list[int]]:
    """[the highest value seen]: polled every 20 ms."""
    highest, stop = [0], threading.Event()

    def poll() -> None:
        while not stop.wait(0.02):
            highest[0] = max(highest[0], measure())

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        yield highest
    finally:
        stop.set()
        thread.join()
        highest[0] = max(highest[0], measure())


def overwrite_side(kind: type[Side], path: Path, count: int) -> dict[str, float]:
    """Peak and closed size after each record was written 1 + 5 times, in random orders."""
    side = kind(path)
    with peak_of(lambda: directory_bytes(path)) as peak:
        for chunk in chunks(0, count, 1000, 1):
            side.put_batch(chunk)
        for turn in range(OVERWRITES):
            value = random.Random(turn).randbytes(VALUE_SIZE)
            numbers = random.Random(turn).sample(range(count), count)
            for start in range(0, count, 1000):
                side.put_batch([(key_of(n), value) for n in numbers[start : start + 1000]])
    side.close()
    return {"peak": peak[0], "closed": directory_bytes(path)}


def overwrite(settings: Settings, count: int) -> list[Row]:
    with settings.directory() as directory:
        found = {
            kind.name: child.call(overwrite_side, kind, directory / kind.name, count)
            for kind in sides(settings.peers_only)
        }
    live = count * RECORD
    rows = []
    for when, target in (("peak", 2.0), ("closed", 1.4)):
        spare = 16 * SEGMENT if when == "peak" else 0
        for peer in (name for name in found if name != OURS):
            ours = [(found[OURS][when] - spare) / live] if OURS in found else []
            rows.append(
                Row(
                    f"file size after {OVERWRITES} x overwrite, {when}",
                    "x live",
                    ours,
                    peer,
                    [found[peer][when] / live],
                    target,
                    at_most=True,
                    smaller_is_better=True,
                    compare=False,
                    exact=True,
                    notes={"ours less": "16 segments"} if spare else {},
                )
            )
    return rows


def amplify(path: Path, count: int, cache: int, writes: int) -> dict[str, float]:
    """Bytes of each kind written for the overwrites alone."""
    import siltstone

    with siltstone.Store(path, cache=cache) as store:
        for chunk in chunks(0, count, 10_000, 1):
            with store.batch() as batch:
                for key, value in chunk:
                    batch[key] = value
        store.checkpoint()
        before, value = store.stats(), b"v" * VALUE_SIZE
        for n in random.Random(4).choices(range(count), k=writes):
            store[key_of(n)] = value
        store.sync()
        after = store.stats()
    names = [name for name in after if name.endswith("_bytes") and "written" in name]
    parts = {name: float(after[name] - before[name]) for name in names}
    return {"user": float(writes * RECORD), **parts}


def amplification(settings: Settings, count: int) -> list[Row]:
    if settings.peers_only:
        return []
    rows = []
    writes = settings.pick(1_000_000, 200_000)
    for title, cache, target in (
        ("leaf pages in cache", 4 * count * RECORD, 4.0),
        ("data 10 x cache", max(count * RECORD // 10, 2 << 20), None),
    ):
        with settings.directory() as directory:
            found = child.call(amplify, directory / "store", count, cache, writes)
        user = found.pop("user")
        rows.append(
            Row(
                f"bytes written of a user's byte, random overwrites, {title}",
                "x",
                [found.get("written_bytes", 0.0) / user],
                target=target,
                at_most=True,
                smaller_is_better=True,
                exact=True,
                notes={name: f"{value / user:.2f}" for name, value in found.items()},
            )
        )
    return rows


# Opening --------------------------------------------------------------------------------------


def fill_and_die(kind: type[Side], path: Path, count: int) -> dict[str, float]:
    """Fill in batches as large as suit the side; the last twentieth comes in batches of 10,000, so
    that what recovery finds is the same for all."""
    side = kind(path)
    last = count - count // 20
    for chunk in chunks(0, last, side.bulk, 1):
        side.put_batch(sorted(chunk))
    for chunk in chunks(last, count, 10_000, 1):
        side.put_batch(chunk)
    side.sync()
    _open.append(side)
    return {}


def reopen(kind: type[Side], path: Path) -> dict[str, float]:
    """Seconds to open and answer one get; anonymous memory added."""
    warm = kind(path.with_name("empty-" + path.name))  # imports and first-use costs
    warm.get(b"none")
    warm.close()
    before, began = anonymous_bytes(), time.perf_counter()
    side = kind(path)
    if side.get(key_of(0)) is None:
        raise AssertionError(f"{kind.name}: the first record is missing")
    seconds = time.perf_counter() - began
    _open.append(side)
    return {"seconds": seconds, "added": anonymous_bytes() - before}


def opening(settings: Settings, count: int) -> list[Row]:
    kinds = sides(settings.peers_only)
    clean: dict[str, dict[str, float]] = {}
    killed: dict[str, dict[str, float]] = {}
    with settings.directory() as directory:
        for kind in kinds:
            path = directory / kind.name
            child.call(fill_and_die, kind, path, count, kill=True)
            killed[kind.name] = child.call(reopen, kind, path, kill=True)
            child.call(close_well, kind, path)
            clean[kind.name] = child.call(reopen, kind, path, kill=True)
    rows = []
    for title, found, limit_ms in (("clean", clean, 20.0), ("after kill -9", killed, 500.0)):
        size = f"{count * RECORD / 1e9:.2g} GB"
        for peer in (name for name in found if name != OURS):
            row = Row(
                f"open {size}, {title}",
                "ms",
                [found[OURS]["seconds"] * 1e3] if OURS in found else [],
                peer,
                [found[peer]["seconds"] * 1e3],
                limit_ms,
                at_most=True,
                smaller_is_better=True,
                compare=False,
            )
            rows.append(row)
        if OURS in found:
            rows.append(
                Row(
                    f"memory added by opening {size}, {title}",
                    "MiB",
                    [found[OURS]["added"] / 2**20],
                    target=32.0,
                    at_most=True,
                    smaller_is_better=True,
                    exact=True,
                )
            )
    return rows


def close_well(kind: type[Side], path: Path) -> dict[str, float]:
    kind(path).close()
    return {}
