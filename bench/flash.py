"""Random gets of values that live on flash, against memcached's extstore with the same limits.

Both servers get the same options and are asked for the same keys. The load is paced, because
memcached drops items while its flush thread is behind (see load.py); what it lost anyway is shown:
its misses are answered without reading flash, which is in its favour.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from bench import daemon, harness, server
from bench.harness import Row, Settings

TITLE = "Flash: random get of 1 KiB values, 64 MiB of RAM, 50 connections"
VALUE_SIZE = 1024
KEYS = 400_000
QUICK_KEYS = 120_000  # still twice the RAM limit
CONNECTIONS = 50
PACE = 25_000  # sets a second


def flags(directory: Path, name: str, automove: bool = True) -> tuple[str, ...]:
    # Pages of 16 MiB give the reclaim room to choose; buffers of 4 MiB and one I/O thread are the
    # defaults. slab_automove=2 is what lets memcached keep 98 % of this load at any pace: with the
    # default (1) it evicts the headers of flash items, and keeps 21 to 85 % (measured, 1.6.18:
    # 400,000 values at full speed, and at 6,000 a second with a free ratio of 0.1).
    options = [
        f"ext_page_size=16,ext_path={directory / name}:1g,ext_wbuf_size=4,ext_threads=1",
        "ext_item_size=512",
    ]
    if automove:
        options.append("slab_automove=2")
    return ("-t", "1", "-m", "64", "-o", ",".join(options))


@contextlib.contextmanager
def servers(settings: Settings, automove: bool = True) -> Iterator[list[daemon.Daemon]]:
    """Both servers with an empty flash file each; `automove`: the peer with its best options."""
    with settings.directory() as directory:
        directory.chmod(0o777)  # memcached gives up root's rights
        each = {name: flags(directory, name, automove) for name in (harness.OURS, daemon.MEMCACHED)}
        with daemon.pair(settings, each) as pair:
            yield pair


def fill(target: daemon.Daemon, keys: int, rate: float) -> dict[str, float]:
    """Store every key once; rate 0 is full speed."""
    return target.load(
        "set",
        count=keys,
        operations=keys,
        sequential=True,
        rate=rate,
        size_min=VALUE_SIZE,
        connections=CONNECTIONS,
    )


def read_all(target: daemon.Daemon, keys: int) -> dict[str, float]:
    """Ask for every key once and compare every byte."""
    return target.load(
        "get",
        count=keys,
        operations=keys,
        sequential=True,
        check=True,
        size_min=VALUE_SIZE,
        connections=CONNECTIONS,
    )


def run(settings: Settings) -> list[Row]:
    keys = settings.pick(KEYS, QUICK_KEYS)
    rows = []
    with servers(settings) as pair:
        kept = {}
        for each in pair:
            fill(each, keys, PACE)
            kept[each.name] = read_all(each, keys)
        results = harness.alternate(
            {each.name: each for each in pair},
            lambda each: each.load(
                "get",
                count=keys,
                seconds=settings.pick(3.0, 1.0),
                check=True,
                connections=CONNECTIONS,
                size_min=VALUE_SIZE,
                seed=7,
            ),
            settings.rounds,
        )
    rows.append(server.compare("random get", results, 1.0))
    ours, theirs = (results.get(name, []) for name in (harness.OURS, daemon.MEMCACHED))
    rows.append(
        Row(
            "p99 of random get",
            "us",
            [r["p99_us"] for r in ours],
            daemon.MEMCACHED,
            [r["p99_us"] for r in theirs],
            1.0,
            at_most=True,
            smaller_is_better=True,
        )
    )
    rows.append(_count("misses after a paced load", kept, "misses"))
    wrong = {name: [kept[name], *runs] for name, runs in results.items()}
    rows.append(
        Row(
            "wrong values, every byte compared",
            "values",
            [sum(r["wrong"] for r in wrong.get(harness.OURS, []))] if ours else [],
            daemon.MEMCACHED,
            [sum(r["wrong"] for r in wrong[daemon.MEMCACHED])],
            0.0,
            at_most=True,
            compare=False,
            exact=True,
        )
    )
    return rows


def _count(name: str, kept: dict[str, dict[str, float]], what: str) -> Row:
    return Row(
        name,
        "items",
        [kept[harness.OURS][what]] if harness.OURS in kept else [],
        daemon.MEMCACHED,
        [kept[daemon.MEMCACHED][what]],
        0.0,
        at_most=True,
        compare=False,
        exact=True,
        smaller_is_better=True,
    )
