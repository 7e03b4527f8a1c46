"""Warm restart: what is kept when the arena goes, and how the index is found again.

After a clean stop the index image is read (index_image.pyx). When the arena was lost without one
(killed, another `ram`), the log is scanned: exactly the records whose bit in the live map is set
count. After a power cut, or with a live map of another device, the cache starts cold. An arena
that outlived its processes needs none of this. Called by the attachment with the door's lock held
and, but for `resume`, while nobody else has the cache.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import mmap
import os
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from siltstone import errors
from siltstone.cache import index_image
from siltstone.cache.index_image import Rebuild
from siltstone.clock import SYSTEM_RANDOM
from siltstone.log.device import (
    close_descriptor,
    create_file,
    open_file,
    remove_files,
    sync_directory,
)
from siltstone.log.machine import boot_id
from siltstone.log.recovery import recover
from siltstone.log.scan import adopt_segments, drop_empty

if TYPE_CHECKING:
    from siltstone.cache.attachment import Attachment
    from siltstone.cache.engine import CacheEngine
    from siltstone.log.livemap import LiveMap
    from siltstone.log.log_face import Log

logger = logging.getLogger("siltstone.cache")

INDEX_NAME: Final = "index"
THREADS_MAX: Final = 4  # memory bandwidth, not cores, bounds both ways of restoring


def save(attachment: Attachment) -> None:
    """After a clean stop: all that is on flash is found again, also after a power cut."""
    live_map, device = attachment.live_map, attachment.device
    directory = attachment.settings.path
    if live_map is None or device is None or directory is None:
        return
    device.sync()
    path = directory / INDEX_NAME
    stamp = int.from_bytes(SYSTEM_RANDOM.bytes(8), "little") | 1
    try:
        _write(attachment, path, stamp)
        index_image.set_stamp(live_map, stamp)
    except errors.EnvironmentFailure as error:
        logger.warning("no index image (%s): the next opening reads the flash instead", error)
        remove_files([path])
    live_map.cas_ceiling = attachment.arena.cas_next
    live_map.finish()


def _write(attachment: Attachment, path: os.PathLike[str], stamp: int) -> None:
    name = os.fspath(path) + ".new"
    size = index_image.image_bytes(attachment.engine)
    descriptor = create_file(name, size, mode=attachment.settings.mode)
    try:
        with mmap.mmap(descriptor, size) as mapping:
            index_image.write_image(attachment.engine, mapping, stamp)
            mapping.flush()
    finally:
        close_descriptor(descriptor)
    os.replace(name, path)
    sync_directory(os.path.dirname(name))


def restore(attachment: Attachment) -> int:
    """Fill a fresh arena's index; how many items were found on flash."""
    log, live_map = attachment.log, attachment.live_map
    directory = attachment.settings.path
    if log is None or live_map is None or directory is None:
        return 0
    boot = boot_id()
    trusted = live_map.trusted(boot)
    path = directory / INDEX_NAME
    with _mapped(path) as mapping:
        fits = mapping is not None and index_image.image_fits(attachment.engine, live_map, mapping)
        _begin(live_map, path, boot)
        if fits:
            assert mapping is not None
            items = _load(attachment, log, mapping)
        else:
            items = _scan(attachment, log, live_map, trusted)
    index_image.bind(attachment.engine, live_map)
    return items


def resume(attachment: Attachment) -> None:
    """The arena outlived its processes, or others use it: it knows everything."""
    live_map, directory = attachment.live_map, attachment.settings.path
    if live_map is None or directory is None:
        return
    _begin(live_map, directory / INDEX_NAME, boot_id())
    index_image.bind(attachment.engine, live_map)


def _begin(live_map: LiveMap, path: os.PathLike[str], boot: bytes) -> None:
    # Before the first change: no image of what was, no mark that says the map is at rest.
    remove_files([path])
    index_image.set_stamp(live_map, 0)
    live_map.begin(boot)


@contextlib.contextmanager
def _mapped(path: os.PathLike[str]) -> Iterator[mmap.mmap | None]:
    descriptor = open_file(path)
    if descriptor < 0:
        yield None
        return
    try:
        size = os.fstat(descriptor).st_size
        if size == 0:
            yield None
            return
        with mmap.mmap(descriptor, size, prot=mmap.PROT_READ) as mapping:
            yield mapping
    finally:
        close_descriptor(descriptor)


def _threads() -> int:
    return min(THREADS_MAX, os.cpu_count() or 1)


def _load(attachment: Attachment, log: Log, mapping: mmap.mmap) -> int:
    engine, threads = attachment.engine, _threads()
    adopt_segments(log, True)
    index_image.load_image(engine, mapping)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        counts = pool.map(
            lambda first: index_image.load_shards(engine, mapping, first, threads), range(threads)
        )
        items = sum(counts)
    drop_empty(log)
    return items


def _scan(attachment: Attachment, log: Log, live_map: LiveMap, trusted: bool) -> int:
    if not trusted:
        if live_map.found:
            logger.warning(
                "%s was not closed in order before the machine went down: starting empty",
                attachment.settings.path,
            )
        live_map.clear()
    index_image.start_from(attachment.engine, live_map)
    if trusted:
        index_image.make_room(attachment.engine, live_map)
    makers = _Makers(attachment.engine)
    report = recover(log, makers.own, warm=trusted, threads=_threads())
    counts = makers.finish()
    attachment.lost = report.lost
    if report.records:
        logger.info(
            "%s: %d items found in %d segments (%s; %d live records damaged or gone)",
            attachment.settings.path,
            counts["items"],
            report.segments,
            ", ".join(f"{name} {number}" for name, number in counts.items() if name != "items"),
            report.lost,
        )
    drop_empty(log)
    return counts["items"]


class _Makers:
    """One `Rebuild` a thread."""

    def __init__(self, engine: CacheEngine) -> None:
        self._engine = engine
        self._local = threading.local()
        self._all: list[Rebuild] = [Rebuild(engine)]

    def own(self) -> Rebuild:
        if not hasattr(self._local, "rebuild"):
            self._local.rebuild = Rebuild(self._engine)
            self._all.append(self._local.rebuild)
        own: Rebuild = self._local.rebuild
        return own

    def finish(self) -> dict[str, int]:
        """What became of the records, summed over the threads."""
        for rebuild in self._all:
            rebuild.finish()
        counts = [rebuild.counts() for rebuild in self._all]
        return {name: sum(one[name] for one in counts) for name in counts[0]}
