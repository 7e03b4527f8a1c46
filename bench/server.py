"""Requests a second against memcached: one server thread, 50 connections, 100-byte values."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from bench import daemon, harness
from bench.harness import Row, Settings

TITLE = "Server against memcached -t 1: 50 connections, 100-byte values"
FLAGS = ("-t", "1", "-m", "1024")
KEYS = 100_000
CONNECTIONS = 50
VALUE_SIZE = 100


@dataclass(frozen=True)
class Load:
    name: str
    operation: str
    target: float | None
    shape: dict[str, int] = field(default_factory=dict)


LOADS = (
    Load("get", "get", 0.70),
    Load("get, 16 pipelined", "get", 1.10, {"pipeline": 16}),
    Load("get, 50 keys", "get", 1.40, {"keys_per_get": 50}),
    Load("set", "set", 0.80),
    Load("set, 16 pipelined", "set", None, {"pipeline": 16}),
)


def run(settings: Settings) -> list[Row]:
    seconds = settings.pick(1.0, 0.5)
    with daemon.pair(settings, {harness.OURS: FLAGS, daemon.MEMCACHED: FLAGS}) as servers:
        for server in servers:
            server.load(
                "set",
                count=KEYS,
                operations=KEYS,
                sequential=True,
                connections=CONNECTIONS,
                size_min=VALUE_SIZE,
            )
        return [_measure(load, servers, seconds, settings.rounds) for load in LOADS]


def _measure(load: Load, servers: list[daemon.Daemon], seconds: float, rounds: int) -> Row:
    def once(server: daemon.Daemon) -> dict[str, float]:
        return server.load(
            load.operation,
            count=KEYS,
            seconds=seconds,
            connections=CONNECTIONS,
            size_min=VALUE_SIZE,
            check=True,
            **load.shape,
        )

    results = harness.alternate({server.name: server for server in servers}, once, rounds)
    return compare(load.name, results, load.target)


def compare(name: str, results: dict[str, list[dict[str, float]]], target: float | None) -> Row:
    """The row of one load: rates, and beside them CPU an operation, latencies, wrong answers."""
    ours, theirs = (results.get(who, []) for who in (harness.OURS, daemon.MEMCACHED))
    notes = {}
    for field_name, title, digits in (
        ("cpu_us", "server CPU us/op", 2),
        ("busy", "server core busy", 2),
        ("generator_busy", "generator busy", 2),
        ("p50_us", "p50 us", 0),
        ("p99_us", "p99 us", 0),
        ("p999_us", "p99.9 us", 0),
    ):
        pair = [
            statistics.median(r[field_name] for r in side) if side else 0.0
            for side in (ours, theirs)
        ]
        notes[title] = f"{pair[0]:.{digits}f} / {pair[1]:.{digits}f}"
        if field_name == "cpu_us" and ours and theirs:
            notes["ratio by CPU"] = f"{pair[1] / pair[0]:.2f}"
    for field_name in ("misses", "wrong", "refused"):
        counts = [int(sum(r[field_name] for r in side)) for side in (ours, theirs)]
        if any(counts):
            notes[field_name] = f"{counts[0]} / {counts[1]}"
    return Row(
        name,
        "op/s",
        [r["rate"] for r in ours],
        daemon.MEMCACHED,
        [r["rate"] for r in theirs],
        target,
        notes=notes,
    )
