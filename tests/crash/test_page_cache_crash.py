"""Power cuts and failures at every call: a page cache comes back with what was promised, whole."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Sequence

import pytest
from fakes import CrashDevice, Fault, FaultDevice

from siltstone.errors import KeyMissing, SiltstoneError
from siltstone.log.device import Device
from siltstone.store.pages import PageCache, PagePtr

SEGMENT = 16384
BUFFER = 4096
State = dict[int, bytes]


class Joined:
    def merge(self, fragments: Sequence[bytes]) -> bytes:
        return b"".join(fragments)


def pages_on(device: Device, **settings: object) -> PageCache:
    settings = {"cache": 16384, "workers": 0, "id_interval": 2, "pages_min": 4, **settings}
    return PageCache(
        None,
        Joined(),
        device=device,
        background=False,
        segment_size=SEGMENT,
        buffer_size=BUFFER,
        durability="none",
        **settings,
    )


class History:
    """Random changes, and what the pages said after each commit."""

    def __init__(self, pages: PageCache, seed: int) -> None:
        self.pages = pages
        self.rng = random.Random(seed)
        self.now: dict[int, tuple[bytes, PagePtr]] = {}
        self.states: list[State] = [{}]
        self.synced = 0  # states up to this one are durable
        self.ids: list[int] = []

    def state(self) -> State:
        return {pid: said for pid, (said, _) in self.now.items()}

    def data(self) -> bytes:
        size = self.rng.choice([0, 5, 30, 200, 200, 5000])
        return self.rng.randbytes(4)[: min(4, size)] * (size // 4)

    def step(self) -> None:
        kind = self.rng.choice("aallllrrfbbsdci")
        if kind == "s":
            self.pages.sync()
            self.synced = len(self.states) - 1
        elif kind == "d":
            self.pages.checkpoint()
            self.synced = len(self.states) - 1
        elif kind == "c":
            self.pages.collect_garbage()
            self.synced = len(self.states) - 1
        elif kind == "i":
            self.ids.append(self.pages.generate_id())
        elif kind == "b":
            after = dict(self.now)
            with self.pages.batch():
                for _ in range(self.rng.randrange(1, 6)):
                    self.change(after, self.rng.choice("allrf"))
            self.now = after
            self.commit()
        else:
            self.change(self.now, kind)
            self.commit()

    def commit(self) -> None:
        self.states.append(self.state())

    def next_is(self, state: State) -> bool:
        """Whether a step that failed could have led there: a commit of one page or one batch."""
        last = self.states[-1]
        changed = [pid for pid in {*last, *state} if last.get(pid) != state.get(pid)]
        return 0 < len(changed) <= 5

    def change(self, now: dict[int, tuple[bytes, PagePtr]], kind: str) -> None:
        data = self.data()
        if kind == "a" or not now:
            pid, ptr = self.pages.allocate(data)
            now[pid] = (data, ptr)
            return
        pid = self.rng.choice(sorted(now))
        said, ptr = now[pid]
        if kind == "l":
            now[pid] = (said + data, self.pages.link(pid, ptr, data))
        elif kind == "r":
            now[pid] = (data, self.pages.replace(pid, ptr, data))
        else:
            self.pages.free(pid, ptr)
            del now[pid]


def found(pages: PageCache) -> State:
    """All pages there are."""
    state = {}
    for pid in range(2, 300):
        try:
            state[pid] = pages.get(pid)[0]
        except KeyMissing:
            continue
    return state


def check(device: Device, states: list[State], synced: int, ids: list[int]) -> None:
    with pages_on(device) as pages:
        assert pages._pages.recovery.problems == []
        state = found(pages)
        assert state in states[synced:], "neither durable nor a prefix of the commits"
        pages._pages.check_invariants()
        assert pages.generate_id() not in ids
        # and it goes on
        pid, ptr = pages.allocate(b"after")
        pages.link(pid, ptr, b" the crash")
        assert pages.verify().ok


@pytest.mark.parametrize("seed", range(2))
def test_power_cut_at_every_boundary(seed: int) -> None:
    device = CrashDevice(96, SEGMENT)
    history = History(pages_on(device), seed)
    moments: list[tuple[int, int, int, int]] = []
    device.observer = lambda: moments.append(
        (len(device.events), len(history.states), history.synced, len(history.ids))
    )
    for _ in range(100):
        history.step()
    device.observer = None
    rng = random.Random(seed)
    # What is given out at a moment may be one state further than what had been noted then.
    for event, count, synced, ids in rng.sample(moments, min(25, len(moments))):
        for image in device.images(event, rng, mixed=2):
            check(device.reopened(image), history.states[: count + 1], synced, history.ids[:ids])


@pytest.mark.parametrize("seed", range(3))
def test_crash_while_recovering_and_again(seed: int) -> None:
    """Each recovery's own writes are cut as well; nothing durable goes."""
    device = CrashDevice(96, SEGMENT)
    history = History(pages_on(device), 100 + seed)
    for _ in range(60):
        history.step()
    history.pages.sync()
    wanted = history.state()
    rng = random.Random(seed)
    for _ in range(12):
        device = device.reopened(device.content)
        pages = pages_on(device)
        assert found(pages) == wanted
        pages.checkpoint()
        image = rng.choice(list(device.images(rng.randrange(len(device.events) + 1), rng)))
        device = device.reopened(image)
    check(device, [wanted], 0, [])


