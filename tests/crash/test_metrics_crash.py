"""Metrics and power cuts at every write, failures of every call, and kills of a writing child."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
from fakes import Fault, FaultDevice, SeededRandom
from metricsrig import T0, Model, contents, crash_device, opened, settings

from siltstone.errors import SiltstoneError
from siltstone.metrics.metrics import Metrics

pytestmark = pytest.mark.crash


def work(metrics: Metrics, model: Model, rounds: range, after=lambda: None) -> None:
    """Two series that rise, one that comes late at times; checkpoints, merges, a deletion."""
    for number in rounds:
        start = T0 + number * 400
        times = start + np.arange(400)
        for name in ("a", "b"):
            values = np.round(np.cos(times / 7) * 50, 1) if name == "a" else times % 97 * 1.0
            metrics.series("m", n=name).extend(times, values)
            for time, value in zip(times.tolist(), values.tolist(), strict=True):
                model.add(name, time * 1000, value)
        metrics.series("m", n="a").append(start + 350, -1.0)
        model.add("a", (start + 350) * 1000, -1.0)
        if number % 3 == 1:
            metrics.delete('m{n="b"}', start + 10, start + 20)
            model.delete("b", (start + 10) * 1000, (start + 20) * 1000)
        if number % 4 == 2:
            metrics.checkpoint()
        if number % 5 == 3:
            metrics.compact()
        metrics.sync()
        after()


def is_between(found, before, later) -> None:
    """Everything that was synced is there, and nothing that never was given."""
    for name, samples in before.items():
        missing = set(samples) - set(found.get(name, {}))
        deleted = missing - set(later[name])
        assert missing == deleted, (name, sorted(missing)[:5])
    for name, samples in found.items():
        for time, value in samples.items():
            right = (later[name].get(time), before.get(name, {}).get(time), ABOUT.get((name, time)))
            assert value in right, (name, time)


ABOUT: dict[tuple[str, int], int] = {}


def copies(model: Model) -> dict[str, dict[int, int]]:
    return {name: dict(samples) for name, samples in model.samples.items()}


def test_power_cuts_at_every_write(seed):
    device = crash_device(20)
    metrics, model = opened(device, tiers=("10s",)), Model()
    moments = [(len(device.events), {})]
    ABOUT.clear()

    def after() -> None:
        moments.append((len(device.events), copies(model)))
        for name, samples in model.samples.items():
            for time, value in samples.items():
                ABOUT.setdefault((name, time), value)

    for number in range(6):
        start = T0 + number * 400
        for second in range(400):  # what a late sample replaces may be what is left
            time = start + second
            ABOUT[("a", time * 1000)] = int(
                np.array([np.round(np.cos(time / 7) * 50, 1)]).view(np.uint64)[0]
            )
    work(metrics, model, range(6), after)
    rng = random.Random(seed)
    final = copies(model)
    for name, time in ABOUT:
        final.setdefault(name, {}).setdefault(time, ABOUT[(name, time)])
    for number, ((first, before), (last, later)) in enumerate(
        zip(moments, [*moments[1:], (len(device.events), final)], strict=True)
    ):
        for moment in range(first, last, max(1, (last - first) // 7)):
            for image in device.images(moment, rng, mixed=3):
                again = opened(device.reopened(image), seed=moment, tiers=("10s",))
                assert again.engine.problems == [], (number, moment)
                is_between(contents(again), before, final | dict(later.items()))


@pytest.mark.parametrize("call", ["read", "write", "sync"])
def test_every_call_fails_once(call, seed):
    """The error is said or survived; what was synced is there after the next opening."""
    calls = FaultDevice(crash_device(20))
    work(opened(calls, tiers=("10s",)), Model(), range(4))
    for nth in range(1, calls.calls[call] + 1, 1 if call == "sync" else 3):
        inner = crash_device(20)
        device, model = FaultDevice(inner), Model()
        try:
            metrics = opened(device, tiers=("10s",))
        except SiltstoneError:
            continue
        device.faults.clear()
        device.calls[call] = 0
        device.faults.append(Fault(call, nth, errno.EIO))
        safe: dict[str, dict[int, int]] = {}
        try:
            for number in range(4):
                work(metrics, model, range(number, number + 1))
                safe = copies(model)
        except SiltstoneError:
            pass
        again = opened(inner.reopened(inner.content), tiers=("10s",))
        found = contents(again)
        for name, samples in safe.items():
            missing = set(samples) - set(found.get(name, {}))
            assert not missing - deletable(name), (nth, name, len(missing))
            for time in set(samples) & set(found[name]):
                assert found[name][time] == samples[time] or samples[time] is None


def deletable(name: str) -> set[int]:
    """What a round that failed may have deleted already."""
    if name != "b":
        return set()
    return {(T0 + number * 400 + second) * 1000 for number in range(4) for second in range(10, 21)}


def test_a_full_disk_loses_nothing_and_is_got_over():
    inner = crash_device(20)
    device, model = FaultDevice(inner), Model()
    metrics = opened(device, tiers=("10s",))
    work(metrics, model, range(2))
    real, broken = device.inner.write, [True]

    def write(slot, offset, data):
        if broken[0] and bytes(data[:4]) == b"xtnt":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(slot, offset, data)

    device.inner.write = write  # type: ignore[method-assign]
    times = T0 + 10_000 + np.arange(600)
    metrics.series("m", n="a").extend(times, times * 1.0)
    for time in times.tolist():
        model.add("a", time * 1000, time * 1.0)
    with pytest.raises(OSError, match="space"):
        metrics.engine.write_pending()
    assert metrics.stats()["write_errors"] == 1
    assert contents(metrics) == copies(model)
    metrics.sync()
    assert contents(opened(inner.reopened(inner.content), tiers=("10s",))) == copies(model)
    broken[0] = False
    metrics.engine.write_pending()
    metrics.checkpoint()
    assert contents(metrics) == copies(model)
    assert metrics.verify().problems == []
    metrics.close()


CHILD = """
import sys
import numpy as np
from siltstone.metrics.metrics import Metrics
metrics = Metrics(sys.argv[1], retention_size="3MiB", segment_size="64KiB", tiers=("10s",),
                  flush_interval=0.05)
