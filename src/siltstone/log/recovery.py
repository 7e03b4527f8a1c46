"""Recovery of a cache's log when its arena is lost: decides what counts and scans it.

Warm: the live map is trusted (same boot, or closed clean), so exactly the records whose bit is set
count; no "newest wins", no tombstones. Cold: nothing on the device counts; its headers are read
all the same, since a version must never be given out twice. Called once, by the first process
that opens the cache, before anybody else uses the log. The loops over records are in scan.pyx.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Callable

from siltstone.log.log_face import Log
from siltstone.log.scan import Found, PythonFound, adopt_segments, drop_empty, scan_segment


@dataclasses.dataclass
class Recovery:
    """What was found. Records: kept + dropped are those whose live bit was set."""

    warm: bool
    segments: int = 0  # taken over
    segments_freed: int = 0  # of these, because nothing in them lives
    segments_stale: int = 0  # on the device, but the live bits are of a later life
    segments_conflicting: int = 0
    headers_unreadable: int = 0
    bytes_read: int = 0
    records: int = 0  # valid ones, live or not
    kept: int = 0
    dropped: int = 0  # the engine did not want them
    lost: int = 0  # a live bit was set, but no valid record is there
    damaged: int = 0  # places where bytes failed their check


def recover(
    log: Log,
    found: Found | Callable[[], Found] | None = None,
    *,
    warm: bool,
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Recovery:
    """Rebuild the tables of a log just created, and give every live record to `found`.

    `found` may be a function that makes one for each segment. The newest segment comes first: an
    engine that cannot take all keeps what was written last. `progress(done, total)` is called
    after each segment. Each thread holds one segment's image.
    """
    headers = adopt_segments(log, warm)
    result = Recovery(
        warm,
        segments=headers["adopted"],
        segments_stale=headers["stale"],
        segments_conflicting=headers["conflicts"],
        headers_unreadable=headers["unreadable"],
    )
    sealed = [info for info in log.segments() if info["state"] == "sealed"]
    order = sorted(sealed, key=lambda info: info["version"], reverse=True)
    slots = [info["slot"] for info in order]
    with concurrent.futures.ThreadPoolExecutor(max(threads, 1)) as pool:
        tallies = pool.map(lambda slot: _scan(log, slot, found), slots)
        for done, tally in enumerate(tallies, 1):
            for name, value in tally.items():
                setattr(result, name, getattr(result, name) + value)
            if progress is not None:
                progress(done, len(slots))
    if isinstance(found, PythonFound) and found.error is not None:
        raise found.error
    result.segments_freed = drop_empty(log)
    return result


def _scan(log: Log, slot: int, found: Found | Callable[[], Found] | None) -> dict[str, int]:
    takes = found if found is None or isinstance(found, Found) else found()
    tally = scan_segment(log, slot, takes)
    if takes is not None:
        takes.finished()
    return tally
