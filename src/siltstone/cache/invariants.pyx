"""What must hold in every shard between two operations, checked by plain walks.

`check_invariants` is for tests (after every step) and for `verify`; `describe_index` is for
`inspect`. Any thread; each shard is held for as long as its own walk takes, and nothing that
could give up the GIL is called meanwhile.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

from siltstone.cache.engine cimport CacheEngine
from siltstone.cache.eviction cimport item_hash
from siltstone.cache.index cimport group_at, group_slot, index_group, index_probe
from siltstone.cache.items cimport *
from siltstone.cache.shard cimport *
from siltstone.log.arena cimport frame_address, frame_t

from siltstone import errors


def check_invariants(CacheEngine engine not None) -> None:
    """Raise AssertionError, naming shard and place, unless every structure is whole."""
    cdef uint32_t number
    for number in range(engine.cache.shard_count):
        _Walk(engine, number).check()
    engine.arena.check_invariants()


cdef class _Walk:
    """One shard: what its frames hold, then what its index says, then both compared."""

    cdef cache_t *cache
    cdef shard_t *shard
    cdef object engine
    cdef uint32_t number
    cdef dict heads             # offset -> arena bytes of live heads that no slot named yet
    cdef dict parts             # the same for parts that no chain named yet
    cdef dict pages             # page number -> what it is
    cdef set owned              # frames whose descriptor names this shard
    cdef uint64_t live_bytes
    cdef uint64_t ram, flash, ghosts, content

    def __cinit__(self, CacheEngine engine, uint32_t number):
        self.engine = engine
        self.cache = engine.cache
        self.number = number
        self.shard = &engine.cache.shards[number]
        self.heads, self.parts, self.pages, self.owned = {}, {}, {}, set()

    cdef object _fail(self, str what):
        raise AssertionError(f"shard {self.number}: {what}")

    def check(self):
        if not shard_enter(self.cache, self.shard):
            raise errors.Busy(f"shard {self.number} was not free within one second; try again")
        try:
            self._frames()
            self._index()
            self._whole()
        finally:
            shard_leave(self.shard)

    # Frames -----------------------------------------------------------------------------

    cdef object _frames(self):
        cdef uint32_t number
        cdef int queue
        for number in range(self.cache.arena.header.frame_next_fresh):
            if self.cache.arena.frames[number].owner == self.number + 1:
                self.owned.add(number)
        for queue in range(QUEUES):
            self._queue(queue)
        for number in self.owned:
            if self.cache.arena.frames[number].kind != FRAME_INDEX:     # scratch is given back
                self._fail(f"frame {number} is its own, but in no queue and not the index's")

    cdef object _queue(self, int queue):
        cdef queue_t *line = &self.shard.queue[queue]
        cdef frame_t *frames = self.cache.arena.frames
        cdef uint32_t number = line.head, prev = 0, count = 0
        while number:
            if number - 1 not in self.owned:
                self._fail(f"queue {queue} has frame {number - 1}, owned by "
                           f"{frames[number - 1].owner} or queued twice")
            self.owned.remove(number - 1)
            if frames[number - 1].prev != prev:
                self._fail(f"frame {number - 1} has a wrong prev")
            if frames[number - 1].kind & ~FRAME_CLOSED != FRAME_ITEMS + queue:
                self._fail(f"frame {number - 1} in queue {queue} has kind "
                           f"{frames[number - 1].kind}")
            self._entries(number - 1)
            prev = number
            number = frames[number - 1].next
            count += 1
        if line.tail != prev or line.frames != count:
            self._fail(f"queue {queue} ends at {prev}, not {line.tail}, or has {count} frames, "
                       f"not {line.frames}")

    cdef object _entries(self, uint32_t number):
        cdef frame_t *frame = &self.cache.arena.frames[number]
        cdef char *base = frame_address(self.cache.arena, number)
        cdef uint32_t place = 0, live = 0, size
        cdef item_t *entry
        cdef uint64_t offset
        if frame.filled_bytes > self.cache.frame_bytes:
            self._fail(f"frame {number} is filled beyond its end")
        while place < frame.filled_bytes:
            entry = <item_t *>(base + place)
            offset = item_offset(self.cache, entry)
            if not KIND_HEAD <= entry.kind <= KIND_DEAD_PART:
                self._fail(f"entry at {offset} has kind {entry.kind}")
            size = entry_bytes(<char *>entry)
            if entry.kind == KIND_HEAD:
                self.heads[offset] = size
            elif entry.kind == KIND_PART:
                self.parts[offset] = size
            if entry.kind == KIND_HEAD or entry.kind == KIND_PART:
                live += size
            place += size
        if place != frame.filled_bytes:
            self._fail(f"entries of frame {number} end at {place}, not {frame.filled_bytes}")
        if live != frame.live_bytes:
            self._fail(f"frame {number} has {live} live bytes, not {frame.live_bytes}")
        self.live_bytes += live

    # Index ------------------------------------------------------------------------------

    cdef object _index(self):
        cdef uint32_t entry, entries = 0, number
        cdef group_t *group
        cdef dict runs = {}
        if self.shard.built:
            entries = <uint32_t>1 << (self.cache.root_bits + self.shard.depth)
            self._table_pages(entries)
        for entry in range(entries):
            group = index_group(self.cache, self.shard, self._hash(entry, 0))
            runs.setdefault(<uint64_t>group, []).append(entry)
        for number in range(self.shard.groups if self.shard.built else 0):
            group = group_at(self.cache, self.shard, number)
            run = runs.pop(<uint64_t>group, None)
            if run is None:
                self._fail(f"group {number} is in no directory entry")
            self._directory_run(group, number, run)
            self._group(group, number, run[0])
        if runs:
            self._fail(f"the directory names {len(runs)} groups that do not exist")
        self._free_pages()

    cdef uint64_t _hash(self, uint32_t entry, uint64_t hash40):
        # A hash that ends in this directory entry; `hash40` = 0: any.
        cdef uint32_t depth = self.shard.depth
        cdef uint64_t root = entry >> depth
        if hash40 == 0:
            hash40 = <uint64_t>(entry & ((1 << depth) - 1)) << (40 - depth)
        return (<uint64_t>self.number << self.cache.shard_shift) | (
            root << (self.cache.hash_shift + 40)) | (hash40 << self.cache.hash_shift)

    cdef object _page(self, uint32_t page, str what):
        if page in self.pages:
            self._fail(f"index page {page} is {what} and {self.pages[page]}")
        self.pages[page] = what

    cdef object _table_pages(self, uint32_t entries):
        cdef uint32_t number
        for number in range(DIRECTORY_PAGES):
            if self.shard.directory[number]:
                self._page(self.shard.directory[number], "directory")
            elif number * 2048 < entries:
                self._fail("the directory lacks a page")
        for number in range(GROUP_TABLE_PAGES):
            if self.shard.group_table[number]:
                self._page(self.shard.group_table[number], "group table")

    cdef object _directory_run(self, group_t *group, uint32_t number, list run):
        cdef uint32_t span
        if group.depth > self.shard.depth:
            self._fail(f"group {number} is deeper than the directory")
        span = <uint32_t>1 << (self.shard.depth - group.depth)
        if len(run) != span or run[0] % span or run[len(run) - 1] != run[0] + span - 1:
            self._fail(f"group {number} of depth {group.depth} has directory entries {run}")

    cdef object _group(self, group_t *group, uint32_t number, uint32_t entry):
        cdef uint32_t place, used = 0
        cdef slot_t *slot
        if group.pages > GROUP_PAGES_MAX:
            self._fail(f"group {number} has {group.pages} pages")
        for place in range(group.pages):
            self._page(group.page[place], "group's")
        for place in range(<uint32_t>group.pages * PAGE_SLOTS):
            slot = group_slot(self.cache, group, place)
            if slot_kind(slot.low) != SLOT_EMPTY:
                used += 1
                self._slot(slot, self._slot_hash(slot, entry))
        if used != group.used:
            self._fail(f"group {number} has {used} slots in use, not {group.used}")

    cdef uint64_t _slot_hash(self, slot_t *slot, uint32_t entry):
        cdef uint64_t hash40 = slot_hash40(slot.low, slot.high), root = entry >> self.shard.depth
        return (<uint64_t>self.number << self.cache.shard_shift) | (
            root << (self.cache.hash_shift + 40)) | (hash40 << self.cache.hash_shift)

    cdef object _slot(self, slot_t *slot, uint64_t hash):
        cdef uint64_t kind = slot_kind(slot.low)
        if index_probe(self.cache, self.shard, hash) != slot:
            self._fail(f"slot {slot.low:#x} {slot.high:#x} is not where probing ends")
        if kind == SLOT_RAM:
            self.ram += 1
            self._item(slot, hash)
        elif kind == SLOT_FLASH:
            self.flash += 1
            if self.cache.log == NULL:
                self._fail("a flash slot, and no flash")
        else:
            self.ghosts += 1
            if slot_location(slot.low) > self.shard.evictions:
                self._fail("a ghost from the future")

    cdef object _item(self, slot_t *slot, uint64_t hash):
        cdef uint64_t offset = slot_location(slot.low) * 8
        cdef item_t *item
        if self.heads.pop(offset, None) is None:
            self._fail(f"slot {slot.low:#x} points to no live head, or two slots do")
        item = item_at(self.cache, offset)
        if item_hash(self.cache, item) >> self.cache.hash_shift != hash >> self.cache.hash_shift:
            self._fail(f"the key of the item at {offset} does not belong to its slot")
        self.content += item_content(item)
        self._expiry(slot, item)
        if item.flags & ITEM_PARTS:
            self._chain(item, offset)

    cdef object _expiry(self, slot_t *slot, item_t *item):
        cdef int64_t expire_ms = item_expiry(item)[0] if item.flags & ITEM_EXPIRY else 0
        cdef int64_t told = <int64_t>slot_expiry(slot.high)
        if told == EXPIRY_LOOK:
            return
        if (told == 0) != (expire_ms == 0):
            self._fail(f"item expires at {expire_ms}, its slot says {told}")
        if told and self.cache.arena.header.created_ms + told * 1000 < expire_ms:
            self._fail(f"slot expires {told}, before its item ({expire_ms})")

    cdef object _chain(self, item_t *item, uint64_t offset):
        cdef uint64_t next = item_link(item).next, prev = offset, done = item_link(item).size
        cdef item_part_t *part
        while next:
            if self.parts.pop(next, None) is None:
                self._fail(f"item at {offset} has no live part at {next}")
            part = <item_part_t *>(self.cache.arena.base + next)
            if part.prev != prev:
                self._fail(f"part at {next} has a wrong prev")
            done += part.size
            prev = next
            next = part.next
        if done != item_content(item):
            self._fail(f"item at {offset}: parts hold {done} bytes of {item_content(item)}")

    cdef object _free_pages(self):
        cdef uint32_t page = self.shard.pages_free, used = <uint32_t>len(self.pages)
        if used != self.shard.index_pages and self.shard.built:
            self._fail(f"{used} index pages in use, not {self.shard.index_pages}")
        while page:
            self._page(page, "free")
            page = (<uint32_t *>(self.cache.arena.base + <uint64_t>page * INDEX_PAGE_BYTES))[0]

    # Both -------------------------------------------------------------------------------

    cdef object _whole(self):
        cdef shard_t *shard = self.shard
        cdef uint32_t each = self.cache.frame_bytes // INDEX_PAGE_BYTES
        if self.heads or self.parts:
            self._fail(f"live, but reached by nothing: heads {list(self.heads)[:4]}, "
                       f"parts {list(self.parts)[:4]}")
        if shard.built and len(self.pages) != len(self.owned) * each:
            self._fail(f"{len(self.pages)} index pages in {len(self.owned)} frames")
        told = (shard.items_ram, shard.items_flash, shard.ghosts, shard.bytes_ram,
                shard.bytes_used)
        found = (self.ram, self.flash, self.ghosts, self.content, self.live_bytes)
        if told != found:
            self._fail(f"counters (ram, flash, ghosts, bytes, used) {told}, found {found}")


def describe_index(CacheEngine engine not None) -> dict:
    """How full the index is: pages, groups (by their number of pages), slots by kind, load."""
    cdef uint32_t shard, number
    cdef group_t *group
    by_pages = [0] * (GROUP_PAGES_MAX + 1)
    kinds = [0, 0, 0, 0]
    for shard in range(engine.cache.shard_count):
        if not shard_enter(engine.cache, &engine.cache.shards[shard]):
            raise errors.Busy(f"shard {shard} was not free within one second; try again")
        try:
            for number in range(engine.cache.shards[shard].groups):
                group = group_at(engine.cache, &engine.cache.shards[shard], number)
                by_pages[min(group.pages, <int>GROUP_PAGES_MAX)] += 1
                _count_kinds(engine.cache, group, kinds)
        finally:
            shard_leave(&engine.cache.shards[shard])
    slots, used = sum(kinds), sum(kinds[1:])
    pages = engine.totals()["index_pages"]
    return {
        "pages": pages, "groups": sum(by_pages), "groups_by_pages": by_pages, "slots": slots,
        "slots_ram": kinds[SLOT_RAM], "slots_flash": kinds[SLOT_FLASH],
        "slots_ghost": kinds[SLOT_GHOST], "load": used / slots if slots else 0.0,
        "bytes_per_slot_in_use": pages * <int>INDEX_PAGE_BYTES / used if used else 0.0,
    }


cdef object _count_kinds(cache_t *cache, group_t *group, list kinds):
    cdef uint32_t place
    cdef uint64_t found[4]
    memset(found, 0, sizeof(found))
    for place in range(<uint32_t>group.pages * PAGE_SLOTS):
        found[slot_kind(group_slot(cache, group, place).low)] += 1
    for place in range(4):
        kinds[place] += found[place]
