"""The index image, and the index rebuilt from the records on flash: what a warm restart needs.

After a clean stop the file `index` holds every slot that points to flash, so that opening reads
16 bytes an item and no record:

    header (a page) | tag table | a segment_memory_t a segment | a root_entry_t a root | slots

The slots of a root (the part of a shard that its hashes begin in) lie together; everything is
under a checksum. A stamp that stands in
the header and in the live map says that the image is of the last stop: an older copy of it is
refused. When there is no image, `Rebuild` takes the records that the log's scan finds (rules: a
record counts if its live bit is set). Called by cache/restart.py while nobody else has the cache.
"""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy

from siltstone.cache.engine cimport CacheEngine, record_t
from siltstone.cache.eviction cimport purge_group
from siltstone.cache.flash cimport (
    FLAG_STALE, FLAG_WON, RECORD_ITEM, RECORD_PART, flash_item_t, flash_key_size, record_item,
    record_key,
)
from siltstone.cache.hashing cimport siphash13
from siltstone.cache.index cimport (
    bucket_prefetch, group_at, group_slot, index_fill, index_grow, index_group, index_has_room,
    index_insert, index_probe,
)
from siltstone.cache.items cimport ITEM_TAG
from siltstone.cache.shard cimport *
from siltstone.log.arena cimport SECTION_TAGS, section
from siltstone.log.atomics cimport prefetch
from siltstone.log.checksum cimport crc32c
from siltstone.log.livemap cimport LiveMap
from siltstone.log.log cimport LOG_ALIGNMENT, LOG_RECORD_HEADER, log_dead
from siltstone.log.scan cimport (
    Found, segment_memory_t, segment_recall, segment_remember,
)

from siltstone import errors

cdef extern from *:
    """
    #include <stdint.h>
    typedef struct {
        uint64_t magic;
        uint32_t format_version;
        uint32_t table_checksum;    /* of tags, segments and shards */
        uint8_t uuid[16];           /* of the device */
        uint64_t secret[2];         /* the key of the hash of keys */
        int64_t created_ms;         /* of the arena: slots tell expiry from then on */
        uint64_t cas_next;
        uint64_t flush_word;
        uint64_t stamp;
        uint64_t segment_bytes;
        uint64_t size;              /* of the file */
        uint32_t segment_count;
        uint32_t shard_count;
        uint32_t root_bits;
        uint32_t tag_bytes;
        uint32_t hash_shift;
        uint32_t checksum;          /* of all before it */
    } silt_index_image_t;
    #define SILT_INDEX_IMAGE_SIZE (8 + 4 + 4 + 16 + 16 + 8 + 8 + 8 + 8 + 8 + 8 + 5 * 4 + 4)
    _Static_assert(sizeof(silt_index_image_t) == SILT_INDEX_IMAGE_SIZE, "index image header");
    typedef struct {
        uint32_t slots;
        uint32_t checksum;          /* of its slots */
    } silt_root_entry_t;
    static inline uint32_t silt_bits(uint64_t word) {
        return (uint32_t)__builtin_popcountll(word);
    }
    """
    ctypedef struct header_t "silt_index_image_t":
        uint64_t magic
        uint32_t format_version
        uint32_t table_checksum
        uint8_t uuid[16]
        uint64_t secret[2]
        int64_t created_ms
        uint64_t cas_next
        uint64_t flush_word
        uint64_t stamp
        uint64_t segment_bytes
        uint64_t size
        uint32_t segment_count
        uint32_t shard_count
        uint32_t root_bits
        uint32_t tag_bytes
        uint32_t hash_shift
        uint32_t checksum
    ctypedef struct root_entry_t "silt_root_entry_t":
        uint32_t slots
        uint32_t checksum
    uint32_t bits_of "silt_bits"(uint64_t) noexcept nogil
    enum:
        IMAGE_HEADER_SIZE "SILT_INDEX_IMAGE_SIZE"

