"""The demo's own parts: what it takes, under which keys, and that it notices wrong bytes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from pymemcache.exceptions import MemcacheServerError
from rich.console import Console
from rich.progress import Progress

import siltstone
from siltstone.demo import files as demo
from siltstone.demo import machine
from siltstone.demo.files import (
    Bar,
    Item,
    Outcome,
    Part,
    Phase,
    digest,
    key_of,
    parts_of,
    read_part,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.py").write_bytes(b"alpha")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "large").write_bytes(bytes(range(256)) * 10_000)
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "foreign.py").write_bytes(b"not ours")
    return tmp_path


class FakeClient:
    """Just enough of pymemcache's client."""

    def __init__(self) -> None:
        self.items: dict[str, bytes] = {}

    def set(self, key: str, value: bytes, noreply: bool) -> bool:
        self.items[key] = value
        return True

    def get(self, key: str) -> bytes | None:
        return self.items.get(key)

    def stats(self) -> dict[bytes, Any]:
        return {b"get_hits": 5, b"bytes": b"17", b"version": b"x"}


def bar(total: int = 10) -> Bar:
    return Bar(Progress(console=Console(quiet=True)), "test", total)


def test_every_file_in_parts_but_no_other_pythons_packages(folder: Path) -> None:
    parts = parts_of([folder])
    assert [(Path(part.path).name, part.size) for part in parts] == [
        ("a.py", 5), ("empty", 0), ("large", 1_000_000), ("large", 1_000_000), ("large", 560_000),
    ]  # fmt: skip
    assert b"".join(map(read_part, parts[2:])) == (folder / "sub" / "large").read_bytes()
    nested = parts_of([folder, folder / "site-packages"])
    assert "foreign.py" in {Path(part.path).name for part in nested}
    assert len(nested) == len(parts) + 1


def test_the_running_pythons_library_is_found() -> None:
    folders = demo.library_folders()
    assert Path(pytest.__file__).parent.parent.resolve() in folders
    assert any((folder / "argparse.py").exists() for folder in folders)


@pytest.mark.parametrize("path", ["/a b", "/ä", "/" + "x" * 300, "/tab\t"])
def test_keys_that_memcached_does_not_take_become_digests(path: str) -> None:
    key = key_of(3, Part(path, 0, 1))
    assert key.startswith("3:sha256:")
    assert len(key) <= 250
    assert key != key_of(4, Part(path, 0, 1))


def test_plain_keys_are_paths() -> None:
    assert key_of(0, Part("/lib/os.py", 0, 1)) == "0:/lib/os.py"
    assert key_of(1, Part("/lib/os.py", 1_000_000, 1)) == "1:/lib/os.py#1000000"


def test_rounds_go_on_until_enough_is_stored(folder: Path) -> None:
    client, parts = FakeClient(), parts_of([folder])
    items, phase = demo.store(client, parts, 6_000_000, bar())
    assert sum(map(len, client.items.values())) >= 5_990_000
    assert {item.key.split(":")[0] for item in items} == {"0", "1", "2"}
    assert len({item.key for item in items}) == len(items) == len(phase.durations_ns)
    assert phase.misses == 0
    only_once, _ = demo.store(client, parts, 1, bar())
    assert len(only_once) == len(parts)


def test_a_refused_set_counts_as_a_miss(folder: Path) -> None:
    class Full(FakeClient):
        def set(self, key: str, value: bytes, noreply: bool) -> bool:
            if len(value) == 1_000_000:
                raise MemcacheServerError(b"out of memory storing object")
            return super().set(key, value, noreply)

    items, phase = demo.store(Full(), parts_of([folder]), 1, bar())
    assert (len(items), phase.misses) == (3, 2)


def test_wrong_and_missing_values_are_noticed(folder: Path) -> None:
    client = FakeClient()
    items, _ = demo.store(client, parts_of([folder]), 1, bar())
    fine = demo.read_all("read", client, items, bar())
    assert (fine.misses, fine.wrong) == (0, 0)
    large = next(item for item in items if "large" in item.key)
    client.items[large.key] = client.items[large.key][:-1] + b"!"
    del client.items[items[0].key]
    bad = demo.read_all("read", client, items, bar())
    assert (bad.misses, bad.wrong) == (1, 1)


def test_a_file_that_changed_meanwhile_is_judged_by_what_was_stored(folder: Path) -> None:
    part = parts_of([folder])[0]
    item = Item("k", part, digest(b"alpha"))
    Path(part.path).write_bytes(b"ALPHA")
    client = FakeClient()
    client.items = {"k": b"alpha"}
    assert demo.read_all("read", client, [item], bar()).wrong == 0
    client.items = {"k": b"other"}
    assert demo.read_all("read", client, [item], bar()).wrong == 1


def test_the_table_has_every_row() -> None:
    phases = [Phase(name, [1000, 2000, 3000], 1.0) for name in ("store", "read", "again")]
    phases[2].misses = 3
    statistics = {"extstore_bytes_written": 100, "device_bytes_written": 150}
    outcome = Outcome([], phases, statistics, {"VmHWM": 50 << 20}, 32 << 20, 1.5)
    console = Console(width=100, file=io.StringIO())
    console.print(demo.table(outcome))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for word in (
        "items", "user bytes", "bytes in RAM", "bytes on flash", "from RAM", "from flash", "misses",
        "wrong values", "sets a second", "gets a second", "p50 / p99", "resident memory",
        "memory limit", "write amplification", "1.50",
    ):  # fmt: skip
        assert word in text
    assert outcome.misses == 3


def test_percentiles() -> None:
    phase = Phase("x", [n * 1000 for n in range(1, 101)], 2.0)
    assert (phase.percentile_us(0.5), phase.percentile_us(0.99)) == (51, 100)
    assert phase.per_second == 50
    assert Phase("empty").percentile_us(0.5) == 0


# The machine's own numbers ------------------------------------------------------------------


def test_what_was_recorded_comes_back(tmp_path: Path) -> None:
    recorder = machine.Recorder(tmp_path / "m")
    with recorder:
        pass  # even so there is enough for a rate
    recorded = recorder.read_back()
    assert recorded.rounds >= machine.ROUNDS_MIN
    assert recorded.written >= recorded.series * 3 > 50
    assert recorded.lost == 0
    assert recorded.size > 0
    assert {"mode": "user"} in recorded.cores.labels


def test_a_sample_that_is_missing_is_counted(tmp_path: Path) -> None:
    recorder = machine.Recorder(tmp_path / "m")
    with recorder:
        pass
    with siltstone.Metrics(tmp_path / "m") as metrics:
        assert metrics.delete("node_load1", None, None)
    assert recorder.read_back().lost == recorder.read_back().rounds