series = [metrics.series("m", n=str(n)) for n in range(3)]
found = metrics.select("m")
# the kill may have come between the three: from where the last of them stands
number = min(int(one.times[-1]) for one in found) // 1000 + 1 if found else 1_700_000_000
print("open", number, flush=True)
while True:
    for n, one in enumerate(series):
        one.extend(number + np.arange(50), (number + np.arange(50)) % 1000 * (n + 1.0))
    number += 50
    metrics.flush()
    print("flushed", number, flush=True)
"""


def test_kill_nine_of_a_writing_child(tmp_path, rng):
    flushed = 0
    for _ in range(6):
        with subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path / "data")], stdout=subprocess.PIPE, text=True
        ) as child:
            word, number = child.stdout.readline().split()
            assert word == "open"
            assert int(number) >= flushed
            for _ in range(rng.randint(1, 400)):
                flushed = int(child.stdout.readline().split()[1])
            os.kill(child.pid, signal.SIGKILL)
            for line in child.stdout:
                if line.startswith("flushed") and line.endswith("\n"):
                    flushed = int(line.split()[1])
    metrics = Metrics(tmp_path / "data", background=False, tiers=("10s",))
    assert metrics.verify().problems == []
    found = metrics.select("m")
    assert len(found) == 3
    for n, series in enumerate(found):
        seconds = series.times // 1000
        assert seconds[-1] >= flushed - 1
        assert (np.diff(seconds) == 1).all()
        assert (series.values == seconds % 1000 * (n + 1.0)).all()
    assert metrics.size_on_disk <= 3 << 20
    metrics.close()


def test_random_damage_gives_gaps_and_reports_and_never_wrong_values(seed):
    device, model = crash_device(20), Model()
    metrics = opened(device, tiers=("10s",))
    work(metrics, model, range(6))
    metrics.close()
    right = copies(model)
    for number in range(40):
        rng = random.Random(f"{seed} {number}")
        image = bytearray(device.content)
        for _ in range(3):
            at = rng.randrange(8192, len(image))
            image[at] ^= 1 << rng.randrange(8)
        try:
            again = opened(device.reopened(image), seed=number, tiers=("10s",))
            found = contents(again)
        except SiltstoneError:
            continue
        for name, samples in found.items():
            for time, value in samples.items():
                assert right[name].get(time) == value
        if {n: len(s) for n, s in found.items()} != {n: len(s) for n, s in right.items()}:
            assert again.verify().problems


def test_settings_of_the_rig_are_the_device_s():
    assert settings(20).slots == 20
    assert SeededRandom(1).bytes(4) == SeededRandom(1).bytes(4)


def test_a_checkpoint_while_sealed_chunks_are_written_loses_nothing(monkeypatch):
    """Making room for them may take one, which writes them, too: they must not be written, and
    counted as taken from the journal, once more behind it."""
    device, model = crash_device(), Model()
    metrics = opened(device)
    series = metrics.series("m", n="0")

    def append(first, count):
        for n in range(first, first + count):
            assert series.append(T0 + n, n * 0.5)
            model.add("0", (T0 + n) * 1000, n * 0.5)

    append(0, 700)
    retention = metrics.engine.retention
    real = retention.make_room

    def with_a_checkpoint(wanted):
        monkeypatch.setattr(retention, "make_room", real)
        metrics.engine.checkpoint()

    monkeypatch.setattr(retention, "make_room", with_a_checkpoint)
    checkpoints = metrics.engine.counters["checkpoints"]
    metrics.engine.write_pending()
    assert metrics.engine.counters["checkpoints"] == checkpoints + 1
    append(700, 100)
    metrics.sync()
    again = opened(device.reopened(device.durable_at(len(device.events))[0]))
    assert contents(again) == model.within(-(1 << 62), 1 << 62)
    again.close()
    metrics.close()
