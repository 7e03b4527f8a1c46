"""Items in RAM (layout and promises: items.pxd)."""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from siltstone.cache.items cimport *
from siltstone.cache.shard cimport FRAME_CLOSED, FRAME_ITEMS, cache_t, queue_t, shard_t
from siltstone.log.arena cimport LOCK_TAKEN, frame_address, frame_give, frame_t, frame_take
from siltstone.log.atomics cimport load32_relaxed, load64_relaxed

cdef enum:
    PART_HEADER = 24
    CONTENT_MIN = 64        # a head or part is not begun for fewer content bytes than these

cdef inline uint32_t _align8(uint64_t size) noexcept nogil:
    return <uint32_t>((size + 7) & ~<uint64_t>7)

cdef inline uint32_t _frame_of(cache_t *cache, void *entry) noexcept nogil:
    return <uint32_t>((<uint64_t>(<char *>entry - cache.arena.base)
                       - cache.frames_offset) >> cache.frame_shift)

cdef uint32_t entry_bytes(char *entry) noexcept nogil:
    cdef item_t *item = <item_t *>entry
    if item.kind == KIND_PART or item.kind == KIND_DEAD_PART:
        return _align8(PART_HEADER + (<item_part_t *>entry).size)
    if item.flags & ITEM_PARTS:
        return _align8(item_fields(item.flags) + item_link(item).size)
    return _align8(item_fields(item.flags) + item_content(item))

# Queues of frames ---------------------------------------------------------------------------

cdef inline uint32_t _room(cache_t *cache, shard_t *shard, int queue) noexcept nogil:
    cdef uint32_t tail = shard.queue[queue].tail
    if tail == 0 or cache.arena.frames[tail - 1].kind & FRAME_CLOSED:
        return 0
    return cache.frame_bytes - cache.arena.frames[tail - 1].filled_bytes

cdef bint _queue_open(cache_t *cache, shard_t *shard, int queue, uint32_t reserve) noexcept nogil:
    # A fresh frame at the young end.
    cdef queue_t *line = &shard.queue[queue]
    cdef frame_t *frames = cache.arena.frames
    cdef uint32_t old = line.tail
    cdef int64_t taken = frame_take(cache.arena, shard.number + 1, reserve)
    if taken <= 0:
        return False
    frames[taken - 1].kind = FRAME_ITEMS + queue
    frames[taken - 1].prev = old
    if old:
        frames[old - 1].next = <uint32_t>taken
    else:
        line.head = <uint32_t>taken
    line.tail = <uint32_t>taken
    line.frames += 1
    if old and frames[old - 1].live_bytes == 0:
        frame_release(cache, shard, old - 1)
    return True

cdef void queue_close(cache_t *cache, shard_t *shard, int queue) noexcept nogil:
    # No more goes into the open frame: what comes next opens another.
    cdef uint32_t tail = shard.queue[queue].tail
    if tail:
        cache.arena.frames[tail - 1].kind |= FRAME_CLOSED

cdef bint frame_release(cache_t *cache, shard_t *shard, uint32_t number) noexcept nogil:
    cdef frame_t *frames = cache.arena.frames
    cdef frame_t *frame = &frames[number]
    cdef queue_t *line = &shard.queue[(frame.kind & ~FRAME_CLOSED) - FRAME_ITEMS]
    cdef uint32_t prev = frame.prev, next = frame.next
    if frame_give(cache.arena, number) != LOCK_TAKEN:
        return False
    if prev:
        frames[prev - 1].next = next
    else:
        line.head = next
    if next:
        frames[next - 1].prev = prev
    else:
        line.tail = prev
        if prev:
            frames[prev - 1].kind |= FRAME_CLOSED
    line.frames -= 1
    return True

cdef inline char *_claim(cache_t *cache, shard_t *shard, int queue, uint32_t size) noexcept nogil:
    # The caller has seen that the room is there.
    cdef uint32_t number = shard.queue[queue].tail - 1
    cdef frame_t *frame = &cache.arena.frames[number]
    cdef char *place = frame_address(cache.arena, number) + frame.filled_bytes
    frame.filled_bytes += size
    frame.live_bytes += size
    return place

cdef void _give_up(cache_t *cache, shard_t *shard, void *entry, uint32_t size) noexcept nogil:
    cdef uint32_t number = _frame_of(cache, entry)
    cdef frame_t *frame = &cache.arena.frames[number]
    cdef int queue = <int>(frame.kind & ~FRAME_CLOSED) - FRAME_ITEMS
    frame.live_bytes -= size
    if frame.live_bytes == 0:
        if shard.queue[queue].tail == number + 1 and not frame.kind & FRAME_CLOSED:
            frame.filled_bytes = 0
        else:
            frame_release(cache, shard, number)

