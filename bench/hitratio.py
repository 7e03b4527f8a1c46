"""Hit ratios of siltstone's eviction against SIEVE, LRU and FIFO with equal bytes of user data.

All items have one size, so equal bytes are equal counts: how many items siltstone's RAM holds is
found first (fill it, count), and each simulated policy gets exactly that many. Flash is off.
"""

from __future__ import annotations

from collections.abc import Sequence

from bench.compiler import generator
from bench.harness import Row, Settings
from bench.policies import PEERS, Policy
from bench.traces import TRACES

TITLE = "Hit ratio of RAM eviction at equal bytes of user data"
VALUE_SIZE = 500
RAM = 32 << 20
QUICK_RAM = 8 << 20


def capacity_of(ram: int) -> int:
    """How many items the RAM holds in the long run."""
    import siltstone

    key_of, value_of = generator().key_of, generator().value_of
    count = 3 * ram // VALUE_SIZE
    with siltstone.Cache(None, ram=ram, flash=0, codec="raw") as cache:
        for index in range(count):
            cache.set(key_of(index), value_of(index, VALUE_SIZE))
        return sum(cache.get(key_of(index)) is not None for index in range(count))


def play_ours(ram: int, stream: Sequence[int]) -> float:
    import siltstone

    key_of, hits = generator().key_of, 0
    value = bytes(VALUE_SIZE)
    with siltstone.Cache(None, ram=ram, flash=0, codec="raw") as cache:
        for number in stream:
            key = key_of(number)
            if cache.get(key) is not None:
                hits += 1
            else:
                cache.set(key, value)
    return hits / len(stream)


def play(policy: Policy, stream: Sequence[int]) -> float:
    request = policy.request
    return sum(map(request, stream)) / len(stream)


def run(settings: Settings) -> list[Row]:
    ram = settings.pick(RAM, QUICK_RAM)
    count = settings.pick(2_000_000, 300_000)
    capacity = ram * 85 // 100 // VALUE_SIZE if settings.peers_only else capacity_of(ram)
    rows = []
    for title, trace in TRACES.items():
        stream = trace(capacity, count)
        ours = [] if settings.peers_only else [100 * play_ours(ram, stream)]
        for name, policy in PEERS.items():
            theirs = [100 * play(policy(capacity), stream)]
            # The baseline is SIEVE: to be no worse than it, within a hundredth.
            target = 0.99 if name == "SIEVE" else None
            rows.append(Row(title, "% hits", ours, name, theirs, target, exact=True))
    rows[0].notes["items that fit"] = str(capacity)
    return rows
