"""`siltstone.PageCache`: pages made of fragments, found by number, on one crash-safe log.

A page is a list of fragments that the caller's materializer merges into one. Whoever changes a page
shows the pointer that it had when it was read: if the page changed since, the change is refused
with the pointer that it has now (`Outdated.actual`). Moving a page, paging it in or out, and
merging its chain are no changes: pointers stay good. Pointers do not outlive the process's opening.

Any thread may call; not usable in a forked child. The materializer runs on the calling thread and
without any lock, so it may be as slow, and call the cache as much, as it likes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, Self

from siltstone.config import build, data_directory
from siltstone.errors import Conflict, InvalidKey, InvalidValue, KeyMissing, Outdated
from siltstone.store.fragments import FragmentPages, PidSet
from siltstone.store.report import Report
from siltstone.store.settings import PageSettings

PID_FIRST = 2
OUTDATED = 50
# Fragments of a page above which they are merged and written as one.
CONSOLIDATION_THRESHOLD = 10

Op = tuple[str, int, int, Any]


class Materializer(Protocol):
    """How fragments of a page become one. Without encode and decode fragments are bytes.

    `merge(fragments)` gets them oldest first; `size(fragment)` says bytes, for statistics.
    """

    def merge(self, fragments: Sequence[Any]) -> Any: ...


class PagePtr:
    """A page as it was at one commit. Equal pointers: the same page, unchanged."""

    __slots__ = ("pid", "stamp")

    def __init__(self, pid: int, stamp: int) -> None:
        self.pid = pid
        self.stamp = stamp

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PagePtr):
            return NotImplemented
        return self is other or (self.stamp > 0 and (self.pid, self.stamp) == other.key())

    def key(self) -> tuple[int, int]:
        return self.pid, self.stamp

    def __hash__(self) -> int:
        return hash(self.pid)

    def __repr__(self) -> str:
        return f"PagePtr(pid={self.pid}, stamp={self.stamp or 'in a batch'})"


def check_pid(pid: int) -> int:
    if isinstance(pid, bool) or not isinstance(pid, int):
        raise InvalidKey(f"a page's number is an int, not {type(pid).__name__}")
    if pid < PID_FIRST:
        raise InvalidKey(f"pages start at {PID_FIRST}: {pid} is none of yours")
    if pid >= 1 << 40:
        raise KeyMissing(f"there is no page {pid}")
    return pid


class PageCache:
    """Pages made of fragments, on one crash-safe log.

    `path`: the data directory, made when it is missing. `materializer`: how fragments of a page
    become one, see `Materializer`. `consolidation_threshold`: fragments of a page above which they
    are merged. `background=False`: no threads at all; collect_garbage() and make_stable() are then
    the caller's. Further keywords are those of `siltstone.store.settings.PageSettings`.

    `allocate`, `link`, `replace` and `free` change one page, or within `batch()` several at once.
    They take the pointer that the caller has of the page: Outdated (`.actual` is the pointer now)
    says that somebody changed it since. KeyMissing: there is no such page. InvalidKey: page numbers
    are ints from 2 on. Locked: another process has the directory; Corruption, DeviceFailed,
    ReadOnly: the device.
    """

    def __init__(
        self,
        path: Any,
        materializer: Materializer,
        *,
        device: Any = None,
        background: bool = True,
        consolidation_threshold: int = CONSOLIDATION_THRESHOLD,
        pages_min: int = 64,
        **settings: Any,
    ) -> None:
        if not callable(getattr(materializer, "merge", None)):
            raise InvalidValue("a materializer has merge(fragments)")
        self._merge = materializer.merge
        self._encode: Callable[[Any], bytes] | None = getattr(materializer, "encode", None)
        self._decode: Callable[[bytes], Any] | None = getattr(materializer, "decode", None)
        if not isinstance(consolidation_threshold, int) or consolidation_threshold < 1:
            raise InvalidValue(
                f"consolidation_threshold: {consolidation_threshold!r}, use 1 or more"
            )
        self._threshold = consolidation_threshold
        self._pages = FragmentPages()
        self._batches = threading.local()
        directory = None if path is None else data_directory(path)
        self._given = {"path": directory, "materializer": materializer, **settings}
        self._given |= {"consolidation_threshold": consolidation_threshold}
        self.settings = build(PageSettings, {"path": directory, **settings}, "PageCache()")
        self._pages.open_with(
            self.settings,
            device=device,
            engine="pages",
            background=background,
            pages_min=pages_min,
        )

    def __reduce__(self) -> Any:
        if self.settings.path is None:
            raise TypeError("a temporary page cache cannot be pickled: it has no path")
        return _opened, (self._given,)

    def __repr__(self) -> str:
        return f"PageCache({str(self.settings.path) if self.settings.path else None!r})"

    # Fragments and bytes

    def _bytes(self, fragment: Any) -> bytes:
        data = fragment if self._encode is None else self._encode(fragment)
        if not isinstance(data, bytes):
            raise InvalidValue(
                f"a fragment is bytes, not {type(data).__name__}: give the materializer encode()"
            )
        return data

    def _fragment(self, data: bytes) -> Any:
        return data if self._decode is None else self._decode(data)

    def _merged(self, fragments: Sequence[bytes]) -> Any:
        if len(fragments) == 1:
            return self._fragment(fragments[0])
        return self._merge([self._fragment(data) for data in fragments])

    # One page

    @property
    def _batch(self) -> Batch | None:
        return getattr(self._batches, "open", None)

    def allocate(self, fragment: Any) -> tuple[int, PagePtr]:
        """A new page that says `fragment`: its number and pointer."""
        data = self._bytes(fragment)
        if self._batch is not None:
            return self._batch.allocate(data)
        pids = PidSet(self._pages)
        try:
            pid = pids.take()
            return pid, self._apply(PagePtr(pid, 0), ("replace", pid, 0, [data]))
        finally:
            pids.drop()

    def link(self, pid: int, ptr: PagePtr, fragment: Any) -> PagePtr:
        """Add a fragment. Outdated when the page changed since `ptr`."""
        data = self._bytes(fragment)
        self._check(pid, ptr)
        if self._batch is not None:
            return self._batch.link(pid, ptr, data)
        if len(data) > self._pages.fragment_max:
            merged = self._merged([*self._known(pid, ptr), data])
            return self.replace(pid, ptr, merged)
        found = self._apply(ptr, ("link", pid, ptr.stamp, data))
        return self._consolidated(pid, found)

    def replace(self, pid: int, ptr: PagePtr, fragment: Any) -> PagePtr:
        """The page says `fragment` and nothing else from now on."""
        data = self._bytes(fragment)
        self._check(pid, ptr)
        if self._batch is not None:
            return self._batch.replace(pid, ptr, data)
        return self._apply(ptr, ("replace", pid, ptr.stamp, [data]))

    def free(self, pid: int, ptr: PagePtr) -> None:
        """Give the page up; its number may come again."""
        self._check(pid, ptr)
        if self._batch is not None:
            self._batch.free(pid, ptr)
        else:
            self._apply(ptr, ("free", pid, ptr.stamp, b""))

    def get(self, pid: int) -> tuple[Any, PagePtr]:
        """The merged fragment and the pointer. KeyMissing: there is no such page."""
        fragments, ptr = self._read(pid)
        return self._merged(fragments), ptr

    def fragments(self, pid: int) -> list[Any]:
        """Unmerged, oldest first."""
        return [self._fragment(data) for data in self._read(pid)[0]]

    def _read(self, pid: int) -> tuple[list[bytes], PagePtr]:
        check_pid(pid)
        self._pages._usable()
        if self._batch is not None:
            found = self._batch.read(pid)
            if found is not None:
                return found
        fragments, stamp = self._pages.fragments_of(pid)
        return fragments, PagePtr(pid, stamp)

    def _known(self, pid: int, ptr: PagePtr) -> list[bytes]:
        fragments, actual = self._read(pid)
        if actual != ptr:
            raise Outdated(f"page {pid} changed", actual)
        return fragments

    def _check(self, pid: int, ptr: PagePtr) -> None:
        check_pid(pid)
        self._pages._usable()
        if not isinstance(ptr, PagePtr) or ptr.pid != pid:
            raise InvalidValue(f"{ptr!r} is no pointer of page {pid}")
        if ptr.stamp == 0 and self._batch is None:
            raise Outdated(f"{ptr!r} is of a batch that was given up", None)

    def _apply(self, ptr: PagePtr, op: Op) -> PagePtr:
        code, _, actual, stamp = self._pages.apply([op])
        if code == OUTDATED:
            raise Outdated(f"page {ptr.pid} changed", PagePtr(ptr.pid, actual))
        return PagePtr(ptr.pid, stamp)

    def _consolidated(self, pid: int, ptr: PagePtr) -> PagePtr:
        """Merge a chain that grew long. No change: the pointer stays."""
        fragments, actual = self._pages.fragments_of(pid)
        if len(fragments) > self._threshold and actual == ptr.stamp:
            self._pages.consolidate(pid, actual, [self._bytes(self._merged(fragments))])
        return ptr

    # Several pages

    @contextmanager
    def batch(self) -> Iterator[Batch]:
        """What this thread changes inside counts together at the end, or, when the block raises or
        a page was changed by somebody else meanwhile (Conflict), not at all."""
        if self._batch is not None:
            raise InvalidValue("this thread has a batch open already")
        self._pages._usable()
        batch = Batch(self._pages)
        self._batches.open = batch
        try:
            yield batch
            self._batches.open = None
            batch.commit()
        finally:
            self._batches.open = None
            batch.close()

    # Roots, ids

    def root(self, name: str) -> int | None:
        """The page that is known by this name."""
        self._pages._usable()
        batch = self._batch
        if batch is not None and name in batch.roots:
            return batch.roots[name][1] or None
        return self._pages.root_pid(root_name(name)) or None

    def compare_and_set_root(self, name: str, old: int | None, new: int | None) -> bool:
        """Set it to `new` (None: forget the name) if it is `old` (None: there is none).

        KeyMissing: there is no page `new`.
        """
        wanted = 0 if new is None else check_pid(new)
        if wanted:
            self._read(wanted)
        expected = 0 if old is None else check_pid(old)
        if self._batch is not None:
            if (self.root(name) or 0) != expected:
                return False
            first = self._batch.roots.get(name, (expected, 0))[0]
            self._batch.roots[name] = (first, wanted)
            return True
        self._pages._usable()
        code, *_ = self._pages.apply([("root", wanted, expected, root_name(name))])
        return code == 0

    def generate_id(self) -> int:
        """A number that was never given out before and never will be again."""
        self._pages._usable()
        return self._pages.next_id()

    # Durability, room, looking in

    @property
    def stable_position(self) -> int:
        """Everything below is on the medium."""
        return self._pages.log.stable_position

    @property
    def position(self) -> int:
        """Behind the newest commit: what make_stable() wants to make it durable."""
        return self._pages.log.end

    def make_stable(self, position: int) -> None:
        """Wait until everything below `position` is on the medium."""
        if isinstance(position, bool) or not isinstance(position, int) or position < 0:
            raise InvalidValue(f"a position is a whole number from 0 on, not {position!r}")
        self._pages.sync(min(position, self.position))

    def sync(self) -> None:
        """Everything that was changed before the call is on the medium afterwards."""
        self._pages.sync()

    def collect_garbage(self) -> int:
        """Move pages out of sparse segments and give those back; how many segments."""
        return self._pages.collect_garbage()

    def checkpoint(self) -> None:
        """Make the next opening start from here."""
        self._pages.checkpoint()

    def verify(self) -> Report:
        """Read every page from the device and check it; what recovery found is in it too."""
        return self._pages.verify()

    def stats(self) -> dict[str, Any]:
        """Counters and sizes; `..._written_bytes` are parts of `written_bytes`."""
        return self._pages.stats()

    @property
    def size_on_disk(self) -> int:
        """Bytes of allocated blocks."""
        self._pages._usable()
        return int(self._pages.device.size_on_disk)

    def close(self) -> None:
        """Checkpoint, sync and close. Idempotent."""
        self._pages.close()

    def __enter__(self) -> Self:
        self._pages._usable()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _opened(given: dict[str, Any]) -> PageCache:
    return PageCache(**given)


def root_name(name: str) -> bytes:
    if not isinstance(name, str) or not name:
        raise InvalidKey("a root's name is a str that is not empty")
    try:
        data = name.encode()
    except UnicodeEncodeError as error:
        raise InvalidKey(f"a root's name is text that UTF-8 can hold: {error}") from None
    if len(data) > 1024:
        raise InvalidKey(f"a root's name has at most 1024 bytes, not {len(data)}")
    return data


class Change:
    """What a batch does to one page. `fragments`: None = freed; only the new ones while `links`."""

    __slots__ = ("expected", "fragments", "links", "ptr")

    def __init__(self, expected: int, fragments: list[bytes] | None, links: bool, ptr: PagePtr):
        self.expected = expected
        self.fragments = fragments
        self.links = links
        self.ptr = ptr


class Batch:
    """The changes of one thread's batch, by page; seen by that thread only until they count."""

    def __init__(self, pages: FragmentPages) -> None:
        self._pages = pages
        self._pids = PidSet(pages)
        self._changes: dict[int, Change] = {}
        self.roots: dict[str, tuple[int, int]] = {}

    def allocate(self, data: bytes) -> tuple[int, PagePtr]:
        pid = self._pids.take()
        ptr = PagePtr(pid, 0)
        self._changes[pid] = Change(0, [data], False, ptr)
        return pid, ptr

    def _change(self, pid: int, ptr: PagePtr) -> Change:
        change = self._changes.get(pid)
        if change is None:
            _, stamp = self._pages.fragments_of(pid)
            if stamp != ptr.stamp:
                raise Outdated(f"page {pid} changed", PagePtr(pid, stamp))
            change = self._changes[pid] = Change(stamp, [], True, PagePtr(pid, 0))
        elif change.fragments is None:
            raise KeyMissing(f"page {pid} was freed in this batch")
        elif ptr is not change.ptr:
            raise Outdated(f"page {pid} changed in this batch", change.ptr)
        change.ptr = PagePtr(pid, 0)
        return change

    def link(self, pid: int, ptr: PagePtr, data: bytes) -> PagePtr:
        change = self._change(pid, ptr)
        assert change.fragments is not None
        change.fragments.append(data)
        return change.ptr

    def replace(self, pid: int, ptr: PagePtr, data: bytes) -> PagePtr:
        change = self._change(pid, ptr)
        change.fragments, change.links = [data], False
        return change.ptr

    def free(self, pid: int, ptr: PagePtr) -> None:
        self._change(pid, ptr).fragments = None

    def read(self, pid: int) -> tuple[list[bytes], PagePtr] | None:
        change = self._changes.get(pid)
        if change is None:
            return None
        if change.fragments is None:
            raise KeyMissing(f"page {pid} was freed in this batch")
        below: list[bytes] = []
        if change.links:
            below, stamp = self._pages.fragments_of(pid)
            if stamp != change.expected:
                raise Conflict(f"page {pid} was changed by another while this batch was open")
        return [*below, *change.fragments], change.ptr

    def _ops(self) -> Iterator[Op]:
        for pid, change in self._changes.items():
            if change.fragments is None:
                if change.expected:
                    yield "free", pid, change.expected, b""
            elif not change.links or any(
                len(data) > self._pages.fragment_max for data in change.fragments
            ):
                found = self.read(pid)
                assert found is not None
                yield "replace", pid, change.expected, found[0]
            else:
                for data in change.fragments:
                    yield "link", pid, change.expected, data
        for name, (old, new) in self.roots.items():
            yield "root", new, old, root_name(name)

    def commit(self) -> None:
        ops = list(self._ops())
        if not ops:
            return
        code, bad, _, stamp = self._pages.apply(ops)
        if code:
            what = f"root {ops[bad][3]!r}" if ops[bad][0] == "root" else f"page {ops[bad][1]}"
            raise Conflict(f"{what} was changed by another while this batch was open")
        for change in self._changes.values():
            change.ptr.stamp = stamp

    def close(self) -> None:
        self._pids.drop()