# Making and freeing -------------------------------------------------------------------------

cdef item_t *item_new(cache_t *cache, shard_t *shard, int queue, uint32_t reserve, uint8_t flags,
                      uint32_t key_size, uint64_t value_size) noexcept nogil:
    cdef uint64_t content = key_size + value_size
    cdef uint32_t fields = item_fields(flags & ~ITEM_PARTS), room = _room(cache, shard, queue)
    cdef uint32_t size, here
    cdef item_t *item
    flags &= ~ITEM_PARTS
    if fields + content > room:
        if fields + content <= cache.split_bytes or room < fields + 16 + CONTENT_MIN:
            if not _queue_open(cache, shard, queue, reserve):
                return NULL
            room = cache.frame_bytes
    if fields + content > room:
        flags |= ITEM_PARTS
        fields += 16
        here = room - fields
        size = room
    else:
        here = <uint32_t>content
        size = _align8(fields + content)
    item = <item_t *>_claim(cache, shard, queue, size)
    item.cas = 0
    item.key_less = <uint16_t>(key_size - 1)
    item.value_size = <uint32_t>value_size
    item.flags = flags
    item.kind = KIND_HEAD
    shard.bytes_used += size
    if flags & ITEM_PARTS:
        item_link(item).next = 0
        item_link(item).size = here
        item_link(item).zero = 0
        if not _add_parts(cache, shard, queue, reserve, item, content - here):
            item_free(cache, shard, item)
            return NULL
    return item

cdef bint _add_parts(cache_t *cache, shard_t *shard, int queue, uint32_t reserve, item_t *item,
                     uint64_t rest) noexcept nogil:
    cdef uint64_t *link = &item_link(item).next
    cdef uint64_t prev = item_offset(cache, item)
    cdef item_part_t *part
    cdef uint32_t here, size
    while rest:
        if _room(cache, shard, queue) < PART_HEADER + CONTENT_MIN:
            if not _queue_open(cache, shard, queue, reserve):
                return False
        here = _room(cache, shard, queue) - PART_HEADER
        if here > rest:
            here = <uint32_t>rest
        size = _align8(PART_HEADER + here)
        part = <item_part_t *>_claim(cache, shard, queue, size)
        part.next = 0
        part.prev = prev
        part.size = here
        part.zero = 0
        part.flags = 0
        part.kind = KIND_PART
        shard.bytes_used += size
        prev = <uint64_t>(<char *>part - cache.arena.base)
        link[0] = prev
        link = &part.next
        rest -= here
    return True

cdef void item_free(cache_t *cache, shard_t *shard, item_t *item) noexcept nogil:
    cdef uint64_t next = item_link(item).next if item.flags & ITEM_PARTS else 0
    cdef uint32_t size = entry_bytes(<char *>item)
    cdef item_part_t *part
    item.kind = KIND_DEAD_HEAD
    shard.bytes_used -= size
    _give_up(cache, shard, item, size)
    while next:
        part = <item_part_t *>(cache.arena.base + next)
        next = part.next
        size = entry_bytes(<char *>part)
        part.kind = KIND_DEAD_PART
        shard.bytes_used -= size
        _give_up(cache, shard, part, size)

cdef uint64_t _piece_copy(cache_t *cache, shard_t *shard, int queue, uint32_t reserve,
                          const char *entry, uint32_t fields, uint32_t here, uint64_t next,
                          uint32_t *kept, uint64_t *second) noexcept nogil:
    # Copy a piece of a large item (its fields, then `here` bytes of content) to the young end. It
    # is cut where the frame ends, so that emptying frames always gains room: *kept bytes stay with
    # the copy, the rest is a new part, *second, linked before `next`. 0: no frame.
    cdef uint32_t room = _room(cache, shard, queue), first, rest, size
    cdef char *place
    cdef item_part_t *part
    if room < fields + CONTENT_MIN:
        if not _queue_open(cache, shard, queue, reserve):
            return 0
        room = cache.frame_bytes
    first = here if fields + here <= room else room - fields
    rest = here - first
    size = _align8(fields + first)
    place = _claim(cache, shard, queue, size)
    memcpy(place, entry, fields + first)
    kept[0] = first
    second[0] = 0
    if rest:
        if not _queue_open(cache, shard, queue, reserve):
            cache.arena.frames[shard.queue[queue].tail - 1].filled_bytes -= size
            cache.arena.frames[shard.queue[queue].tail - 1].live_bytes -= size
            return 0
        part = <item_part_t *>_claim(cache, shard, queue, _align8(PART_HEADER + rest))
        part.next = next
        part.prev = <uint64_t>(place - cache.arena.base)
        part.size = rest
        part.zero = 0
        part.flags = 0
        part.kind = KIND_PART
        memcpy(<char *>part + PART_HEADER, entry + fields + first, rest)
        shard.bytes_used += size + _align8(PART_HEADER + rest) - _align8(fields + here)
        second[0] = <uint64_t>(<char *>part - cache.arena.base)
    if next:
        (<item_part_t *>(cache.arena.base + next)).prev = second[0] if rest else (
            <uint64_t>(place - cache.arena.base))
    return <uint64_t>(place - cache.arena.base)

