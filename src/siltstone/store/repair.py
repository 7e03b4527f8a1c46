"""`Store.repair`: a new store of everything that can still be read of a damaged one.

The damaged store is only read. What is found goes to a new directory, and the report lists what is
lost or doubtful; it is `ok` when nothing is.

1. The table: from the newest checkpoint that can be read, else the one before it, else from the
   records of all segments. Blocks of it that are damaged are made anew from the records, too.
2. Each tree from its root. A page whose base is lost keeps what later changes say. A page that has
   lost a change is taken as the others say, and reported: it may be as it was before that change.
3. An inner page that has lost anything is a gap. The leaves that no tree reaches are looked at, one
   by one: a leaf whose keys fit the gap of one tree only is that tree's; a leaf that fits several,
   or whose tree is not known, goes to the tree `LOST_TREE`. It never replaces what step 2 found.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from siltstone.errors import Corruption, SiltstoneError
from siltstone.log.directory import made_whole
from siltstone.store.remains import BLOCK_BITS, ReadOnlyFile, Remains
from siltstone.store.report import Report
from siltstone.store.salvage import SalvagePages
from siltstone.store.settings import VALUE_SIZE_MAX, StoreSettings

if TYPE_CHECKING:
    from siltstone.store.store import Store

LOST_TREE: Final = "lost-and-found"
PID_FIRST: Final = 2
LEAF: Final = 1
BATCH_RECORDS: Final = 500
BATCH_BYTES: Final = 4 << 20
NAMED_MAX: Final = 60  # characters of a key in a report

Progress = Callable[[int, int], object]
Gap = tuple[str, bytes, bytes | None]  # tree, lowest key, the key above its highest


def repair(
    path: str, target: str, make: type[Store], progress: Progress | None, options: dict[str, Any]
) -> Report:
    """See the module. EnvironmentFailure: there is something at `target`, or a lock is held."""
    report = Report()
    with ReadOnlyFile(os.path.join(path, "data")) as device:
        if device.superblock.engine != "store":
            raise Corruption(
                f"{device.path} belongs to the engine {device.superblock.engine!r}",
                path=device.path,
                expected="store",
                found=device.superblock.engine,
            )
        settings = StoreSettings(
            path=Path(path), read_only=True, segment_size=device.segment_bytes, workers=0
        )
        pages = _opened(settings, device, report)
        kept: dict[str, Any] = {"segment_size": device.segment_bytes, "durability": "none"}
        kept["value_size_max"] = VALUE_SIZE_MAX
        try:
            with made_whole(target, "data") as part, make(part, **(kept | options)) as store:
                _Salvage(pages, store, report, progress).run()
        finally:
            pages.close()
        report.problems[:0] = device.damage
    return report


# The table ------------------------------------------------------------------------------------


def _opened(settings: StoreSettings, device: ReadOnlyFile, report: Report) -> SalvagePages:
    pages = _with_checkpoint(settings, device, report)
    if pages is None:
        return _without_checkpoint(settings, device, report)
    bad = pages.damaged_blocks()
    if bad:
        chains = Remains(device, frozenset(bad)).chains()
        for number in bad:
            _rebuild(pages, number, chains)
            report.problems.append(
                f"table block {number} is damaged: its pages were found in the log"
            )
    return pages


def _with_checkpoint(
    settings: StoreSettings, device: ReadOnlyFile, report: Report
) -> SalvagePages | None:
    """Opened as usual; None: no checkpoint of a store that had some can be read."""
    if device.damage:
        device.superblock = Remains(device, frozenset()).with_checkpoints()
    pages = SalvagePages()
    try:
        pages.open_with(settings, device=device, background=False)
    except SiltstoneError as error:
        report.problems.append(str(error))
        return None
    if device.damage and not device.superblock.checkpoint_position:
        pages.close()
        return None
    report.problems += map(str, pages.recovery.problems)
    return pages


def _without_checkpoint(
    settings: StoreSettings, device: ReadOnlyFile, report: Report
) -> SalvagePages:
    remains = Remains(device)
    pages = SalvagePages()
    segments = [(each.version, each.slot, each.salt) for each in remains.segments]
    pages.open_scanned(settings, device, segments, *remains.roots())
    chains = remains.chains()
    for number in sorted({pid >> BLOCK_BITS for pid in chains}):
        _rebuild(pages, number, chains)
    report.problems.append(
        f"no checkpoint can be read: the table was made anew from {len(segments)} segments"
    )
    return pages


def _rebuild(
    pages: SalvagePages, number: int, chains: dict[int, list[tuple[int, int, int]]]
) -> None:
    low = number << BLOCK_BITS
    found = {pid: chains[pid] for pid in range(low, low + (1 << BLOCK_BITS)) if pid in chains}
    pages.rebuild(number, found)


# The trees ------------------------------------------------------------------------------------


class _Salvage:
    """Copies trees of `pages` to `store`."""

    def __init__(
        self, pages: SalvagePages, store: Store, report: Report, progress: Progress | None
    ) -> None:
        self._pages = pages
        self._store = store
        self._report = report
        self._progress = progress
        self._seen: set[int] = set()  # pids of pages that a tree reaches
        self._gaps: list[Gap] = []
        self._batch: Any = None
        self._waiting = self._waiting_bytes = 0

    def run(self) -> None:
        roots = sorted(self._pages.roots(), key=lambda root: root[0])
        for name, pid, count in roots:
            if name.startswith(b"\0"):
                self._mark_dropped(pid)
                continue
            tree = name.decode("utf-8", "replace")
            before, clean = self._report.records, len(self._report.problems)
            if tree:
                self._store.tree(tree)
            self._tree(tree, pid)
            found = self._report.records - before
            if clean == len(self._report.problems) and count not in (None, found):
                self._problem(f"tree {tree!r}: {found} of {count} records were found")
            self._report.trees += 1
        if not roots:
            self._problem("no record of any tree is left")
        known = [name for name, _, _ in roots]
        if b"" not in known:
            self._gaps.append((LOST_TREE, b"", None))
        if self._gaps:
            self._orphans()
        self._commit()
        self._store._pages.skip_ids(self._pages.id_marker)
        self._store.checkpoint()

    def _problem(self, text: str) -> None:
        self._report.problems.append(text)

    # From the root

    def _tree(self, tree: str, root: int) -> None:
        todo: list[tuple[int, int, bytes, bytes | None]] = [(root, -1, b"", None)]
        while todo:
            pid, level, low, high = todo.pop()
            found = self._fetch(tree, pid, level, low, high)
            if found is None:
                continue
            kind, level, entries, lost = found
            if kind == LEAF:
                self._leaf(tree, pid, entries, lost, low, high)
                continue
            if lost:
                self._gap(tree, pid, low, high, f"{len(lost)} changes of this inner page are lost")
                continue
            for at, (key, child, _) in enumerate(entries):
                above = entries[at + 1][0] if at + 1 < len(entries) else high
                todo.append((child, level - 1, key if at else low, above))

    def _fetch(self, tree: str, pid: int, level: int, low: bytes, high: bytes | None) -> Any:
        """The page, when it is what the one above it says; else its range is a gap."""
        found = self._pages.page(pid, level) if pid not in self._seen else None
        if found is None:
            self._gap(tree, pid, low, high, "this page is not there")
            return None
        kind, its_level, entries, lost = found
        self._report.pages += 1
        if kind == 0:
            self._seen.add(pid)
            self._gap(tree, pid, low, high, f"page {pid} cannot be read{self._where(lost)}")
            return None
        fits = its_level == level or level < 0
        fits = fits and all(low <= key for key, _, _ in entries[1 if kind != LEAF else 0 :])
        if not fits:
            self._gap(tree, pid, low, high, f"page {pid} is not what the page above it says")
            return None
        self._seen.add(pid)
        return found

    def _leaf(
        self,
        tree: str,
        pid: int,
        entries: list[Any],
        lost: list[int],
        low: bytes,
        high: bytes | None,
    ) -> None:
        # With a lost cut there may be keys that have moved to the next page.
        kept = [entry for entry in entries if high is None or entry[0] < high]
        if lost:
            self._problem(
                f"tree {tree!r}: page {pid} has lost {len(lost)} of its records"
                f"{self._where(lost)}: {len(kept)} entries {_range(low, high)} were found, others "
                "may be missing or as they were before"
            )
        for key, payload, large in kept:
            self._entry(tree, key, payload, large)
        if self._progress is not None:
            self._progress(self._report.pages, self._pages.pid_next)

    def _entry(self, tree: str, key: bytes, payload: Any, large: bool) -> None:
        if large:
            try:
                payload = self._pages.large_value(payload)
            except SiltstoneError as error:
                self._problem(f"tree {tree!r}: the value of key {_named(key)} is lost: {error}")
                return
        self._write(tree, key, payload)

    def _gap(self, tree: str, pid: int, low: bytes, high: bytes | None, why: str) -> None:
        self._gaps.append((tree, low, high))
        self._problem(f"tree {tree!r}: {why}: the records {_range(low, high)} were looked for")

    def _where(self, positions: list[int]) -> str:
        """Of the first lost record: the file and the offset in it."""
        if not positions:
            return ""
        size = self._pages.device.segment_bytes
        for segment in self._pages.log.segments():
            if segment["version"] == positions[0] // size:
                where = self._pages.device.handle.describe(segment["slot"], positions[0] % size)
                return f" ({where})"
        return f" (position {positions[0]})"

    def _mark_dropped(self, root: int) -> None:
        """Pages of a tree that was dropped and is not yet taken apart are nobody's."""
        todo = [root]
        while todo:
            pid = todo.pop()
            found = self._pages.page(pid, -1) if pid not in self._seen else None
            self._seen.add(pid)
            if found is not None and found[0] not in (0, LEAF):
                todo += [child for _, child, _ in found[2] if isinstance(child, int)]

    # Leaves that no tree reaches

    def _orphans(self) -> None:
        self._commit()
        for pid in range(PID_FIRST, self._pages.pid_next):
            found = self._pages.page(pid, -1) if pid not in self._seen else None
            if found is None or found[0] != LEAF or not found[2]:
                continue
            tree = self._owner(found[2][0][0], found[2][-1][0])
            if tree is None:
                continue
            target = self._store.tree(tree) if tree else self._store
            before = self._report.records
            for key, payload, large in found[2]:
                if target.get(key) is None:
                    self._entry(tree, key, payload, large)
            self._commit()
            self._problem(
                f"tree {tree!r}: page {pid} was found without a page above it: "
                f"{self._report.records - before} records from {_named(found[2][0][0])} to "
                f"{_named(found[2][-1][0])}"
            )

    def _owner(self, first: bytes, last: bytes) -> str | None:
        """The tree with a gap that holds these keys; None if there is none."""
        trees = {
            tree for tree, low, high in self._gaps if low <= first and (high is None or last < high)
        }
        return trees.pop() if len(trees) == 1 else LOST_TREE if trees else None

    # Writing

    def _write(self, tree: str, key: bytes, value: bytes) -> None:
        if self._batch is None:
            self._batch = self._store.batch()
        part = self._batch.tree(tree) if tree else self._batch
        part[key] = value
        self._report.records += 1
        self._waiting += 1
        self._waiting_bytes += len(key) + len(value)
        if self._waiting >= BATCH_RECORDS or self._waiting_bytes >= BATCH_BYTES:
            self._commit()

    def _commit(self) -> None:
        if self._batch is not None:
            self._batch.commit()
        self._batch = None
        self._waiting = self._waiting_bytes = 0


def _named(key: bytes) -> str:
    text = repr(key)
    return text if len(text) <= NAMED_MAX else text[:NAMED_MAX] + "..."


def _range(low: bytes, high: bytes | None) -> str:
    above = "to the end" if high is None else f"up to {_named(high)}"
    return f"from {_named(low)} {above}" if low else above.replace("to the end", "of all keys")
