"""Write amplification of the device under Zipf overwrites, with flash 80 % full of live items.

Device bytes are what this process passed to write calls (/proc), so every byte that compaction
writes again, every header and every pad is in. They are compared with the bytes that were stored
(RAM takes up part of the overwrites of hot keys), and with the bytes that left RAM for flash.
"""

from __future__ import annotations

import itertools
import random

from bench import harness, traces
from bench.compiler import generator
from bench.harness import Row, Settings

TITLE = "Write amplification under Zipf overwrites, flash 80 % full"
VALUE_SIZE = 1024
RECORD_SIZE = 1104  # key, value, headers, rounded up
FLASH = 512 << 20
QUICK_FLASH = 64 << 20
RAM_SHARE = 16
FULL = 0.8
TURNS = 3  # overwrites: this many times the number of keys
ALPHA = 0.99
PEER_NAMES = ("extstore_bytes_written", "flash_write_bytes")


def run(settings: Settings) -> list[Row]:
    if settings.peers_only:
        return []
    import siltstone

    flash = settings.pick(FLASH, QUICK_FLASH)
    keys = int(FULL * flash / RECORD_SIZE)
    stream = traces.zipf(random.Random(traces.SEED), keys, TURNS * keys, ALPHA)
    key_of, value_of = generator().key_of, generator().value_of
    latest = dict.fromkeys(range(keys), 0)
    with (
        settings.directory() as directory,
        siltstone.Cache(
            str(directory / "cache"), ram=flash // RAM_SHARE, flash=flash, codec="raw"
        ) as cache,
    ):
        for index in range(keys):
            cache.set(key_of(index), value_of(index, VALUE_SIZE))
        before, written = cache.stats(), harness.written_bytes()
        for version, index in zip(itertools.count(1), stream):
            cache.set(key_of(index), value_of(index, VALUE_SIZE, 0, version))
            latest[index] = version
        cache.flush()
        device = harness.written_bytes() - written
        after = cache.stats()
        lost = wrong = 0
        for index, version in latest.items():
            value = cache.get(key_of(index))
            lost += value is None
            wrong += value is not None and value != value_of(index, VALUE_SIZE, 0, version)
    return _rows(
        len(stream) * (VALUE_SIZE + len(key_of(0))),
        device,
        before,
        after,
        100 * (1 - (lost + wrong) / keys),
        {"lost": f"{lost} of {keys}", "wrong": str(wrong)},
    )


def _rows(
    stored: int,
    device: int,
    before: dict[str, object],
    after: dict[str, object],
    kept: float,
    notes: dict[str, str],
) -> list[Row]:
    rows = [
        Row(
            "device bytes / bytes stored",
            "x",
            [device / stored],
            target=2.0,
            at_most=True,
            exact=True,
            notes={"device MiB": f"{device / 2**20:.0f}", "stored MiB": f"{stored / 2**20:.0f}"},
        ),
        # Forgetting what is alive is no way to write less.
        Row("items found with their last value", "%", [kept], target=99.9, exact=True, notes=notes),
    ]
    for name in PEER_NAMES:
        if name in before and name in after:
            left = int(str(after[name])) - int(str(before[name]))
            rows.append(
                Row(
                    f"device bytes / {name}",
                    "x",
                    [device / max(left, 1)],
                    exact=True,
                    notes={f"{name} MiB": f"{left / 2**20:.0f}"},
                )
            )
    return rows
