"""The hash index of a shard (layout and promises: index.pxd)."""
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from siltstone.cache.index cimport PREFETCH_KEYS
from siltstone.cache.shard cimport (
    DIRECTORY_PAGES, FRAME_INDEX, FRAME_SCRATCH, GROUP_PAGES_MAX, GROUP_TABLE_PAGES,
    INDEX_PAGE_BYTES, PAGE_SLOTS, SLOT_EMPTY, SLOT_RAM, cache_t, group_t, hash40_of, root_of,
    shard_of, shard_t, slot_hash40, slot_hash_high, slot_hash_low, slot_kind, slot_location,
    slot_t,
)
from siltstone.log.arena cimport LOCK_TAKEN, arena_t, frame_address, frame_give, frame_take
from siltstone.log.atomics cimport fence_release, load32_relaxed, prefetch, store32

cdef enum:
    BUCKET_SLOTS = 4
    PAGE_BUCKETS = 64
    DIRECTORY_ENTRIES = 2048        # of u16 in a page
    TABLE_GROUPS = 128              # descriptors in a page
    # Each shard starts at another cache line of its pages: else the first lines of a thousand
    # pages, which every lookup needs, would compete for one set of the processor's cache.
    DIRECTORY_STEP = 32             # entries in a cache line
    TABLE_STEP = 2                  # descriptors in a cache line

# Share of slots in use at which a group grows. At 11/12 with four-slot buckets a search that
# misses looks at about two cache lines; memory an item falls with every step nearer to 1.
cdef inline uint32_t _room(uint32_t pages) noexcept nogil:
    return pages * PAGE_SLOTS - pages * PAGE_SLOTS // 12

cdef inline char *_page(cache_t *cache, uint32_t number) noexcept nogil:
    # A number that a reader caught half written, or a wild write left, may lead to any frame, and
    # otherwise nowhere: to a page that holds nothing.
    if number < cache.index_page_first or number > cache.index_page_last:
        return cache.nowhere
    return cache.arena.base + <uint64_t>number * INDEX_PAGE_BYTES

cdef inline uint32_t _entry(cache_t *cache, shard_t *shard, uint64_t hash) noexcept nogil:
    cdef uint32_t depth = load32_relaxed(&shard.depth)
    if depth > 15:
        depth = 15
    return (root_of(cache, hash) << depth) | <uint32_t>(hash40_of(cache, hash) >> (40 - depth))

cdef inline uint16_t *_directory(cache_t *cache, shard_t *shard, uint32_t entry) noexcept nogil:
    cdef uint32_t page = entry // DIRECTORY_ENTRIES
    if page >= DIRECTORY_PAGES:
        page = 0
    return <uint16_t *>_page(cache, load32_relaxed(&shard.directory[page])) + (
        entry + shard.number * DIRECTORY_STEP) % DIRECTORY_ENTRIES

cdef group_t *group_at(cache_t *cache, shard_t *shard, uint32_t number) noexcept nogil:
    cdef uint32_t page = number // TABLE_GROUPS
    if page >= GROUP_TABLE_PAGES:
        page = 0
    return <group_t *>_page(cache, load32_relaxed(&shard.group_table[page])) + (
        number + shard.number * TABLE_STEP) % TABLE_GROUPS

cdef group_t *index_group(cache_t *cache, shard_t *shard, uint64_t hash) noexcept nogil:
    return group_at(cache, shard, _directory(cache, shard, _entry(cache, shard, hash))[0])

