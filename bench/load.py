"""A load at full speed into 64 MiB of RAM with flash behind it: who keeps every item?

memcached is loaded twice: with its default options, and with `slab_automove=2`.
"""

from __future__ import annotations

from bench import daemon, flash, harness
from bench.harness import Row, Settings

TITLE = "Full-speed load of 1 KiB values, 64 MiB of RAM, 1 GiB of flash: items kept"
TUNED = "memcached slab_automove=2"


def _load(settings: Settings, automove: bool) -> dict[str, dict[str, float]]:
    keys = settings.pick(flash.KEYS, flash.QUICK_KEYS)
    found = {}
    with flash.servers(settings, automove) as pair:
        for each in pair:
            loaded = flash.fill(each, keys, 0.0)
            kept = flash.read_all(each, keys)
            found[each.name] = {
                "kept": 100 * kept["hits"] / keys,
                "wrong": kept["wrong"],
                "refused": loaded["refused"],
                "rate": loaded["rate"],
                "cpu_us": loaded["cpu_us"],
            }
    return found


def run(settings: Settings) -> list[Row]:
    plain, tuned = _load(settings, automove=False), _load(settings, automove=True)
    rounds = {
        harness.OURS: [found[harness.OURS] for found in (plain, tuned) if harness.OURS in found],
        daemon.MEMCACHED: [plain[daemon.MEMCACHED]],
        TUNED: [tuned[daemon.MEMCACHED]],
    }
    rows = []
    for peer in (daemon.MEMCACHED, TUNED):
        kept = Row(
            "items kept",
            "%",
            [r["kept"] for r in rounds[harness.OURS]],
            peer,
            [r["kept"] for r in rounds[peer]],
            100.0,
            compare=False,
            exact=True,
        )
        rate = Row(
            "sets while loading",
            "op/s",
            [r["rate"] for r in rounds[harness.OURS]],
            peer,
            [r["rate"] for r in rounds[peer]],
        )
        pair = [rounds[name][0] for name in (harness.OURS, peer) if rounds[name]]
        rate.notes["server CPU us/set"] = " / ".join(f"{r['cpu_us']:.2f}" for r in pair)
        for what in ("refused", "wrong"):
            kept.notes[what] = " / ".join(f"{r[what]:.0f}" for r in pair)
        rows += [kept, rate]
    return rows