cdef enum:
    IMAGE_VERSION = 1
    IMAGE_PAGE = 4096           # the header has it for itself
    STAMP_WORD = 0              # of the live map's user words
    LOCKS_WAITED = 10           # s, for a shard whose holder is stopped
    LINKED_AT_ONCE = 1 << 18    # records, of 24 bytes each here
    PREFETCHED = 8              # items ahead whose buckets are fetched from memory

cdef uint64_t IMAGE_MAGIC = 0x7865646e692d7473      # "st-index"

cdef struct layout_t:           # offsets in the file
    uint64_t tags
    uint64_t segments
    uint64_t roots
    uint64_t slots

cdef inline uint32_t _roots(cache_t *cache) noexcept nogil:
    return cache.shard_count << cache.root_bits

cdef layout_t _layout(cache_t *cache) noexcept nogil:
    cdef layout_t layout
    layout.tags = IMAGE_PAGE
    layout.segments = layout.tags + cache.arena.header.section_bytes[<int>SECTION_TAGS]
    layout.roots = layout.segments + cache.log.segment_count * <uint64_t>sizeof(segment_memory_t)
    layout.slots = (layout.roots + _roots(cache) * sizeof(root_entry_t) + 15) // 16 * 16
    return layout

# Saving -------------------------------------------------------------------------------------

cdef bint _enter(cache_t *cache, shard_t *shard) noexcept nogil:
    for _ in range(LOCKS_WAITED):
        if shard_enter(cache, shard):
            return True
    return False

cdef int64_t _count(cache_t *cache, shard_t *shard, int64_t now) noexcept nogil:
    # Slots that will be in the image: what is dead is taken out first.
    cdef uint32_t number, place
    cdef int64_t total = 0
    cdef group_t *group
    if not shard.built:
        return 0
    for number in range(shard.groups):
        group = group_at(cache, shard, number)
        purge_group(cache, shard, group, False, now)
        for place in range(<uint32_t>group.pages * PAGE_SLOTS):
            total += slot_kind(group_slot(cache, group, place).low) == SLOT_FLASH
    return total

cdef uint32_t _copy(cache_t *cache, shard_t *shard, uint32_t root, slot_t *out,
                    uint64_t room) noexcept nogil:
    # A group at a time, in the order of the hash.
    cdef uint32_t entry, end, place, written = 0
    cdef group_t *group
    cdef slot_t *slot
    if not shard.built:
        return 0
    entry, end = root << shard.depth, (root + 1) << shard.depth
    while entry < end:
        # the directory is indexed by the hash's first bits below the shard's
        group = index_group(cache, shard, <uint64_t>entry << (cache.hash_shift + 40 - shard.depth))
        for place in range(<uint32_t>group.pages * PAGE_SLOTS):
            slot = group_slot(cache, group, place)
            if slot_kind(slot.low) == SLOT_FLASH and written < room:
                out[written] = slot[0]
                written += 1
        entry += 1 << (shard.depth - group.depth)
    return written


def image_bytes(CacheEngine engine not None) -> int:
    """Size of the image of this index; what has expired or was forgotten is taken out."""
    cdef cache_t *cache = engine.cache
    cdef uint64_t total = 0
    cdef uint32_t number
    for number in range(cache.shard_count):
        if not _enter(cache, &cache.shards[number]):
            raise errors.Busy("a shard of the cache is held by a stopped process")
        total += _count(cache, &cache.shards[number], now_ms(cache))
        shard_leave(&cache.shards[number])
    return _layout(cache).slots + total * sizeof(slot_t)


