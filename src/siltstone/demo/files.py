"""The demo's main job: a cache far larger than its memory, on real input, shown and checked.

A server with 32 MiB of memory and 1 GiB of flash takes every file of this Python's standard
library and site-packages, repeated until ten times its memory is stored; all of it is read back
in random order and every byte compared; the server is stopped and started again, and all of it is
read back once more.

Owns the server process and a temporary directory; removes both. One thread.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, perf_counter_ns, sleep
from typing import Any, Final, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from siltstone.config import parse_size
from siltstone.segment_map import human_size

PART_BYTES_MAX: Final = 1_000_000  # below memcached's default limit of 1 MiB for an item
KEY_BYTES_MAX: Final = 250
FLASH_SHARE_MAX: Final = 0.8  # what the files may fill: compaction needs room
START_S: Final = 30.0
STOP_S: Final = 60.0
SEED: Final = 1


class Part(NamedTuple):
    """A file, or a piece of one."""

    path: str
    offset: int
    size: int


class Item(NamedTuple):
    """A stored part: its key, and a digest of what was stored."""

    key: str
    part: Part
    digest: bytes


@dataclass(slots=True)
class Phase:
    """One pass over the items, measured."""

    name: str
    durations_ns: list[int] = field(default_factory=list)
    seconds: float = 0.0
    misses: int = 0
    wrong: int = 0
    statistics: dict[str, int] = field(default_factory=dict)

    def percentile_us(self, share: float) -> float:
        ordered = sorted(self.durations_ns)
        return ordered[min(int(len(ordered) * share), len(ordered) - 1)] / 1000 if ordered else 0.0

    @property
    def per_second(self) -> float:
        return len(self.durations_ns) / self.seconds if self.seconds else 0.0


# The input ----------------------------------------------------------------------------------


def library_folders() -> list[Path]:
    """The running Python's standard library and site-packages, each once."""
    paths = sysconfig.get_paths()
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    return list(dict.fromkeys(Path(paths[name]).resolve() for name in names if name in paths))


def parts_of(folders: Sequence[Path]) -> list[Part]:
    """Every readable file, larger ones in parts. Another Python's packages are not ours."""
    seen: set[str] = set()
    parts: list[Part] = []
    for folder in folders:
        for place, names, files in os.walk(folder):
            names[:] = sorted(
                name
                for name in names
                if name not in ("site-packages", "dist-packages")
                or Path(place, name).resolve() in folders
            )
            for name in sorted(files):
                path = os.path.join(place, name)
                if path not in seen and os.path.isfile(path) and os.access(path, os.R_OK):
                    seen.add(path)
                    parts.extend(_cut(path, os.path.getsize(path)))
    return parts


def _cut(path: str, size: int) -> Iterator[Part]:
    for offset in range(0, max(size, 1), PART_BYTES_MAX):
        yield Part(path, offset, min(PART_BYTES_MAX, size - offset))


def read_part(part: Part) -> bytes:
    with open(part.path, "rb") as file:
        file.seek(part.offset)
        return file.read(part.size)


def key_of(turn: int, part: Part) -> str:
    """The path where memcached's keys allow it (250 bytes, no spaces), else its digest."""
    key = f"{turn}:{part.path}" + (f"#{part.offset}" if part.offset else "")
    if len(key) <= KEY_BYTES_MAX and key.isascii() and key.isprintable() and " " not in key:
        return key
    return f"{turn}:sha256:{hashlib.sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()}"


def digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


# The server ---------------------------------------------------------------------------------