cdef bint part_move(cache_t *cache, shard_t *shard, int queue, uint32_t reserve,
                    item_part_t *part) noexcept nogil:
    cdef uint32_t size = entry_bytes(<char *>part), kept
    cdef uint64_t second, offset = _piece_copy(cache, shard, queue, reserve, <char *>part,
                                               PART_HEADER, part.size, part.next, &kept, &second)
    cdef item_t *head
    if offset == 0:
        return False
    if second:
        (<item_part_t *>(cache.arena.base + offset)).size = kept
        (<item_part_t *>(cache.arena.base + offset)).next = second
    head = item_at(cache, part.prev)
    if head.kind == KIND_HEAD:
        item_link(head).next = offset
    else:
        (<item_part_t *>head).next = offset
    part.kind = KIND_DEAD_PART
    _give_up(cache, shard, part, size)
    return True

cdef item_t *head_move(cache_t *cache, shard_t *shard, int queue, uint32_t reserve,
                       item_t *item) noexcept nogil:
    cdef uint32_t size = entry_bytes(<char *>item), kept
    cdef uint64_t second, offset = _piece_copy(
        cache, shard, queue, reserve, <char *>item, item_fields(item.flags), item_link(item).size,
        item_link(item).next, &kept, &second)
    if offset == 0:
        return NULL
    if second:
        item_link(item_at(cache, offset)).size = kept
        item_link(item_at(cache, offset)).next = second
    item.kind = KIND_DEAD_HEAD
    _give_up(cache, shard, item, size)
    return item_at(cache, offset)

# Content ------------------------------------------------------------------------------------

cdef char *item_span(cache_t *cache, item_t *item, uint64_t start, uint64_t *size) noexcept nogil:
    cdef uint64_t here, next
    cdef item_part_t *part
    cdef char *content = <char *>item + item_fields(item.flags)
    if not item.flags & ITEM_PARTS:
        size[0] = item_content(item) - start
        return content + start
    here = item_link(item).size
    next = item_link(item).next
    while start >= here:
        part = <item_part_t *>(cache.arena.base + next)
        start -= here
        here = part.size
        next = part.next
        content = <char *>part + PART_HEADER
    size[0] = here - start
    return content + start

cdef void item_write(cache_t *cache, item_t *item, uint64_t start, const char *data,
                     uint64_t size) noexcept nogil:
    cdef uint64_t here
    cdef char *place
    while size:
        place = item_span(cache, item, start, &here)
        if here > size:
            here = size
        memcpy(place, data, here)
        start += here
        data += here
        size -= here

cdef void item_read(cache_t *cache, item_t *item, uint64_t start, char *data,
                    uint64_t size) noexcept nogil:
    cdef uint64_t here
    cdef char *place
    while size:
        place = item_span(cache, item, start, &here)
        if here > size:
            here = size
        memcpy(data, place, here)
        start += here
        data += here
        size -= here

cdef bint item_has_key(cache_t *cache, item_t *item, const char *key,
                       uint32_t key_size) noexcept nogil:
    cdef uint64_t here, start = 0
    cdef char *place
    if item_key_size(item) != key_size:
        return False
    while start < key_size:
        place = item_span(cache, item, start, &here)
        if here > key_size - start:
            here = key_size - start
        if memcmp(place, key + start, here) != 0:
            return False
        start += here
    return True

# Offsets that a wild write may have changed ---------------------------------------------------

cdef inline bint _owned(cache_t *cache, shard_t *shard, uint64_t offset) noexcept nogil:
    # `offset` lies in a frame; whose?
    cdef uint64_t number = (offset - cache.frames_offset) >> (
        cache.frame_shift)
    return cache.arena.frames[number].owner == shard.number + 1

