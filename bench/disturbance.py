"""What others did on the machine while something was measured; measuring again when it was much.

Clock times mean little while other programs have the cores. All CPU time that is not ours is
summed from /proc before and after (a process that ends meanwhile hands its time to its parent, so
nothing is lost), and a disturbed measurement is made again, once; the less disturbed one counts.
Kernel threads are left out: they may well be working for us.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

TRIES = 2
OTHERS_MAX = 0.1  # of all cores: ratios nearer to 1 than 0.15 are called ties anyway
KTHREADD = 2

T = TypeVar("T")

shares: list[float] = []  # of every measurement that counted, since `reset`


def _processes() -> dict[int, tuple[int, int]]:
    """By pid: (parent, clock ticks of the process and of its children that ended)."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has just ended
            found[int(entry.name)] = int(fields[1]), sum(int(ticks) for ticks in fields[11:15])
    return found


def _others_seconds() -> float:
    """CPU time so far of every process but this one, its children, and the kernel's."""
    found = _processes()
    ours = {os.getpid(), KTHREADD}
    grown = True
    while grown:
        more = {pid for pid, (parent, _) in found.items() if parent in ours} - ours
        ours |= more
        grown = bool(more)
    ticks = sum(ticks for pid, (_, ticks) in found.items() if pid not in ours)
    return ticks / os.sysconf("SC_CLK_TCK")


def watched(measure: Callable[[], T]) -> tuple[T, float]:
    """What `measure` gives, and the share of the machine's cores that others had meanwhile."""
    began, others = time.perf_counter(), _others_seconds()
    result = measure()
    elapsed = time.perf_counter() - began
    spent = max(0.0, _others_seconds() - others)
    return result, spent / elapsed / len(os.sched_getaffinity(0))


def undisturbed(measure: Callable[[], T]) -> T:
    """The result of the least disturbed of TRIES measurements; mostly the first will do."""
    best, least = watched(measure)
    for _ in range(TRIES - 1):
        if least <= OTHERS_MAX:
            break
        result, share = watched(measure)
        if share < least:
            best, least = result, share
    shares.append(least)
    return best
