"""Where the RAM limit goes: bytes for each item on flash, share of user data, resident memory.

User data is key + value. Items are loaded until many had to go; what is found afterwards, times
its size, is what the limit was good for. Embedded caches are measured in a process of their own,
whose resident memory before the cache was opened is "the interpreter".
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import child, daemon, harness
from bench.compiler import generator
from bench.harness import Row, Settings

TITLE = "Memory: bytes a flash-resident item, user data in the limit, resident memory"
RAM = 64 << 20
QUICK_RAM = 16 << 20
CONNECTIONS = 10
PIPELINE = 16  # rates do not matter here


@dataclass(frozen=True)
class Mix:
    """Values to fill RAM with: `turnover` times the limit is stored, over `spread` x its size."""

    name: str
    size_min: int
    size_max: int
    mean: int
    turnover: int
    spread: int
    target: float

    def keys(self, ram: int) -> int:
        return self.spread * ram // self.mean

    def stores(self, ram: int) -> int:
        return self.turnover * ram // self.mean


# 64 B to 512 KiB, each doubling as likely as the next: the mean is 60 KiB.
MIXES = (
    Mix("1 KiB values", 1024, 0, 1024, 3, 3, 0.85),
    Mix("100 B values", 100, 0, 100, 3, 3, 0.65),
    Mix("64 B to 512 KiB, 10 x turnover", 64, 512 << 10, 60 << 10, 10, 2, 0.75),
)


# Embedded -------------------------------------------------------------------------------------


def fill_embedded(ram: int, mix: Mix) -> dict[str, float]:
    """In its own process: user bytes found and resident memory after filling RAM."""
    import siltstone

    key_of, value_of = generator().key_of, generator().value_of
    keys, found, wrong = mix.keys(ram), 0, 0
    before = harness.resident_bytes()
    with siltstone.Cache(None, ram=ram, flash=0, codec="raw", item_size_max="1MiB") as cache:
        for turn in range(mix.stores(ram)):
            index = turn % keys
            cache.set(key_of(index), value_of(index, mix.size_min, mix.size_max))
        resident = harness.resident_bytes() - before
        for index in range(keys):
            value = cache.get(key_of(index))
            if value is not None:
                found += len(key_of(index)) + len(value)
                wrong += value != value_of(index, mix.size_min, mix.size_max)
    return {"bytes": found, "resident": resident, "interpreter": before, "wrong": wrong}


def fill_flash(ram: int, path: str) -> dict[str, float]:
    """In its own process: load small items, more than the index can hold; how many are found."""
    import siltstone

    key_of, value_of = generator().key_of, generator().value_of
    count, step = ram // 18, 8
    flash = max(4 * ram, count * 64 * 2)
    with siltstone.Cache(path, ram=ram, flash=flash, codec="raw") as cache:
        for index in range(count):
            cache.set(key_of(index), value_of(index, 8))
        found = sum(
            cache.get(key_of(index)) == value_of(index, 8) for index in range(0, count, step)
        )
    return {"items": found * step, "loaded": count}


# Servers --------------------------------------------------------------------------------------


def fill_server(name: str, ram: int, mix: Mix) -> dict[str, float]:
    keys = mix.keys(ram)
    sizes: dict[str, Any] = {
        "size_min": mix.size_min,
        "size_max": mix.size_max,
        "count": keys,
        "sequential": True,
        "connections": CONNECTIONS,
        "pipeline": 1 if mix.size_max else PIPELINE,
    }
    with daemon.running(name, "-m", str(ram >> 20), "-t", "1") as server:
        server.load("set", operations=mix.stores(ram), **sizes)
        resident = harness.resident_bytes(server.process.pid)
        found = server.load("get", operations=keys, check=True, **sizes)
    return {"bytes": found["hit_bytes"], "resident": resident, "wrong": found["wrong"]}


def fill_server_flash(name: str, ram: int, directory: Path) -> dict[str, float]:
    """Values of 100 B, all of them larger than ext_item_size, so that they may go to flash."""
    count = ram // 18
    options = (
        f"ext_page_size=16,ext_path={directory / name}:2g,ext_wbuf_size=4,"
        "ext_item_size=80,slab_automove=2"
    )
    shape: dict[str, Any] = {
        "count": count,
        "operations": count,
        "sequential": True,
        "size_min": 100,
        "connections": CONNECTIONS,
        "pipeline": PIPELINE,
    }
    with daemon.running(name, "-m", str(ram >> 20), "-t", "1", "-o", options) as server:
        server.load("set", **shape)
        found = server.load("get", check=True, **shape)
    return {"items": found["hits"], "loaded": count, "wrong": found["wrong"]}


# Rows -----------------------------------------------------------------------------------------


def run(settings: Settings) -> list[Row]:
    ram = settings.pick(RAM, QUICK_RAM)
    names = [daemon.MEMCACHED] if settings.peers_only else [harness.OURS, daemon.MEMCACHED]
    rows: list[Row] = [] if settings.peers_only else _embedded(settings, ram)
    with settings.directory() as directory:
        directory.chmod(0o777)
        found = {name: fill_server_flash(name, ram, directory) for name in names}
    rows.append(
        _row(
            "bytes of limit an item on flash, server",
            "B",
            {name: ram / each["items"] for name, each in found.items()},
            24.0,
            True,
        )
    )
    rows[-1].notes["items found of loaded"] = " / ".join(
        f"{each['items']:,.0f} of {each['loaded']:,.0f}" for each in found.values()
    )
    for mix in MIXES:
        each = {name: fill_server(name, ram, mix) for name in names}
        rows.append(
            _row(
                f"user data, server, {mix.name}",
                "of limit",
                {name: one["bytes"] / ram for name, one in each.items()},
                mix.target,
            )
        )
        rows[-1].notes["resident MiB"] = " / ".join(
            f"{one['resident'] / 2**20:.0f}" for one in each.values()
        )
        rows[-1].notes["wrong"] = " / ".join(f"{one['wrong']:.0f}" for one in each.values())
    return rows


def _row(
    name: str, unit: str, values: dict[str, float], target: float, at_most: bool = False
) -> Row:
    ours = [values[harness.OURS]] if harness.OURS in values else []
    return Row(
        name,
        unit,
        ours,
        daemon.MEMCACHED,
        [values[daemon.MEMCACHED]],
        target,
        at_most,
        at_most,
        compare=False,
        exact=True,
    )


def _embedded(settings: Settings, ram: int) -> list[Row]:
    with settings.directory() as directory:
        flash = child.call(fill_flash, ram, str(directory / "cache"))
    rows = [
        Row(
            "bytes of limit an item on flash, embedded",
            "B",
            [ram / flash["items"]],
            target=24.0,
            at_most=True,
            smaller_is_better=True,
            exact=True,
            notes={"items found of loaded": f"{flash['items']:,} of {flash['loaded']:,}"},
        )
    ]
    for mix in MIXES:
        found = child.call(fill_embedded, ram, mix)
        rows.append(
            Row(
                f"user data, embedded, {mix.name}",
                "of limit",
                [found["bytes"] / ram],
                target=mix.target,
                exact=True,
                notes={"wrong": str(found["wrong"])},
            )
        )
        rows.append(
            Row(
                f"resident memory less the interpreter, {mix.name}",
                "of limit",
                [found["resident"] / ram],
                target=1.05,
                at_most=True,
                exact=True,
                smaller_is_better=True,
                notes={"interpreter MiB": f"{found['interpreter'] / 2**20:.0f}"},
            )
        )
    return rows
