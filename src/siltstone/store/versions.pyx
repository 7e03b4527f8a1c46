"""Snapshots: what pages were at a commit, kept in memory for as long as somebody may ask.

A snapshot is a stamp in a list. Before a page changes, and if the newest open snapshot sees it as
it is, the old node (or, of a page that is not in memory, the places of its records, whose segments
are then pinned) becomes a version that hangs off the entry. A version belongs to the newest
snapshot that needs it; when that one closes it goes to the next older one that does, or away. Over
`snapshot_bytes_max` the oldest snapshots are given up: writers never wait for readers.
"""
from libc.errno cimport ENOMEM
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from siltstone.store.state cimport entry_t, pages_t, place_t, snapshot_t, version_t
from siltstone.store.table cimport (block_of, entry_take_places, node_changed, page_entry,
                                    places_pin)


cdef void pages_snapshot_open(pages_t *pages, snapshot_t *snapshot) noexcept nogil:
    memset(snapshot, 0, sizeof(snapshot_t))
    snapshot.stamp = pages.commit_stamp
    snapshot.open = 1
    snapshot.older = pages.newest
    if pages.newest != NULL:
        pages.newest.newer = snapshot
    else:
        pages.oldest = snapshot
    pages.newest = snapshot
    pages.snapshot_newest = snapshot.stamp + 1


cdef void leave(pages_t *pages, snapshot_t *snapshot) noexcept nogil:
    if snapshot.newer != NULL:
        snapshot.newer.older = snapshot.older
    else:
        pages.newest = snapshot.older
    if snapshot.older != NULL:
        snapshot.older.newer = snapshot.newer
    else:
        pages.oldest = snapshot.newer
    pages.snapshot_newest = pages.newest.stamp + 1 if pages.newest != NULL else 0
    snapshot.open = 0


cdef void attach(snapshot_t *snapshot, version_t *version) noexcept nogil:
    version.previous = NULL
    version.next = snapshot.versions
    if version.next != NULL:
        version.next.previous = version
    snapshot.versions = version


cdef void version_drop(pages_t *pages, version_t *version) noexcept nogil:
    """It is in no snapshot's list any more."""
    cdef entry_t *entry = page_entry(pages, version.pid)
    cdef version_t **link = &entry.versions
    while link[0] != version:
        link = &link[0].older
    link[0] = version.older
    block_of(pages, version.pid).resident -= 1
    pages.versions -= 1
    pages.version_bytes -= version.bytes
    if version.node != NULL:
        pages.ops.release(pages.context, version.node)
    if version.places != NULL:
        places_pin(pages, version.places, version.count, -1)
        free(version.places)
    free(version)


cdef void pages_snapshot_close(pages_t *pages, snapshot_t *snapshot) noexcept nogil:
    """Idempotent; also for one that was given up."""
    cdef version_t *version = snapshot.versions
    cdef version_t *following
    cdef snapshot_t *older = snapshot.older
    if not snapshot.open:
        return
    leave(pages, snapshot)
    snapshot.versions = NULL
    while version != NULL:
        following = version.next
        # `older` is the newest that is left and not newer: it needs what is not younger than it.
        if older != NULL and version.stamp <= older.stamp:
            attach(older, version)
        else:
            version_drop(pages, version)
        version = following


cdef void versions_limit(pages_t *pages) noexcept nogil:
    cdef snapshot_t *oldest
    while pages.version_bytes > pages.snapshot_bytes_max and pages.oldest != NULL:
        oldest = pages.oldest
        pages_snapshot_close(pages, oldest)
        oldest.too_old = 1
        pages.counters.snapshots_lost += 1


cdef version_t *version_find(entry_t *entry, uint64_t stamp) noexcept nogil:
    cdef version_t *version = entry.versions
    while version != NULL and version.stamp > stamp:
        version = version.older
    return version


cdef int version_keep(pages_t *pages, uint64_t pid, entry_t *entry, bint keep_node) noexcept nogil:
    cdef version_t *version = <version_t *>calloc(1, sizeof(version_t))
    cdef char *copied = NULL
    if version == NULL:
        return -ENOMEM
    version.stamp = entry.stamp
    version.until = pages.commit_stamp + 1
    version.pid = pid
    version.bytes = sizeof(version_t)
    if entry.node != NULL:
        if keep_node:
            copied = pages.ops.copy(pages.context, entry.node)
            if copied == NULL:
                free(version)
                return -ENOMEM
        version.node = entry.node
        version.bytes += entry.node_bytes
    elif entry.count:
        if entry_take_places(entry, &version.places) != 0:
            free(version)
            return -ENOMEM
        version.count = entry.count
        version.bytes += <uint32_t>(version.count * sizeof(place_t))
        places_pin(pages, version.places, version.count, 1)
    if entry.node != NULL:
        install_copy(pages, pid, entry, copied)
    version.older = entry.versions
    entry.versions = version
    block_of(pages, pid).resident += 1
    pages.versions += 1
    pages.version_bytes += version.bytes
    pages.counters.versions_made += 1
    attach(pages.newest, version)
    return 0


cdef void install_copy(pages_t *pages, uint64_t pid, entry_t *entry, char *copied) noexcept nogil:
    """The node went to a version; the entry has its copy, or none."""
    if copied == NULL:
        pages.resident_bytes -= entry.node_bytes
        pages.resident_pages -= 1
        block_of(pages, pid).resident -= 1
        entry.node = NULL
        node_changed(pages, pid, entry)
        entry.node_bytes = 0
        return
    pages.resident_bytes -= entry.node_bytes
    entry.node = copied
    node_changed(pages, pid, entry)
    entry.node_bytes = <uint32_t>pages.ops.memory(pages.context, copied)
    pages.resident_bytes += entry.node_bytes