def calls_of(run: Callable[[PageCache], None]) -> dict[str, int]:
    device = FaultDevice(CrashDevice(96, SEGMENT))
    pages = pages_on(device)
    run(pages)
    pages.close()
    return dict(device.calls)


def scenario(pages: PageCache) -> None:
    history = History(pages, 7)
    for _ in range(50):
        history.step()


@pytest.mark.parametrize(
    ("call", "error", "keep"),
    [
        ("write", errno.EIO, None),
        ("write", errno.ENOSPC, 512),
        ("sync", errno.EIO, None),
        ("read", errno.EIO, None),
    ],
)
def test_every_call_fails_once(call: str, error: int, keep: int | None) -> None:
    """A clear error; what was durable before stays; nothing is called durable afterwards."""
    total = calls_of(scenario)[call]
    assert total
    for nth in range(1, total + 1, max(1, total // 12)):
        inner = CrashDevice(96, SEGMENT)
        device = FaultDevice(inner)
        pages = pages_on(device)
        device.calls = dict.fromkeys(device.calls, 0)
        device.faults.append(Fault(call, nth, error, keep=keep))
        history = History(pages, 7)
        failed = False
        try:
            for _ in range(50):
                history.step()
        except (SiltstoneError, OSError):
            failed = True
        if pages._pages.log.stats()["failed"]:  # a superblock that is not written fails less
            with pytest.raises((SiltstoneError, OSError)):
                pages.sync()
        try:
            pages.close()
        except (SiltstoneError, OSError):
            failed = True
        with pages_on(inner.reopened(inner.content)) as again:
            state = found(again)
            # The step that failed may be there as a whole: its mark may have reached the device.
            expected = history.states[history.synced :]
            assert state in expected or (failed and history.next_is(state))


@pytest.mark.parametrize("call", ["write", "sync"])
def test_no_id_is_beyond_the_durable_marker(call: str) -> None:
    """Whichever call fails: what is on the medium for sure knows all ids that were given out."""
    failed = 0
    for nth in range(1, 30):
        inner = CrashDevice(96, SEGMENT)
        device = FaultDevice(inner)
        pages = pages_on(device)
        device.calls = dict.fromkeys(device.calls, 0)
        device.faults.append(Fault(call, nth, errno.EIO))
        ids: list[int] = []
        for _ in range(40):
            try:
                ids.append(pages.generate_id())
            except SiltstoneError:
                failed += 1
        assert ids == sorted(set(ids))
        durable, _ = inner.durable_at(len(inner.events))
        with pages_on(inner.reopened(durable)) as again:
            assert again.generate_id() > max(ids, default=0)
    assert failed


def test_a_failed_sync_is_never_forgotten() -> None:
    device = FaultDevice(CrashDevice(96, SEGMENT))
    pages = pages_on(device)
    pid, ptr = pages.allocate(b"a")
    device.add("sync", errno.EIO)
    for _ in range(3):
        with pytest.raises(SiltstoneError):
            pages.sync()
    with pytest.raises(SiltstoneError):
        pages.link(pid, ptr, b"b")
    assert pages.get(pid)[0] == b"a"  # reads go on
    pages.close()


def filled(pages: PageCache) -> list[tuple[int, PagePtr]]:
    """Pages until there is no room for more."""
    kept: list[tuple[int, PagePtr]] = []
    said = ""
    try:
        while len(kept) < 200:
            kept.append(pages.allocate(b"x" * 3000))
    except SiltstoneError as error:
        said = str(error)
    assert "no segment is free" in said
    assert 50 < len(kept) < 200
    return kept


def test_a_full_device_says_so_and_goes_on_when_there_is_room() -> None:
    device = CrashDevice(24, SEGMENT)
    pages = pages_on(device)
    kept = filled(pages)
    assert pages.get(kept[-1][0])[0] == b"x" * 3000
    for pid, ptr in kept[:-10]:
        pages.free(pid, ptr)
    pages.collect_garbage()
    pages.allocate(b"there is room again")
    pages.close()
    with pages_on(device) as again:
        assert len(found(again)) == 11


def test_closing_a_full_device_loses_nothing() -> None:
    device = CrashDevice(24, SEGMENT)
    pages = pages_on(device)
    kept = filled(pages)
    pages.close()
    with pages_on(device) as again:
        assert len(found(again)) == len(kept)


@pytest.mark.parametrize("seed", range(3))
def test_flipped_bits_are_found_and_other_pages_stay(seed: int) -> None:
    rng = random.Random(seed)
    device = CrashDevice(96, SEGMENT)
    pages = pages_on(device)
    said = {}
    for number in range(40):
        data = bytes([number]) * 700
        said[pages.allocate(data)[0]] = data
    pages.close()
    for _ in range(12):
        image = bytearray(device.content)
        used = 8192 + device.slots_present() * SEGMENT
        at = rng.randrange(8192, used)
        image[at] ^= 1 << rng.randrange(8)
        try:
            again = pages_on(device.reopened(image))
        except SiltstoneError:
            continue  # a typed refusal
        good = 0
        for pid, data in said.items():
            try:
                assert again.get(pid)[0] == data
                good += 1
            except SiltstoneError:
                assert not again.verify().ok
        assert good >= len(said) - 8
        again._pages.log.close()