class Server:
    """`siltstone serve` as its own process."""

    def __init__(self, directory: Path, ram: str, flash: str) -> None:
        self.port = _free_port()
        self._log = directory / "server.log"
        command = [
            sys.executable,
            "-m",
            "siltstone.cli",
            "serve",
            "--data",
            str(directory / "data"),
        ]
        command += ["--memcached", f"127.0.0.1:{self.port}", "--ram", ram, "--flash", flash]
        command += ["--http", "off"]  # its memory is not the cache's
        with open(self._log, "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        self._wait_until_it_answers()

    def _wait_until_it_answers(self) -> None:
        until = perf_counter() + START_S
        while perf_counter() < until:
            if self.process.poll() is not None:
                break
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                sleep(0.02)
            else:
                return
        self.kill()
        raise SystemExit(f"the server did not start:\n{self.said()}")

    def said(self) -> str:
        with open(self._log, errors="replace") as log:
            return log.read()[-2000:]

    def memory_bytes(self) -> dict[str, int]:
        """Resident memory now and at most, of the server's process."""
        found = {}
        with open(f"/proc/{self.process.pid}/status") as status:
            for line in status:
                name, _, rest = line.partition(":")
                if name in ("VmRSS", "VmHWM"):
                    found[name] = int(rest.split()[0]) * 1024
        return found

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise SystemExit(f"the server did not stop within {STOP_S:.0f} s") from None
        if code != 0:
            raise SystemExit(f"the server stopped with exit code {code}:\n{self.said()}")

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _client(port: int) -> Any:
    try:
        from pymemcache.client.base import Client
    except ImportError:
        raise SystemExit("the demo needs pymemcache: pip install 'siltstone[test]'") from None
    return Client(("127.0.0.1", port), no_delay=True, timeout=30, connect_timeout=5)


def _statistics(client: Any) -> dict[str, int]:
    return {
        name.decode(): int(value)
        for name, value in client.stats().items()
        if isinstance(value, int) or (isinstance(value, bytes) and value.isdigit())
    }


# The passes ---------------------------------------------------------------------------------


def store(client: Any, parts: Sequence[Part], wanted: int, bar: Bar) -> tuple[list[Item], Phase]:
    """Store all parts, again under other prefixes, until `wanted` bytes are in."""
    phase = Phase("store")
    items: list[Item] = []
    stored = turn = 0
    while not items or stored < wanted:
        for part in parts:
            if turn and stored >= wanted:  # the first turn takes every file
                break
            data = read_part(part)
            key = key_of(turn, part)
            started = perf_counter_ns()
            accepted = _set(client, key, data)
            phase.durations_ns.append(perf_counter_ns() - started)
            stored += len(key) + len(data)
            if accepted:
                items.append(Item(key, part, digest(data)))
            else:
                phase.misses += 1  # refused: it can only be missed
            bar.to(stored)
        turn += 1
    phase.seconds = sum(phase.durations_ns) / 1e9
    phase.statistics = _statistics(client)
    return items, phase


def _set(client: Any, key: str, data: bytes) -> bool:
    try:
        return client.set(key, data, noreply=False) is True
    except Exception as error:
        # the server's refusals; pymemcache closes the connection and opens another
        if type(error).__module__ != "pymemcache.exceptions":
            raise
        return False


def read_all(name: str, client: Any, items: Sequence[Item], bar: Bar) -> Phase:
    """Read all items in random order; compare every byte with the file."""
    phase = Phase(name)
    before = _statistics(client)
    order = list(items)
    random.Random(SEED).shuffle(order)
    for number, item in enumerate(order, 1):
        started = perf_counter_ns()
        value = client.get(item.key)
        phase.durations_ns.append(perf_counter_ns() - started)
        if value is None:
            phase.misses += 1
        elif not _same(value, item):
            phase.wrong += 1
        bar.to(number)
    phase.seconds = sum(phase.durations_ns) / 1e9
    after = _statistics(client)
    phase.statistics = {name: value - before.get(name, 0) for name, value in after.items()}
    return phase


def _same(value: bytes, item: Item) -> bool:
    try:
        if value == read_part(item.part):
            return True
    except OSError:
        pass
    # the file itself may have changed meanwhile (a compiled module, say): what was stored counts
    return digest(value) == item.digest


class Bar:
    """A progress bar whose updates cost next to nothing."""

    def __init__(self, progress: Progress, text: str, total: int) -> None:
        self._progress, self._every = progress, max(total // 200, 1)
        self._task = progress.add_task(text, total=total)
        self._shown = 0

    def to(self, done: int) -> None:
        if done - self._shown >= self._every:
            self._progress.update(self._task, completed=done)
            self._shown = done

    def end(self) -> None:
        task = next(task for task in self._progress.tasks if task.id == self._task)
        self._progress.update(self._task, completed=task.total)


# The table ----------------------------------------------------------------------------------


@dataclass(slots=True)
class Outcome:
    """What all passes together found."""

    items: list[Item]
    phases: list[Phase]
    totals: dict[str, int]
    memory: dict[str, int]
    ram: int
    restart_s: float

    @property
    def misses(self) -> int:
        return sum(phase.misses for phase in self.phases)

    @property
    def wrong(self) -> int:
        return sum(phase.wrong for phase in self.phases)


def table(outcome: Outcome) -> Table:
    stored, first, second = outcome.phases
    statistics = outcome.totals
    user = sum(len(item.key) + item.part.size for item in outcome.items)
    shown = Table(title="Cache: every byte compared", show_header=False)
    shown.add_column("what")
    shown.add_column("value", justify="right")

    def row(name: str, value: str) -> None:
        shown.add_row(name, value)

    row("items", f"{len(outcome.items):,}")
    row("user bytes (keys and values)", human_size(user))
    row("  against the memory limit", f"{user / outcome.ram:.1f} x")
    row("bytes in RAM", human_size(statistics.get("bytes_ram", 0)))
    row("bytes on flash", human_size(statistics.get("extstore_bytes_used", 0)))
    for phase, text in ((first, "before"), (second, "after")):
        flash = phase.statistics.get("get_extstore", 0)
        hits = phase.statistics.get("get_hits", 0)
        row(f"hits {text} the restart, from RAM", f"{hits - flash:,}")
        row(f"hits {text} the restart, from flash", f"{flash:,}")
    row("misses", f"{outcome.misses:,}")
    row("wrong values", f"{outcome.wrong:,}")
    row("sets a second", f"{stored.per_second:,.0f}")
    row("  p50 / p99", f"{stored.percentile_us(0.5):.0f} / {stored.percentile_us(0.99):.0f} us")
    for phase, text in ((first, "before"), (second, "after")):
        row(f"gets a second {text} the restart", f"{phase.per_second:,.0f}")
        row("  p50 / p99", f"{phase.percentile_us(0.5):.0f} / {phase.percentile_us(0.99):.0f} us")
    row("stop and start", f"{outcome.restart_s:.2f} s")
    row("resident memory, highest", human_size(outcome.memory.get("VmHWM", 0)))
    row("  memory limit", human_size(outcome.ram))
    row("write amplification", _write_amplification(statistics))
    return shown


def _write_amplification(statistics: dict[str, int]) -> str:
    logical = statistics.get("extstore_bytes_written", 0)
    device = statistics.get("device_bytes_written", 0)
    return f"{device / logical:.2f}" if logical and device else "-"


@dataclass(frozen=True, slots=True)
class Job:
    """What is stored, and in what."""

    ram: str = "32MiB"
    flash: str = "1GiB"
    times: int = 10  # store so many times the memory
    folders: Sequence[Path] = ()  # other input than Python's own


def run(job: Job, console: Console) -> Outcome:
    ram, flash = parse_size(job.ram), parse_size(job.flash)
    parts = parts_of(job.folders or library_folders())
    kept: list[Part] = []
    room = int(flash * FLASH_SHARE_MAX)
    for part in parts:
        room -= part.size + KEY_BYTES_MAX
        if room < 0:
            console.print(f"the files are more than flash holds: the first {len(kept):,} are used")
            break
        kept.append(part)
    wanted = max(job.times * ram, sum(part.size for part in kept))
    with tempfile.TemporaryDirectory(prefix="siltstone-demo-") as name:
        server = Server(Path(name), job.ram, job.flash)
        try:
            return _passes(server, Path(name), job, kept, wanted)
        finally:
            server.kill()


def _passes(server: Server, directory: Path, job: Job, parts: list[Part], wanted: int) -> Outcome:
    columns = (
        TextColumn("{task.description:24}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
    )
    with Progress(*columns, TimeElapsedColumn()) as progress:
        client = _client(server.port)
        bar = Bar(progress, "store", wanted)
        items, stored = store(client, parts, wanted, bar)
        bar.end()
        bar = Bar(progress, "read, compare", len(items))
        first = read_all("read", client, items, bar)
        bar.end()
        memory, totals = server.memory_bytes(), _statistics(client)
        client.close()
        started = perf_counter()
        server.stop()
        again = Server(directory, job.ram, job.flash)
        restart_s = perf_counter() - started
        try:
            client = _client(again.port)
            bar = Bar(progress, "restarted: read, compare", len(items))
            second = read_all("read again", client, items, bar)
            bar.end()
            client.close()
            memory["VmHWM"] = max(memory["VmHWM"], again.memory_bytes()["VmHWM"])
            again.stop()
        finally:
            again.kill()
    phases = [stored, first, second]
    return Outcome(items, phases, totals, memory, parse_size(job.ram), restart_s)