cdef inline slot_t *_bucket(cache_t *cache, group_t *group, uint32_t bucket) noexcept nogil:
    return <slot_t *>_page(cache, load32_relaxed(&group.page[bucket // PAGE_BUCKETS])) + (
        bucket % PAGE_BUCKETS) * BUCKET_SLOTS

cdef slot_t *group_slot(cache_t *cache, group_t *group, uint32_t number) noexcept nogil:
    return _bucket(cache, group, number // BUCKET_SLOTS) + number % BUCKET_SLOTS

cdef inline uint32_t _home(uint64_t hash40, uint32_t buckets) noexcept nogil:
    return <uint32_t>(((hash40 & 0x7ffffff) * buckets) >> 27)

cdef slot_t *index_probe(cache_t *cache, shard_t *shard, uint64_t hash) noexcept nogil:
    cdef group_t *group
    cdef slot_t *slots
    cdef uint64_t hash40 = hash40_of(cache, hash)
    cdef uint64_t low_part = slot_hash_low(hash40), high_part = slot_hash_high(hash40)
    cdef uint32_t pages, buckets, bucket, step
    cdef int number
    cdef bint gap
    if not shard.built:
        return NULL
    group = index_group(cache, shard, hash)
    pages = group.pages
    if pages == 0 or pages > GROUP_PAGES_MAX:
        return NULL
    buckets = pages * PAGE_BUCKETS
    bucket = _home(hash40, buckets)
    for step in range(buckets):
        slots = _bucket(cache, group, bucket)
        gap = False
        for number in range(BUCKET_SLOTS):
            if slot_kind(slots[number].low) == SLOT_EMPTY:
                gap = True
            elif (slots[number].high >> 28 << 28) == high_part and (
                    slots[number].low >> 60 << 60) == low_part:
                return &slots[number]
        if gap:
            return NULL
        bucket += 1
        if bucket == buckets:
            bucket = 0
    return NULL

cdef void index_prefetch(cache_t *cache, const uint64_t *hashes, uint32_t count) noexcept nogil:
    # Level by level, so that the misses of all the keys overlap. What is read may be half written:
    # it is only a guess where to look, and every number is kept within its bounds.
    cdef slot_t *buckets[PREFETCH_KEYS]
    cdef group_t *groups[PREFETCH_KEYS]
    cdef shard_t *shard
    cdef uint32_t number, pages
    if count > PREFETCH_KEYS:
        count = PREFETCH_KEYS
    for number in range(count):
        shard = shard_of(cache, hashes[number])
        prefetch(&shard.lock.sequence)
        prefetch(&shard.depth)
        prefetch(&shard.directory)
        prefetch(&shard.group_table)
    for number in range(count):
        shard = shard_of(cache, hashes[number])
        prefetch(_directory(cache, shard, _entry(cache, shard, hashes[number])))
    for number in range(count):
        groups[number] = index_group(cache, shard_of(cache, hashes[number]), hashes[number])
        prefetch(groups[number])
    for number in range(count):
        pages = groups[number].pages
        if pages > GROUP_PAGES_MAX:
            pages = 0
        buckets[number] = NULL
        if pages:
            buckets[number] = _bucket(cache, groups[number], _home(
                hash40_of(cache, hashes[number]), pages * PAGE_BUCKETS))
            prefetch(buckets[number])
    for number in range(count):
        if buckets[number] != NULL:
            _prefetch_item(cache, buckets[number], hash40_of(cache, hashes[number]))

cdef inline void _prefetch_item(cache_t *cache, slot_t *slots, uint64_t hash40) noexcept nogil:
    cdef uint64_t low_part = slot_hash_low(hash40), high_part = slot_hash_high(hash40), offset
    cdef int number
    for number in range(BUCKET_SLOTS):
        if (slots[number].high >> 28 << 28) == high_part and (
                slots[number].low >> 60 << 60) == low_part and (
                slot_kind(slots[number].low) == SLOT_RAM):
            offset = slot_location(slots[number].low) * 8
            if offset + 192 <= cache.arena_bytes:
                prefetch(cache.arena.base + offset)
                prefetch(cache.arena.base + offset + 64)
                prefetch(cache.arena.base + offset + 128)

cdef void bucket_prefetch(cache_t *cache, shard_t *shard, uint64_t hash) noexcept nogil:
    cdef group_t *group
    if shard.built:
        group = index_group(cache, shard, hash)
        if 0 < group.pages <= GROUP_PAGES_MAX:
            prefetch(_bucket(cache, group, _home(
                hash40_of(cache, hash), <uint32_t>group.pages * PAGE_BUCKETS)))

cdef bint group_sound(cache_t *cache, shard_t *shard, group_t *group) noexcept nogil:
    cdef uint32_t number
    if group.pages > GROUP_PAGES_MAX or group.depth > shard.depth or (
            group.used > group.pages * PAGE_SLOTS):
        return False
    for number in range(group.pages):
        if not page_sound(cache, shard, group.page[number]):
            return False
    return True

cdef inline slot_t *_place(cache_t *cache, group_t *group, uint64_t hash40) noexcept nogil:
    # First empty slot from home; there is one, since a group grows before it is full. (Were its
    # count spoilt, the home slot is as good as any.)
    cdef uint32_t buckets = group.pages * PAGE_BUCKETS, step
    cdef uint32_t bucket = _home(hash40, buckets)
    cdef slot_t *slots
    cdef int number
    for step in range(buckets):
        slots = _bucket(cache, group, bucket)
        for number in range(BUCKET_SLOTS):
            if slot_kind(slots[number].low) == SLOT_EMPTY:
                return &slots[number]
        bucket += 1
        if bucket == buckets:
            bucket = 0
    return _bucket(cache, group, bucket)

cdef bint index_has_room(cache_t *cache, shard_t *shard, uint64_t hash) noexcept nogil:
    cdef group_t *group
    if not shard.built:
        return False
    group = index_group(cache, shard, hash)
    return group.used < _room(group.pages)

cdef slot_t *index_insert(cache_t *cache, shard_t *shard, uint64_t hash, uint64_t low,
                          uint64_t high) noexcept nogil:
    cdef group_t *group = index_group(cache, shard, hash)
    cdef uint64_t hash40 = hash40_of(cache, hash)
    cdef slot_t *slot = _place(cache, group, hash40)
    slot.high = slot_hash_high(hash40) | high
    slot.low = slot_hash_low(hash40) | low
    group.used += 1
    return slot

cdef void index_remove(cache_t *cache, shard_t *shard, group_t *group, slot_t *slot) noexcept nogil:
    # Close the gap: whatever was pushed past this bucket because it was full moves back into it.
    cdef uint32_t buckets = group.pages * PAGE_BUCKETS
    cdef uint32_t hole = _bucket_of(cache, group, slot), bucket = hole, home, step
    cdef slot_t *slots
    cdef slot_t *moved
    cdef int number
    cdef bint was_full = _is_full(_bucket(cache, group, hole))
    slot.low = 0
    slot.high = 0
    group.used -= 1
    for step in range(buckets):
        if not was_full:
            return
        bucket += 1
        if bucket == buckets:
            bucket = 0
        slots = _bucket(cache, group, bucket)
        was_full = _is_full(slots)
        moved = NULL
        for number in range(BUCKET_SLOTS):
            if slot_kind(slots[number].low) == SLOT_EMPTY:
                continue
            home = _home(slot_hash40(slots[number].low, slots[number].high), buckets)
            if _distance(home, bucket, buckets) >= _distance(hole, bucket, buckets):
                moved = &slots[number]
                break
        if moved != NULL:
            slot[0] = moved[0]
            moved.low = 0
            moved.high = 0
            slot = moved
            hole = bucket

cdef inline bint _is_full(slot_t *slots) noexcept nogil:
    cdef int number
    for number in range(BUCKET_SLOTS):
        if slot_kind(slots[number].low) == SLOT_EMPTY:
            return False
    return True

cdef inline uint32_t _distance(uint32_t first, uint32_t last, uint32_t buckets) noexcept nogil:
    return last - first if last >= first else last + buckets - first

cdef uint32_t _bucket_of(cache_t *cache, group_t *group, slot_t *slot) noexcept nogil:
    cdef uint64_t offset = <char *>slot - cache.arena.base
    cdef uint32_t page = <uint32_t>(offset // INDEX_PAGE_BYTES), number
    for number in range(group.pages):
        if group.page[number] == page:
            return number * PAGE_BUCKETS + <uint32_t>(offset % INDEX_PAGE_BYTES) // 64
    return 0

# Growing ------------------------------------------------------------------------------------

cdef uint32_t _page_take(cache_t *cache, shard_t *shard) noexcept nogil:
    # A zeroed page of a frame that the shard owns; 0 = none to be had.
    cdef arena_t *arena = cache.arena
    cdef int64_t frame
    cdef uint32_t page, first, number
    if shard.pages_free == 0:
        frame = frame_take(arena, shard.number + 1, cache.index_reserve)
        if frame <= 0:
            return 0
        arena.frames[frame - 1].kind = FRAME_INDEX
        first = <uint32_t>((arena.header.frames_offset + (
            <uint64_t>(frame - 1) << arena.header.frame_shift)) // INDEX_PAGE_BYTES)
        for number in range(cache.frame_bytes // INDEX_PAGE_BYTES, 0, -1):
            (<uint32_t *>_page(cache, first + number - 1))[0] = shard.pages_free
            shard.pages_free = first + number - 1
    page = shard.pages_free
    if not page_sound(cache, shard, page):
        shard.damaged = 1
        return 0
    shard.pages_free = (<uint32_t *>_page(cache, page))[0]
    memset(_page(cache, page), 0, INDEX_PAGE_BYTES)
    shard.index_pages += 1
    return page

cdef bint _build(cache_t *cache, shard_t *shard) noexcept nogil:
    # The directory and one empty group a root; groups get their first page when it is needed.
    cdef uint32_t root
    if shard.directory[0] == 0:
        shard.directory[0] = _page_take(cache, shard)
    if shard.directory[0] == 0:
        return False
    shard.group_table[0] = _page_take(cache, shard)
    if shard.group_table[0] == 0:
        return False
    shard.groups = 1 << cache.root_bits
    for root in range(shard.groups):
        _directory(cache, shard, root)[0] = <uint16_t>root
    shard.built = 1
    return True

cdef bint index_grow(cache_t *cache, shard_t *shard, uint64_t hash) noexcept nogil:
    cdef group_t *group
    cdef uint32_t page
    cdef bint done = False
    if not shard.built and not _build(cache, shard):
        return False
    group = index_group(cache, shard, hash)
    if not _copy_out(cache, shard, group):
        return False
    if group.pages == GROUP_PAGES_MAX:
        done = _split(cache, shard, hash, group)
    else:
        page = _page_take(cache, shard)
        if page:
            group.page[group.pages] = page
            group.pages += 1
            _put_back(cache, shard, group, group, 0)
            done = True
    _scratch_give(cache, shard)
    return done

cdef bint _split(cache_t *cache, shard_t *shard, uint64_t hash, group_t *group) noexcept nogil:
    cdef uint32_t page = _page_take(cache, shard), other, number
    cdef group_t *second
    if page == 0:
        return False
    other = _halve(cache, shard, hash, group)
    if other == 0:
        (<uint32_t *>_page(cache, page))[0] = shard.pages_free
        shard.pages_free = page
        shard.index_pages -= 1
        return False
    second = group_at(cache, shard, other)
    for number in range(3):
        second.page[number] = group.page[4 + number]
    second.page[3] = page
    second.pages = group.pages = 4
    _put_back(cache, shard, group, second, 40 - group.depth)
    return True

cdef uint32_t _halve(cache_t *cache, shard_t *shard, uint64_t hash, group_t *group) noexcept nogil:
    # A second group for the upper half of the group's hashes: its descriptor and its share of the
    # directory, no pages yet. Its number; 0 = no frame, nothing was changed.
    cdef uint32_t other, entry, first, span, number
    cdef group_t *second
    if group.depth == shard.depth and not _double(cache, shard):
        return 0
    other = shard.groups
    if other % TABLE_GROUPS == 0:
        if other // TABLE_GROUPS >= GROUP_TABLE_PAGES:
            return 0
        if shard.group_table[other // TABLE_GROUPS] == 0:
            shard.group_table[other // TABLE_GROUPS] = _page_take(cache, shard)
        if shard.group_table[other // TABLE_GROUPS] == 0:
            return 0
    second = group_at(cache, shard, other)
    entry = _entry(cache, shard, hash)
    span = 1 << (shard.depth - group.depth)
    first = entry // span * span
    shard.groups += 1
    group.depth += 1
    second.depth = group.depth
    for number in range(first + span // 2, first + span):
        _directory(cache, shard, number)[0] = <uint16_t>other
    return other

cdef bint _double(cache_t *cache, shard_t *shard) noexcept nogil:
    cdef uint32_t size = 1 << (cache.root_bits + shard.depth), entry, page
    if size * 2 > DIRECTORY_PAGES * DIRECTORY_ENTRIES:
        return False
    for page in range((size * 2 + DIRECTORY_ENTRIES - 1) // DIRECTORY_ENTRIES):
        if shard.directory[page] == 0:
            shard.directory[page] = _page_take(cache, shard)
            if shard.directory[page] == 0:
                return False
    for entry in range(size, 0, -1):
        _directory(cache, shard, 2 * entry - 1)[0] = _directory(cache, shard, entry - 1)[0]
        _directory(cache, shard, 2 * entry - 2)[0] = _directory(cache, shard, entry - 1)[0]
    shard.depth += 1
    return True

cdef void _put_back(cache_t *cache, shard_t *shard, group_t *first, group_t *second,
                    uint32_t bit) noexcept nogil:
    # Lay the pages out anew: every copied slot goes where `bit` of its hash says.
    cdef uint32_t number, slots = shard.scratch_pages * PAGE_SLOTS
    cdef slot_t *slot
    cdef group_t *target
    cdef uint64_t hash40
    _empty(cache, first)
    _empty(cache, second)
    for number in range(slots):
        slot = scratch_slot(cache, shard, number)
        if slot_kind(slot.low) != SLOT_EMPTY:
            hash40 = slot_hash40(slot.low, slot.high)
            target = second if (hash40 >> bit) & 1 else first
            _place(cache, target, hash40)[0] = slot[0]
            target.used += 1

cdef void _empty(cache_t *cache, group_t *group) noexcept nogil:
    cdef uint32_t number
    for number in range(group.pages):
        memset(_page(cache, group.page[number]), 0, INDEX_PAGE_BYTES)
    group.used = 0

# The pages of a group that is laid out anew lie meanwhile in frames of the shard's own. Were they
# anywhere else, a process that dies here would take slots with it whose records count on flash.

cdef slot_t *scratch_slot(cache_t *cache, shard_t *shard, uint32_t number) noexcept nogil:
    cdef uint64_t offset = <uint64_t>number * sizeof(slot_t)
    cdef uint32_t frame = shard.scratch[offset // cache.frame_bytes % GROUP_PAGES_MAX]
    if frame == 0 or frame > cache.arena.header.frame_count_max:
        return NULL
    return <slot_t *>(frame_address(cache.arena, frame - 1) + offset % cache.frame_bytes)

cdef bint _copy_out(cache_t *cache, shard_t *shard, group_t *group) noexcept nogil:
    cdef uint64_t bytes = <uint64_t>group.pages * INDEX_PAGE_BYTES
    cdef uint32_t number
    cdef int64_t frame
    for number in range(<uint32_t>((bytes + cache.frame_bytes - 1) // cache.frame_bytes)):
        if shard.scratch[number] == 0:
            frame = frame_take(cache.arena, shard.number + 1, 0)
            if frame <= 0:
                _scratch_give(cache, shard)
                return False
            cache.arena.frames[frame - 1].kind = FRAME_SCRATCH
            shard.scratch[number] = <uint32_t>frame
    for number in range(group.pages):
        memcpy(scratch_slot(cache, shard, number * PAGE_SLOTS), _page(cache, group.page[number]),
               INDEX_PAGE_BYTES)
    store32(&shard.scratch_pages, group.pages)
    fence_release()
    return True

cdef void _scratch_give(cache_t *cache, shard_t *shard) noexcept nogil:
    # A frame that the pool does not take just now is used the next time.
    cdef uint32_t number
    store32(&shard.scratch_pages, 0)
    for number in range(GROUP_PAGES_MAX):
        if shard.scratch[number] and (
                frame_give(cache.arena, shard.scratch[number] - 1) == LOCK_TAKEN):
            shard.scratch[number] = 0

# All at once --------------------------------------------------------------------------------

cdef uint32_t index_fill(cache_t *cache, shard_t *shard, uint32_t root, slot_t *slots,
                         uint32_t count) noexcept nogil:
    if not shard.built and not _build(cache, shard):
        return 0
    return _fill(cache, shard, <uint64_t>root << (cache.hash_shift + 40), 0, slots, count)

cdef uint32_t _fill(cache_t *cache, shard_t *shard, uint64_t hash, uint32_t depth, slot_t *slots,
                    uint32_t count) noexcept nogil:
    # Groups are split until their items fit, then get their pages; no slot is placed twice.
    cdef group_t *group = index_group(cache, shard, hash)
    cdef uint32_t lower, number
    cdef uint64_t bit
    if count > _room(GROUP_PAGES_MAX) and _halve(cache, shard, hash, group):
        bit = <uint64_t>1 << (39 - depth)
        lower = count // 2 if slots == NULL else _partition(slots, count, bit)
        return _fill(cache, shard, hash, depth + 1, slots, lower) + _fill(
            cache, shard, hash | (bit << cache.hash_shift), depth + 1,
            NULL if slots == NULL else slots + lower, count - lower)
    while group.pages < GROUP_PAGES_MAX and _room(group.pages) < count:
        number = _page_take(cache, shard)
        if number == 0:
            break
        group.page[group.pages] = number
        group.pages += 1
    if count > _room(group.pages):
        count = _room(group.pages)
    if slots == NULL:
        return count
    for number in range(count):
        _place(cache, group, slot_hash40(slots[number].low, slots[number].high))[0] = slots[number]
        slots[number].low = 0
    group.used = <uint16_t>count
    return count

cdef uint32_t _partition(slot_t *slots, uint32_t count, uint64_t bit) noexcept nogil:
    # Those without the bit first; how many they are.
    cdef uint32_t first = 0, last = count
    cdef slot_t held
    while True:
        while first < last and not slot_hash40(slots[first].low, slots[first].high) & bit:
            first += 1
        while first < last and slot_hash40(slots[last - 1].low, slots[last - 1].high) & bit:
            last -= 1
        if first == last:
            return first
        held = slots[first]
        slots[first] = slots[last - 1]
        slots[last - 1] = held
