"""`siltstone top`: what a cache is doing, from the change of its statistics from look to look.

Works on what `stats` gives, of a server or of a cache in a directory; knows no engine.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from rich.console import Group
from rich.table import Table
from rich.text import Text

from siltstone.clock import Clock
from siltstone.config import format_size

Statistics = dict[str, int | float]
# Clocks of the server and of its process: they run whatever happens.
PASSING: Final = {"uptime", "time", "rusage_user", "rusage_system", "pid", "pointer_size"}


class Look(NamedTuple):
    """The statistics now, and each one's change a second since the look before."""

    values: Statistics
    rates: dict[str, float]

    @property
    def hit_ratio(self) -> float | None:
        """Of the gets since the look before; None when there were none."""
        hits, misses = (self.rates.get(name, 0.0) for name in ("get_hits", "get_misses"))
        return hits / (hits + misses) if hits + misses > 0 else None

    def as_json(self) -> dict[str, Any]:
        return {"hit_ratio": self.hit_ratio, "values": self.values, "rates": self.rates}


def looks(
    read: Callable[[], dict[str, Any]], interval: float, count: int | None, clock: Clock
) -> Iterator[Look]:
    """A look every `interval` seconds, the first after one; `count` of them, or for ever."""
    before, began = _numbers(read()), clock.monotonic_ns()
    for _ in itertools.repeat(None) if count is None else range(count):
        clock.sleep(interval)
        now, ended = _numbers(read()), clock.monotonic_ns()
        seconds = max(ended - began, 1) / 1e9
        rates = {name: (value - before.get(name, value)) / seconds for name, value in now.items()}
        yield Look(now, rates)
        before, began = now, ended


def _numbers(values: dict[str, Any]) -> Statistics:
    read = {name: number_of(value) for name, value in values.items()}
    return {name: value for name, value in read.items() if type(value) in (int, float)}


def number_of(value: Any) -> Any:
    """The number that a text says; anything else as it is."""
    if isinstance(value, str):
        for kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                continue
    return value


def render(look: Look, rows: int) -> Group:
    """A line that sums it up, and the statistics that change most, at most `rows` of them."""
    table = Table(show_edge=False, header_style="bold")
    table.add_column("statistic")
    table.add_column("value", justify="right")
    table.add_column("a second", justify="right")
    changing = [name for name, rate in look.rates.items() if rate and name not in PASSING]
    changing.sort(key=lambda name: -abs(look.rates[name]))
    for name in changing[:rows]:
        table.add_row(name, f"{look.values[name]:,}", f"{look.rates[name]:+,.1f}")
    return Group(Text(_headline(look), style="bold"), Text(""), table)


def _headline(look: Look) -> str:
    values, rates, ratio = look.values, look.rates, look.hit_ratio
    parts = [
        f"{rates.get('get_hits', 0) + rates.get('get_misses', 0):,.0f} gets/s",
        f"{rates.get('total_items', 0):,.0f} stored/s",
        "no gets" if ratio is None else f"{ratio:.1%} hits",
        f"{values.get('curr_items', 0):,} items",
    ]
    if values.get("limit_maxbytes"):
        memory = format_size(int(values.get("bytes", 0)))
        parts.append(f"{memory} of {format_size(int(values['limit_maxbytes']))}")
    return "   ".join(parts)