def write_image(CacheEngine engine not None, mapping, uint64_t stamp) -> None:
    """Fill `mapping`, which has image_bytes() bytes of zeros."""
    cdef cache_t *cache = engine.cache
    cdef unsigned char[::1] view = mapping
    cdef char *base = <char *>&view[0]
    cdef layout_t layout = _layout(cache)
    cdef header_t *header = <header_t *>base
    cdef uint32_t number
    for number in range(cache.log.segment_count):
        segment_remember(cache.log, number, <segment_memory_t *>(base + layout.segments) + number)
    memcpy(base + layout.tags, section(cache.arena, SECTION_TAGS), layout.segments - layout.tags)
    _write_slots(cache, <root_entry_t *>(base + layout.roots), <slot_t *>(base + layout.slots),
                 (<uint64_t>view.shape[0] - layout.slots) // sizeof(slot_t))
    header.magic = IMAGE_MAGIC
    header.format_version = IMAGE_VERSION
    header.table_checksum = crc32c(0, base + layout.tags, layout.slots - layout.tags)
    memcpy(header.uuid, cache.log.header.uuid, 16)
    memcpy(header.secret, cache.arena.header.secret, 16)
    header.created_ms = cache.arena.header.created_ms
    header.cas_next = cache.arena.header.cas_next
    header.flush_word = cache.arena.header.flush_word
    header.stamp = stamp
    header.segment_bytes = cache.log.segment_bytes
    header.size = view.shape[0]
    header.segment_count = cache.log.segment_count
    header.shard_count = cache.shard_count
    header.root_bits = cache.root_bits
    header.tag_bytes = <uint32_t>(layout.segments - layout.tags)
    header.hash_shift = cache.hash_shift
    header.checksum = crc32c(0, header, IMAGE_HEADER_SIZE - 4)


cdef int _write_slots(cache_t *cache, root_entry_t *entry, slot_t *out, uint64_t room) except -1:
    cdef uint32_t number, root
    for number in range(cache.shard_count):
        if not _enter(cache, &cache.shards[number]):
            raise errors.Busy("a shard of the cache is held by a stopped process")
        for root in range(<uint32_t>1 << cache.root_bits):
            entry.slots = _copy(cache, &cache.shards[number], root, out, room)
            entry.checksum = crc32c(0, out, entry.slots * sizeof(slot_t))
            out += entry.slots
            room -= entry.slots
            entry += 1
        shard_leave(&cache.shards[number])
    return 0


def set_stamp(LiveMap live_map not None, uint64_t stamp) -> None:
    """Which image is of this state of the live map; 0: none."""
    live_map.header.user[<int>STAMP_WORD] = stamp

# Loading ------------------------------------------------------------------------------------

cdef bint _header_fits(cache_t *cache, LiveMap live_map, const header_t *header,
                       uint64_t size) noexcept:
    return (size >= IMAGE_PAGE and header.magic == IMAGE_MAGIC
            and header.format_version == IMAGE_VERSION
            and header.checksum == crc32c(0, header, IMAGE_HEADER_SIZE - 4)
            and header.stamp != 0
            and header.stamp == live_map.header.user[<int>STAMP_WORD]
            and live_map.header.clean == 1
            and memcmp(header.uuid, cache.log.header.uuid, 16) == 0
            and header.segment_bytes == cache.log.segment_bytes
            and header.segment_count == cache.log.segment_count
            and header.shard_count == cache.shard_count
            and header.root_bits == cache.root_bits
            and header.hash_shift == cache.hash_shift
            and header.tag_bytes == cache.arena.header.section_bytes[<int>SECTION_TAGS]
            and header.size == size)


def image_fits(CacheEngine engine not None, LiveMap live_map not None, mapping) -> bool:
    """Is this the whole, undamaged image of the last clean stop, of this geometry?"""
    cdef cache_t *cache = engine.cache
    cdef const unsigned char[::1] view = mapping
    cdef const char *base = <const char *>&view[0]
    cdef const header_t *header = <const header_t *>base
    cdef layout_t layout = _layout(cache)
    cdef const root_entry_t *roots = <const root_entry_t *>(base + layout.roots)
    cdef uint64_t offset = layout.slots, bytes_here
    cdef uint32_t number
    if not _header_fits(cache, live_map, header, view.shape[0]) or offset > header.size:
        return False
    if header.table_checksum != crc32c(0, base + layout.tags, layout.slots - layout.tags):
        return False
    for number in range(_roots(cache)):
        bytes_here = roots[number].slots * <uint64_t>sizeof(slot_t)
        if offset + bytes_here > header.size or (
                crc32c(0, base + offset, bytes_here) != roots[number].checksum):
            return False
        offset += bytes_here
    return True


def load_image(CacheEngine engine not None, mapping) -> None:
    """All but the slots (load_shards), after adopt_segments. The image fits."""
    cdef cache_t *cache = engine.cache
    cdef const unsigned char[::1] view = mapping
    cdef const char *base = <const char *>&view[0]
    cdef const header_t *header = <const header_t *>base
    cdef layout_t layout = _layout(cache)
    cdef uint32_t number
    memcpy(section(cache.arena, SECTION_TAGS), base + layout.tags, layout.segments - layout.tags)
    memcpy(cache.arena.header.secret, header.secret, 16)
    cache.arena.header.created_ms = header.created_ms
    cache.arena.header.cas_next = header.cas_next
    cache.arena.header.flush_word = header.flush_word
    for number in range(cache.log.segment_count):
        segment_recall(cache.log, number, <segment_memory_t *>(base + layout.segments) + number)
    for number in range(cache.shard_count):
        cache.shards[number].epoch = header.flush_word >> 48


def load_shards(CacheEngine engine not None, mapping, uint32_t first, uint32_t step) -> int:
    """Every `step`-th shard from `first` on; how many items. Several threads may take turns."""
    cdef cache_t *cache = engine.cache
    cdef const unsigned char[::1] view = mapping
    cdef const char *base = <const char *>&view[0]
    cdef layout_t layout = _layout(cache)
    cdef const root_entry_t *roots = <const root_entry_t *>(base + layout.roots)
    cdef uint64_t offset = layout.slots, total = 0
    cdef uint32_t number, largest = 0
    cdef slot_t *scratch
    for number in range(_roots(cache)):
        largest = max(largest, roots[number].slots)
    scratch = <slot_t *>malloc(largest * sizeof(slot_t) + 1)
    if scratch == NULL:
        raise MemoryError()
    with nogil:
        for number in range(_roots(cache)):
            if (number >> cache.root_bits) % step == first and roots[number].slots:
                memcpy(scratch, base + offset, roots[number].slots * sizeof(slot_t))
                total += _load(cache, number, scratch, roots[number].slots)
            offset += roots[number].slots * <uint64_t>sizeof(slot_t)
        free(scratch)
    return total

cdef uint32_t _load(cache_t *cache, uint32_t root, slot_t *slots, uint32_t count) noexcept nogil:
    cdef shard_t *shard = &cache.shards[root >> cache.root_bits]
    cdef uint32_t number, placed
    if not _enter(cache, shard):
        return 0
    placed = index_fill(cache, shard, root & ((1 << cache.root_bits) - 1), slots, count)
    for number in range(count if placed < count else 0):
        if slot_kind(slots[number].low) == SLOT_FLASH:      # there was no frame for it
            log_dead(cache.log, slot_location(slots[number].low) * LOG_ALIGNMENT)
    shard.items_flash += placed
    shard_leave(shard)
    return placed

# From the records ---------------------------------------------------------------------------

cdef struct found_item_t:       # 8 + 8 + 4 + 4 = 24 bytes
    uint64_t hash
    uint64_t position
    uint32_t expires_s
    uint32_t flags

cdef struct rebuild_t:
    cache_t *cache
    int64_t now
    uint16_t epoch
    found_item_t *items         # as they were met
    uint64_t count
    uint64_t capacity
    uint64_t linked
    uint64_t expired
    uint64_t flushed            # stored before the last flush
    uint64_t tagged             # with a tag whose generation is not known any more
    uint64_t no_room
    uint64_t repeated           # the same 48 bits of another key's hash

cdef int _found(void *context, uint64_t position, uint8_t kind, const char *payload,
                uint32_t size) noexcept nogil:
    # A record whose live bit is set; 0 takes it back.
    cdef rebuild_t *state = <rebuild_t *>context
    cdef record_t record
    cdef flash_item_t *head
    cdef found_item_t *item
    if kind == RECORD_PART:
        return 1                # counts as long as the item that names it
    record.data = <char *>payload - LOG_RECORD_HEADER
    record.size = LOG_RECORD_HEADER + <uint64_t>size
    head = record_item(&record)
    if kind != RECORD_ITEM or head == NULL or not _grown(state):
        return 0
    if head.epoch != state.epoch:
        state.flushed += 1
        return 0
    if head.expires_s and <int64_t>head.expires_s * 1000 <= state.now:
        state.expired += 1
        return 0
    if head.flags & ITEM_TAG:
        state.tagged += 1
        return 0
    item = &state.items[state.count]
    state.count += 1
    item.hash = siphash13(state.cache.arena.header.secret, record_key(&record),
                          flash_key_size(head))
    item.position = position
    item.expires_s = head.expires_s
    item.flags = head.flags
    return 1

cdef bint _grown(rebuild_t *state) noexcept nogil:
    cdef uint64_t capacity = state.capacity * 2 if state.capacity else 4096
    cdef found_item_t *larger
    if state.count < state.capacity:
        return True
    larger = <found_item_t *>realloc(state.items, capacity * sizeof(found_item_t))
    if larger == NULL:
        return False
    state.items = larger
    state.capacity = capacity
    return True

cdef bint _link_all(rebuild_t *state) noexcept nogil:
    # In the order of the hash, so that shard after shard and group after group is filled, out of
    # the processor's cache. Measured with 100-byte values: one by one 460 ns an item, so 160.
    cdef uint32_t *order = <uint32_t *>malloc(state.count * 4)
    cdef uint64_t number, ahead
    cdef shard_t *shard = NULL
    cdef shard_t *next
    cdef found_item_t *item
    cdef bint entered = False
    if order == NULL or not _sort(state, order):
        free(order)
        return False
    for number in range(state.count):
        item = &state.items[order[number]]
        next = shard_of(state.cache, item.hash)
        if next != shard:
            if entered:
                shard_leave(shard)
            shard = next
            entered = _enter(state.cache, shard)
        ahead = number + 4 * PREFETCHED
        if ahead < state.count:
            prefetch(&state.items[order[ahead]])
        ahead = number + PREFETCHED
        if ahead < state.count and shard_of(
                state.cache, state.items[order[ahead]].hash) == shard and entered:
            bucket_prefetch(state.cache, shard, state.items[order[ahead]].hash)
        if not entered or not _link(state, shard, item):
            log_dead(state.cache.log, item.position)
    if entered:
        shard_leave(shard)
    free(order)
    state.count = 0
    return True

cdef bint _sort(rebuild_t *state, uint32_t *order) noexcept nogil:
    # By the first 16 bits of the hash: finer than groups are, up to 80 M items.
    cdef uint32_t *ends = <uint32_t *>calloc(1 << 16, 4)
    cdef uint32_t sum = 0, bucket
    cdef uint64_t number
    if ends == NULL:
        return False
    for number in range(state.count):
        ends[state.items[number].hash >> 48] += 1
    for bucket in range(1 << 16):
        sum += ends[bucket]
        ends[bucket] = sum
    for number in range(state.count, 0, -1):
        bucket = <uint32_t>(state.items[number - 1].hash >> 48)
        ends[bucket] -= 1
        order[ends[bucket]] = <uint32_t>(number - 1)
    free(ends)
    return True

cdef bint _link(rebuild_t *state, shard_t *shard, const found_item_t *item) noexcept nogil:
    cdef cache_t *cache = state.cache
    cdef uint64_t low = (<uint64_t>SLOT_FLASH << SLOT_KIND_SHIFT) | (
        item.position // LOG_ALIGNMENT)
    if index_probe(cache, shard, item.hash) != NULL:
        state.repeated += 1
        return False
    if not index_has_room(cache, shard, item.hash) and not (
            index_grow(cache, shard, item.hash) and index_has_room(cache, shard, item.hash)):
        state.no_room += 1
        return False
    low |= (SLOT_STALE if item.flags & FLAG_STALE else 0) | (
        SLOT_WON if item.flags & FLAG_WON else 0)
    index_insert(cache, shard, item.hash, low,
                 slot_expiry_of(cache, <int64_t>item.expires_s * 1000))
    shard.items_flash += 1
    state.linked += 1
    return True


cdef class Rebuild(Found):
    """Links records into the index. For log/recovery.py's `recover`, one a thread.

    Keeps them until there are many; `finish` links the rest.
    """
    cdef CacheEngine engine
    cdef rebuild_t state

    def __cinit__(self, CacheEngine engine not None):
        self.engine = engine
        self.state.cache = engine.cache
        self.state.now = now_ms(engine.cache)
        self.state.epoch = <uint16_t>flush_epoch(engine.cache)
        self.found, self.context = _found, &self.state

    def __dealloc__(self):
        free(self.state.items)

    def finished(self) -> None:
        """A segment was read."""
        if self.state.count >= LINKED_AT_ONCE:
            self.finish()

    def finish(self) -> None:
        """Link what is kept."""
        cdef bint linked = True
        with nogil:
            if self.state.count:
                linked = _link_all(&self.state)
        if not linked:
            raise MemoryError()

    def counts(self) -> dict[str, int]:
        """What became of the records."""
        return {"items": self.state.linked, "expired": self.state.expired,
                "flushed": self.state.flushed, "tagged": self.state.tagged,
                "no_room": self.state.no_room, "repeated": self.state.repeated}


def make_room(CacheEngine engine not None, LiveMap live_map not None) -> None:
    """Grow the empty index at once for all that the live map shows, instead of step by step."""
    cdef cache_t *cache = engine.cache
    cdef uint32_t number, root
    cdef uint64_t items = 0, word, share
    with nogil:
        for word in range(live_map.segment_count * live_map.words):
            items += bits_of(live_map.bits[word])
        share = items // _roots(cache)
        share += share // 32        # shares differ a little
        for number in range(cache.shard_count):
            if not _enter(cache, &cache.shards[number]):
                continue
            for root in range(<uint32_t>1 << cache.root_bits):
                index_fill(cache, &cache.shards[number], root, NULL, <uint32_t>share)
            shard_leave(&cache.shards[number])


def start_from(CacheEngine engine not None, LiveMap live_map not None) -> None:
    """An arena without an index goes on where the live map says: flushes and CAS numbers."""
    cdef cache_t *cache = engine.cache
    cdef uint32_t number
    cache.arena.header.flush_word = live_map.header.flush_word
    if cache.arena.header.cas_next < live_map.header.cas_ceiling:
        cache.arena.header.cas_next = live_map.header.cas_ceiling
    for number in range(cache.shard_count):
        cache.shards[number].epoch = flush_epoch(cache)


def bind(CacheEngine engine not None, LiveMap live_map not None) -> None:
    """From here on the live map is told of flushes and CAS numbers as they happen."""
    cdef cache_t *cache = engine.cache
    cache.flush_note = &live_map.header.flush_word
    cache.cas_ceiling = &live_map.header.cas_ceiling
    flush_noted(cache)
    if live_map.header.cas_ceiling < cache.arena.header.cas_next:
        live_map.header.cas_ceiling = cache.arena.header.cas_next
