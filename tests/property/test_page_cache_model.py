"""The page cache against a dict, with tiny segments, a tiny cache, and restarts as rules."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from fakes import CrashDevice
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from siltstone.errors import KeyMissing, Outdated
from siltstone.store.pages import PageCache, PagePtr

SEGMENT = 16384
BUFFER = 4096
SEGMENTS = 160


class Joined:
    """Fragments are bytes; a page says all of them in a row."""

    def merge(self, fragments: Sequence[bytes]) -> bytes:
        return b"".join(fragments)


def pages_on(device: CrashDevice, **settings: object) -> PageCache:
    settings = {"cache": 16384, "workers": 0, "id_interval": 3, "pages_min": 4, **settings}
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


FRAGMENTS = st.one_of(
    st.binary(max_size=40), st.integers(0, 9000).map(lambda n: bytes([n % 251]) * n)
)
NUMBERS = st.integers(0, 10**9)


class PageCacheModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.device = CrashDevice(SEGMENTS, SEGMENT)
        self.pages = pages_on(self.device)
        self.model: dict[int, tuple[bytes, PagePtr]] = {}
        self.stale: list[PagePtr] = []
        self.roots: dict[str, int] = {}
        self.ids: set[int] = set()

    def teardown(self) -> None:
        self.pages.close()

    def some(self, number: int) -> int:
        return sorted(self.model)[number % len(self.model)]

    @rule(data=FRAGMENTS)
    def allocate(self, data: bytes) -> None:
        pid, ptr = self.pages.allocate(data)
        assert pid not in self.model
        self.model[pid] = (data, ptr)

    @precondition(lambda self: self.model)
    @rule(number=NUMBERS, data=FRAGMENTS)
    def link(self, number: int, data: bytes) -> None:
        pid = self.some(number)
        said, ptr = self.model[pid]
        self.stale.append(ptr)
        self.model[pid] = (said + data, self.pages.link(pid, ptr, data))

    @precondition(lambda self: self.model)
    @rule(number=NUMBERS, data=FRAGMENTS)
    def replace(self, number: int, data: bytes) -> None:
        pid = self.some(number)
        self.stale.append(self.model[pid][1])
        self.model[pid] = (data, self.pages.replace(pid, self.model[pid][1], data))

    @precondition(lambda self: self.model)
    @rule(number=NUMBERS)
    def free(self, number: int) -> None:
        pid = self.some(number)
        _, ptr = self.model.pop(pid)
        self.pages.free(pid, ptr)
        with pytest.raises(KeyMissing):
            self.pages.free(pid, ptr)
        self.roots = {name: at for name, at in self.roots.items() if at != pid}
        for name in "ab":
            if self.pages.root(name) == pid:
                assert self.pages.compare_and_set_root(name, pid, None)

    @precondition(lambda self: self.stale)
    @rule(number=NUMBERS)
    def old_pointer(self, number: int) -> None:
        ptr = self.stale[number % len(self.stale)]
        if ptr.pid in self.model:
            with pytest.raises(Outdated) as caught:
                self.pages.link(ptr.pid, ptr, b"no")
            assert caught.value.actual == self.model[ptr.pid][1]

    @rule(numbers=st.lists(NUMBERS, max_size=6), data=FRAGMENTS, give_up=st.booleans())
    def batch(self, numbers: list[int], data: bytes, give_up: bool) -> None:
        after = dict(self.model)
        try:
            with self.pages.batch():
                for number in numbers:
                    self._step_in_batch(after, number, data)
                if give_up:
                    raise RuntimeError("given up")
        except RuntimeError:
            after = dict(self.model)
        self.model = after

    def _step_in_batch(
        self, after: dict[int, tuple[bytes, PagePtr]], number: int, data: bytes
    ) -> None:
        if number % 3 == 0 or not after:
            pid, ptr = self.pages.allocate(data)
            after[pid] = (data, ptr)
            return
        pid = sorted(after)[number % len(after)]
        said, ptr = after[pid]
        if number % 3 == 1 or pid in self.roots.values():
            after[pid] = (said + data, self.pages.link(pid, ptr, data))
        elif number % 2:
            after[pid] = (data, self.pages.replace(pid, ptr, data))
        else:
            del after[pid]
            self.pages.free(pid, ptr)
            return
        assert self.pages.get(pid) == after[pid]

    @precondition(lambda self: self.model)
    @rule(number=NUMBERS, name=st.sampled_from("ab"))
    def root(self, number: int, name: str) -> None:
        pid = self.some(number)
        assert not self.pages.compare_and_set_root(name, 10**6, pid)
        assert self.pages.compare_and_set_root(name, self.roots.get(name), pid)
        self.roots[name] = pid

    @rule()
    def identity(self) -> None:
        found = self.pages.generate_id()
        assert found not in self.ids
        self.ids.add(found)

    @rule()
    def checkpoint(self) -> None:
        self.pages.checkpoint()

    @rule()
    def collect_garbage(self) -> None:
        self.pages.collect_garbage()
        assert self.pages.verify().ok

    def reopen(self) -> None:
        self.pages = pages_on(self.device)
        assert self.pages._pages.recovery.problems == []
        self.stale = []
        self.model = {pid: (said, self.pages.get(pid)[1]) for pid, (said, _) in self.model.items()}

    @rule()
    def restart(self) -> None:
        self.pages.close()
        self.reopen()

    @rule()
    def kill(self) -> None:
        self.pages.sync()
        self.device = self.device.reopened(self.device.content)
        self.reopen()

    @invariant()
    def says_what_the_model_says(self) -> None:
        for pid, (said, ptr) in self.model.items():
            assert self.pages.get(pid) == (said, ptr)
            assert b"".join(self.pages.fragments(pid)) == said
        for name in "ab":
            assert self.pages.root(name) == self.roots.get(name)
        self.pages._pages.check_invariants()


TestPageCacheModel = PageCacheModel.TestCase
TestPageCacheModel.settings = settings(
    max_examples=12,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