cdef bint _part_here(cache_t *cache, shard_t *shard, uint64_t offset) noexcept nogil:
    cdef item_part_t *part = <item_part_t *>(cache.arena.base + offset)
    if offset < cache.frames_offset or offset + PART_HEADER > cache.arena_bytes or (
            offset & 7):
        return False
    return _owned(cache, shard, offset) and part.kind == KIND_PART and part.size != 0 and (
        _in_frame(cache, offset) + PART_HEADER + part.size <= cache.frame_bytes)

cdef bint parts_sound(cache_t *cache, shard_t *shard, uint64_t offset) noexcept nogil:
    cdef item_t head
    cdef item_part_t *part
    cdef uint64_t here = 0, next, prev = offset, total
    if not item_snapshot(cache, offset, &head, &here):
        return False
    total = item_content(&head)
    next = item_link(item_at(cache, offset)).next
    while next and here < total:
        part = <item_part_t *>(cache.arena.base + next)
        if not _part_here(cache, shard, next) or part.prev != prev:
            return False
        here += part.size
        prev = next
        next = part.next
    return here == total and next == 0

cdef bint part_sound(cache_t *cache, shard_t *shard, uint64_t offset) noexcept nogil:
    cdef item_part_t *part = <item_part_t *>(cache.arena.base + offset)
    cdef item_t head
    cdef uint64_t here = 0
    if not _part_here(cache, shard, offset):
        return False
    if part.next and (not _part_here(cache, shard, part.next)
                      or (<item_part_t *>(cache.arena.base + part.next)).prev != offset):
        return False
    if _part_here(cache, shard, part.prev):
        return (<item_part_t *>(cache.arena.base + part.prev)).next == offset
    return item_snapshot(cache, part.prev, &head, &here) and _owned(cache, shard, part.prev) and (
        head.flags & ITEM_PARTS != 0 and item_link(item_at(cache, part.prev)).next == offset)

# Readers: nothing is locked, every number may be half written -------------------------------

cdef bint item_snapshot(cache_t *cache, uint64_t offset, item_t *head,
                        uint64_t *here) noexcept nogil:
    # Bounds are checked on the copy: what lies at `offset` may change between any two looks.
    cdef uint64_t *words = <uint64_t *>(cache.arena.base + offset)
    cdef uint64_t *copy = <uint64_t *>head
    cdef uint64_t end
    if offset < cache.frames_offset or offset + 24 > cache.arena_bytes or offset & 7:
        return False
    copy[0] = load64_relaxed(words)
    copy[1] = load64_relaxed(words + 1)
    copy[2] = load64_relaxed(words + 2)
    end = _in_frame(cache, offset) + item_fields(head.flags)
    if head.kind != KIND_HEAD or end > cache.frame_bytes:
        return False
    if head.flags & ITEM_PARTS:
        here[0] = load32_relaxed(&(<item_link_t *>(
            <char *>words + item_fields(head.flags) - sizeof(item_link_t))).size)
    else:
        here[0] = item_content(head)
    return end + here[0] <= cache.frame_bytes

cdef inline uint64_t _in_frame(cache_t *cache, uint64_t offset) noexcept nogil:
    return (offset - cache.frames_offset) & (cache.frame_bytes - 1)

cdef bint item_read_checked(cache_t *cache, item_t *item, uint64_t start, char *data,
                            uint64_t size) noexcept nogil:
    # As item_read, but trusts no link: each part must lie inside one frame of the arena.
    cdef item_t head
    cdef uint64_t here = 0, next, piece
    cdef char *content
    if not item_snapshot(cache, item_offset(cache, item), &head, &here) or (
            not head.flags & ITEM_PARTS):
        return False
    content = <char *>item + item_fields(head.flags)
    next = load64_relaxed(&(<item_link_t *>(content - sizeof(item_link_t))).next)
    while True:
        if start < here:
            piece = here - start
            if piece > size:
                piece = size
            memcpy(data, content + start, piece)
            data += piece
            size -= piece
            start += piece
        if size == 0:
            return True
        start -= here
        if next < cache.frames_offset or next + PART_HEADER > cache.arena_bytes or (
                next & 7):
            return False
        content = cache.arena.base + next + PART_HEADER
        here = load32_relaxed(&(<item_part_t *>(cache.arena.base + next)).size)
        if here == 0 or _in_frame(cache, next) + PART_HEADER + here > cache.frame_bytes:
            return False
        next = load64_relaxed(&(<item_part_t *>(cache.arena.base + next)).next)
