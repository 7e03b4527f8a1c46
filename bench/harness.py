"""What every bench shares: settings, pinning, alternating runs, medians, rows of the report.

A bench is a module with `TITLE` and `run(settings) -> list[Row]`. A row holds what each side
measured, round by round, in the order A B B A ..., so that a machine that warms up or is busy for
a while hurts both alike; the ratio is median over median. One core belongs to the server, another
to the load generator; CPU time is read from /proc, so it says what a request costs even where
the clock is disturbed.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from bench import disturbance

TIE = (0.85, 1.15)  # ratios between these are a tie on a machine that does other things too
OURS = "siltstone"

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """How long and how large: `quick` is for a look, the full size is what targets are for."""

    quick: bool = False
    rounds: int = 5
    peers_only: bool = False
    items: int = 0  # of benches that take a size; 0: their own
    part: str = ""  # of benches that have parts; "": all
    scratch: Path = Path("var/bench")

    def pick(self, full: Any, quick: Any) -> Any:
        return quick if self.quick else full

    @contextlib.contextmanager
    def directory(self) -> Iterator[Path]:
        """A fresh directory on the disk that is measured; gone afterwards."""
        self.scratch.mkdir(parents=True, exist_ok=True)
        path = Path(tempfile.mkdtemp(prefix="run-", dir=self.scratch)).resolve()
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


@dataclass
class Row:
    """One line of the report. With a peer its value is ours / peer, else the median of ours."""

    name: str
    unit: str
    ours: list[float]
    peer: str = ""
    theirs: list[float] = field(default_factory=list)
    target: float | None = None
    at_most: bool = False  # the target is an upper limit
    smaller_is_better: bool = False  # of the measured numbers (best = smallest)
    compare: bool = True  # False: the target is for our number, the peer is shown
    exact: bool = False  # a count or size, not a timing: no tie
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def value(self) -> float | None:
        if not self.ours:
            return None
        ours = statistics.median(self.ours)
        if not (self.compare and self.peer):
            return ours
        if not self.theirs:
            return None
        theirs = statistics.median(self.theirs)
        return ours / theirs if theirs else None

    @property
    def verdict(self) -> str:
        if not self.ours:
            return "not measured"
        if self.target is None or self.value is None:
            return ""
        met = self.value <= self.target if self.at_most else self.value >= self.target
        return "met" if met else "MISSED"

    @property
    def is_tie(self) -> bool:
        timed = self.compare and bool(self.peer) and not self.exact
        return timed and self.value is not None and TIE[0] <= self.value <= TIE[1]

    def best(self, samples: list[float]) -> float | None:
        if not samples:
            return None
        return min(samples) if self.smaller_is_better else max(samples)

    def as_json(self) -> dict[str, Any]:
        extra = {"value": self.value, "verdict": self.verdict, "tie": self.is_tie}
        return asdict(self) | extra


# Cores ----------------------------------------------------------------------------------------


def cores() -> tuple[int, int]:
    """(server's core, generator's core): the first two we may use; the same one if there is one."""
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[0], allowed[1 % len(allowed)]


@contextlib.contextmanager
def pinned(*on: int) -> Iterator[None]:
    """This thread, and all it starts meanwhile, stays on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, on)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far, all its threads (those that ended are not counted)."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def resident_bytes(pid: int | None = None) -> int:
    """Resident memory, shared mappings included."""
    for line in Path(f"/proc/{pid or 'self'}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def written_bytes(pid: int | None = None) -> int:
    """Bytes that a process has passed to write calls of any kind."""
    for line in Path(f"/proc/{pid or 'self'}/io").read_text().splitlines():
        if line.startswith("wchar:"):
            return int(line.split()[1])
    return 0


# Measuring ------------------------------------------------------------------------------------


def alternate(sides: Mapping[str, S], measure: Callable[[S], T], rounds: int) -> dict[str, list[T]]:
    """Measure each side once a round, in turn, and every other round in the opposite order.

    What others on the machine disturbed is measured again (disturbance.py).
    """
    results: dict[str, list[T]] = {name: [] for name in sides}
    names = list(sides)
    for turn in range(rounds):
        for name in names if turn % 2 == 0 else reversed(names):
            results[name].append(disturbance.undisturbed(functools.partial(measure, sides[name])))
    return results


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No garbage collection in the middle."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def get_nanoseconds(get: Callable[[Any], Any], keys: Sequence[Any]) -> float:
    """What one `get(key)` costs, the loop included."""
    with quiet():
        began = time.perf_counter_ns()
        for key in keys:
            get(key)
        return (time.perf_counter_ns() - began) / len(keys)


def set_nanoseconds(store: Callable[[Any, Any], Any], pairs: Sequence[tuple[Any, Any]]) -> float:
    """What one `store(key, value)` costs, the loop included."""
    with quiet():
        began = time.perf_counter_ns()
        for key, value in pairs:
            store(key, value)
        return (time.perf_counter_ns() - began) / len(pairs)


def wait_for(condition: Callable[[], bool], seconds: float, step: float = 0.05) -> bool:
    """Poll until `condition` holds; False when the time is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(step)
    return condition()
