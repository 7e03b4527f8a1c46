"""Changing an item (promises: change.pxd).

Each operation first makes a *view* of what is there now (an item in RAM, a flash record that the
caller has read, or nothing), then says what shall be there. The CAS rule is in one place.
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcmp, memcpy, memset

from siltstone.cache.change cimport *
from siltstone.cache.engine cimport *
from siltstone.cache.eviction cimport purge_group, release, unlink
from siltstone.cache.flash cimport (
    flash_item_t, flash_key_size, record_item, record_key, record_tag, record_value,
)
from siltstone.cache.index cimport (
    group_slot, group_sound, index_grow, index_group, index_has_room, index_insert, index_probe,
    index_remove, slot_sound,
)
from siltstone.cache.items cimport *
from siltstone.cache.shard cimport *
from siltstone.cache.tags cimport tag_fresh
from siltstone.log.atomics cimport load64_relaxed
from siltstone.log.log cimport LOG_ALIGNMENT, LOG_OK, log_dead, log_live

cdef enum:
    PURGE_WORTH = 16            # slots, about 1 % of a full group

cdef extern from *:
    const uint64_t U64_MAX "UINT64_MAX"

cdef struct view_t:             # what is under the key now
    bint exists
    slot_t *slot                # also set when the slot is a ghost or another key's
    item_t *item                # in RAM
    const char *value           # of a flash record, or of an item in one piece; else NULL
    uint64_t value_size
    uint64_t cas
    int64_t expire_ms
    int64_t record_expire_ms    # what the flash record says, which the slot may put off
    uint64_t tag
    uint32_t client_flags
    uint8_t flags
    bint fetched
    bint stale
    bint won
    bint was_ghost

# What is there ------------------------------------------------------------------------------

cdef int _view(cache_t *cache, shard_t *shard, request_t *request, record_t *record,
               reply_t *reply, view_t *view, int64_t now) noexcept nogil:
    cdef slot_t *slot = index_probe(cache, shard, request.hash)
    cdef uint64_t kind
    memset(view, 0, sizeof(view_t))
    if slot != NULL and not slot_sound(cache, shard, slot):
        count(cache, COUNT_BAD_OFFSETS, 1)
        shard_clear(cache, shard)
        slot = NULL
    view.slot = slot
    if slot == NULL:
        return CACHE_OK
    kind = slot_kind(slot.low)
    view.fetched = (slot.low & SLOT_FETCHED) != 0
    view.stale = (slot.low & SLOT_STALE) != 0
    view.won = (slot.low & SLOT_WON) != 0
    if kind == SLOT_GHOST:
        view.was_ghost = shard.evictions - slot_location(slot.low) <= shard.items_ram
        return CACHE_OK
    if kind == SLOT_RAM:
        return _view_ram(cache, shard, request, view, now)
    if slot_expired(cache, slot.high, now) or not flash_current(cache, slot.low):
        unlink(cache, shard, request.hash, slot)
        view.slot = NULL
        return CACHE_OK
    if request.op == OP_SET and not request.options & (OPT_CAS | OPT_INVALIDATE | OPT_KEEP_TTL):
        return CACHE_OK         # replaced unread
    return _view_flash(cache, shard, request, record, reply, view)

cdef int _view_ram(cache_t *cache, shard_t *shard, request_t *request, view_t *view,
                   int64_t now) noexcept nogil:
    cdef item_t *item = item_at(cache, slot_location(view.slot.low) * 8)
    cdef int64_t expire_ms
    if not item_sound(cache, shard, item_offset(cache, item)):
        count(cache, COUNT_BAD_OFFSETS, 1)
        shard_clear(cache, shard)
        view.slot = NULL
        return CACHE_OK
    expire_ms = item_expiry(item)[0] if item.flags & ITEM_EXPIRY else 0
    if expire_ms and expire_ms <= now:
        count(cache, COUNT_RECLAIMED, 1)
        unlink(cache, shard, request.hash, view.slot)
        view.slot = NULL
        return CACHE_OK
    if not item_has_key(cache, item, request.key, request.key_size):
        return CACHE_OK
    if item.flags & ITEM_TAG and not tag_fresh(cache.arena, item_tag(item)[0]):
        unlink(cache, shard, request.hash, view.slot)
        view.slot = NULL
        return CACHE_OK
    view.exists = True
    view.item = item
    view.value_size = item.value_size
    if not item.flags & ITEM_PARTS:
        view.value = <char *>item + item_fields(item.flags) + item_key_size(item)
    view.cas = item.cas
    view.expire_ms = expire_ms
    view.client_flags = item.client_flags
    view.flags = item.flags & (ITEM_STR_KEY | ITEM_TAG)
    view.tag = item_tag(item)[0] if item.flags & ITEM_TAG else 0
    return CACHE_OK

cdef int _view_flash(cache_t *cache, shard_t *shard, request_t *request, record_t *record,
                     reply_t *reply, view_t *view) noexcept nogil:
    cdef uint64_t position = slot_location(view.slot.low) * LOG_ALIGNMENT, expiry
    cdef flash_item_t *head
    reply.position = position
    if record == NULL or record.position != position:
        return CACHE_FLASH
    if record.status != CACHE_FOUND:
        unlink(cache, shard, request.hash, view.slot)   # a miss that stays a miss
        view.slot = NULL
        return CACHE_OK
    head = record_item(record)
    if flash_key_size(head) != request.key_size or (
            memcmp(record_key(record), request.key, request.key_size) != 0):
        return CACHE_OK
    if head.flags & ITEM_TAG and not tag_fresh(cache.arena, record_tag(record)):
        unlink(cache, shard, request.hash, view.slot)
        view.slot = NULL
        return CACHE_OK
    expiry = slot_expiry(view.slot.high)
    view.exists = True
    view.value = record_value(record)
    view.value_size = record.value_size
    view.cas = head.cas
    view.client_flags = head.client_flags
    view.flags = head.flags & (ITEM_STR_KEY | ITEM_TAG)
    view.tag = record_tag(record) if head.flags & ITEM_TAG else 0
    view.record_expire_ms = <int64_t>head.expires_s * 1000
    view.expire_ms = 0 if expiry == 0 else (
        view.record_expire_ms if expiry == EXPIRY_LOOK
        else cache.arena.header.created_ms + <int64_t>expiry * 1000)
    return CACHE_OK

cdef void _old_content(cache_t *cache, view_t *view, item_t *item, uint64_t at) noexcept nogil:
    # Copy the view's value into `item`, at content offset `at`.
    cdef uint64_t start = 0, here
    cdef char *place
    if view.value != NULL:
        item_write(cache, item, at, view.value, view.value_size)
        return
    while start < view.value_size:
        place = item_span(cache, view.item, item_key_size(view.item) + start, &here)
        item_write(cache, item, at + start, place, here)
        start += here

cdef void _meta(cache_t *cache, view_t *view, meta_t *meta, int64_t now) noexcept nogil:
    meta.cas = view.cas
    meta.value_size = view.value_size
    meta.expire_ms = view.expire_ms
    meta.client_flags = view.client_flags
    meta.idle_s = 0 if view.item == NULL else idle_seconds(cache, view.item.last_access, now)
    meta.fetched = view.fetched
    meta.stale = view.stale
    meta.lost = view.won
    meta.won = False
    meta.on_flash = view.item == NULL
    meta.str_key = (view.flags & ITEM_STR_KEY) != 0

cdef inline uint32_t _seconds(cache_t *cache, int64_t now) noexcept nogil:
    cdef int64_t passed = now - cache.arena.header.created_ms
    return <uint32_t>(passed // 1000) if passed > 0 else 0

# Making it so -------------------------------------------------------------------------------

cdef inline uint64_t _new_cas(cache_t *cache, request_t *request) noexcept nogil:
    return request.cas_new if request.options & OPT_CAS_NEW else cas_take(cache)

cdef bint _forget_oldest_slot(cache_t *cache, shard_t *shard, uint64_t hash) noexcept nogil:
    # The group's flash item that was written first.
    cdef group_t *group = index_group(cache, shard, hash)
    cdef slot_t *slot
    cdef slot_t *oldest = NULL
    cdef uint32_t number
    for number in range(<uint32_t>group.pages * PAGE_SLOTS):
        slot = group_slot(cache, group, number)
        if slot_kind(slot.low) == SLOT_FLASH and (
                oldest == NULL or slot_location(slot.low) < slot_location(oldest.low)):
            oldest = slot
    if oldest == NULL:
        return False
    count(cache, COUNT_EVICTIONS, 1)
    release(cache, shard, oldest)
    index_remove(cache, shard, group, oldest)
    return True

cdef bint _index_room(cache_t *cache, shard_t *shard, uint64_t hash, bint force,
                      int64_t now) noexcept nogil:
    # What is dead goes first, then ghosts; the index grows for items only. Purging that gives
    # little is not worth the next set's doing it again.
    cdef group_t *group
    if shard.built:
        group = index_group(cache, shard, hash)
        if not group_sound(cache, shard, group):
            count(cache, COUNT_BAD_OFFSETS, 1)
            shard.damaged = 1
            return False
        if index_has_room(cache, shard, hash):
            return True
        if purge_group(cache, shard, group, False, now) > PURGE_WORTH or (
                purge_group(cache, shard, group, True, now) > PURGE_WORTH):
            return True
    if index_grow(cache, shard, hash) and index_has_room(cache, shard, hash):
        return True
    return force and shard.built and _forget_oldest_slot(cache, shard, hash)

cdef struct content_t:          # what a new value is made of
    const char *before          # bytes, then the old value if `old`, then bytes
    uint64_t before_size
    const char *after
    uint64_t after_size
    bint old

cdef inline void _say(slot_t *slot, uint64_t low, uint64_t high) noexcept nogil:
    # Overwritten in place, it mostly says so already: its line then stays with other processors.
    if slot.high != high or slot.low != low:
        slot.high = high
        slot.low = low

cdef int _store(cache_t *cache, shard_t *shard, request_t *request, view_t *view,
                content_t *content, uint32_t client_flags, int64_t expire_ms, uint64_t tag,
                uint8_t flags, uint64_t bits, bint force, int64_t now,
                reply_t *reply) noexcept nogil:
    # Put a new item in RAM under the request's key. `bits`: stale, won, fetched of the slot.
    cdef uint64_t size = content.before_size + content.after_size + (
        view.value_size if content.old else 0)
    cdef slot_t *slot
    cdef item_t *item
    cdef uint64_t low, high, hot = 0
    cdef int queue = QUEUE_SMALL
    reply.meta.value_size = size
    if request.position:
        return _link_large(cache, shard, request, view, expire_ms, bits, force, now, reply)
    if size > cache.item_size_max or size + request.key_size > cache.item_bytes_ram_max:
        return _too_large(cache, shard, request, view)
    flags = (flags & (ITEM_STR_KEY | ITEM_TAG)) | (ITEM_EXPIRY if expire_ms else 0)
    item = _overwrite(cache, view, content, flags, size)
    cdef bint fresh = item == NULL
    if fresh:
        if view.slot == NULL and not _index_room(cache, shard, request.hash, force, now):
            return NEED_INDEX
        if view.was_ghost or (view.slot != NULL and slot_kind(view.slot.low) == SLOT_FLASH):
            queue = QUEUE_MAIN          # it was here before, and somebody wants it again
        if view.slot != NULL and slot_kind(view.slot.low) == SLOT_RAM:
            hot = slot_hotness(view.slot.low)
            queue = _queue_of(cache, view.slot)
        item = item_new(cache, shard, queue, cache.reserve_frames, flags, request.key_size, size)
        if item == NULL:
            return NEED_FRAMES
        item_write(cache, item, 0, request.key, request.key_size)
        _fill(cache, view, content, item)
        slot = view.slot
        if slot == NULL:
            slot = index_insert(cache, shard, request.hash, 0, 0)
        else:
            release(cache, shard, slot)
        shard.items_ram += 1
        shard.bytes_ram += item_content(item)
        view.slot = slot
    else:
        hot = slot_hotness(view.slot.low)
    item.cas = _new_cas(cache, request)
    item.client_flags = client_flags
    item.last_access = _seconds(cache, now)
    if flags & ITEM_EXPIRY:
        item_expiry(item)[0] = expire_ms
    if flags & ITEM_TAG:
        item_tag(item)[0] = tag
        bits |= SLOT_TAGGED
    low = (view.slot.low & SLOT_HASH_MASK) | (<uint64_t>SLOT_RAM << SLOT_KIND_SHIFT) | (
        hot << SLOT_HOT_SHIFT) | bits | (item_offset(cache, item) // 8)
    high = (view.slot.high & SLOT_HIGH_HASH_MASK) | slot_expiry_of(cache, expire_ms)
    _say(view.slot, low, high)
    reply.meta.cas = item.cas
    reply.meta.client_flags = client_flags
    reply.meta.expire_ms = expire_ms
    _count_item(cache, request, reply, fresh)
    return CACHE_OK

cdef inline void _count_item(cache_t *cache, request_t *request, reply_t *reply,
                             bint fresh) noexcept nogil:
    # As memcached: a number that fits where the old one is, or a new time, makes no new item.
    if request.op <= OP_PREPEND or reply.created or (
            fresh and (request.op == OP_INCR or request.op == OP_DECR)):
        count(cache, COUNT_TOTAL_ITEMS, 1)

cdef int _link_large(cache_t *cache, shard_t *shard, request_t *request, view_t *view,
                     int64_t expire_ms, uint64_t bits, bint force, int64_t now,
                     reply_t *reply) noexcept nogil:
    # The value's records are written: only the slot is missing. Slot first, then the live bit.
    cdef slot_t *slot = view.slot
    if slot == NULL:
        if not _index_room(cache, shard, request.hash, force, now):
            return NEED_INDEX
        slot = index_insert(cache, shard, request.hash, 0, 0)
    else:
        release(cache, shard, slot)
    if request.options & OPT_TAG:
        bits |= SLOT_TAGGED
    slot.high = (slot.high & SLOT_HIGH_HASH_MASK) | slot_expiry_of(cache, expire_ms)
    slot.low = (slot.low & SLOT_HASH_MASK) | (<uint64_t>SLOT_FLASH << SLOT_KIND_SHIFT) | bits | (
        request.position // LOG_ALIGNMENT)
    shard.items_flash += 1
    if log_live(cache.log, request.position) != LOG_OK:
        unlink(cache, shard, request.hash, slot)
        return CACHE_NO_MEMORY
    if bits & (SLOT_STALE | SLOT_WON):
        view.slot = slot
        _mortal(cache, view)        # marks that its record does not have
    reply.meta.cas = request.cas_new
    reply.meta.client_flags = request.client_flags
    reply.meta.expire_ms = expire_ms
    count(cache, COUNT_TOTAL_ITEMS, 1)
    count(cache, COUNT_FLASH_WRITES, 1)
    count(cache, COUNT_FLASH_WRITE_BYTES, request.key_size + request.value_size)
    return CACHE_OK

cdef inline int _queue_of(cache_t *cache, slot_t *slot) noexcept nogil:
    cdef uint64_t offset = slot_location(slot.low) * 8 - cache.frames_offset
    return <int>(cache.arena.frames[offset >> cache.frame_shift].kind
                 & ~FRAME_CLOSED) - FRAME_ITEMS

cdef item_t *_overwrite(cache_t *cache, view_t *view, content_t *content, uint8_t flags,
                        uint64_t size) noexcept nogil:
    # Same shape and size: the new value goes where the old one is.
    if view.item == NULL or content.old or view.value == NULL or view.value_size != size or (
            view.item.flags != flags):
        return NULL
    memcpy(<char *>view.value, content.before, content.before_size)
    memcpy(<char *>view.value + content.before_size, content.after, content.after_size)
    return view.item

cdef void _fill(cache_t *cache, view_t *view, content_t *content, item_t *item) noexcept nogil:
    cdef uint64_t at = item_key_size(item)
    item_write(cache, item, at, content.before, content.before_size)
    at += content.before_size
    if content.old:
        _old_content(cache, view, item, at)
        at += view.value_size
    item_write(cache, item, at, content.after, content.after_size)

cdef int _too_large(cache_t *cache, shard_t *shard, request_t *request,
                    view_t *view) noexcept nogil:
    count(cache, COUNT_STORE_TOO_LARGE, 1)
    if request.op == OP_SET and view.slot != NULL:
        unlink(cache, shard, request.hash, view.slot)
    return CACHE_TOO_LARGE

# The operations -----------------------------------------------------------------------------

cdef inline void _plain(request_t *request, content_t *content) noexcept nogil:
    memset(content, 0, sizeof(content_t))
    content.before = request.value
    content.before_size = request.value_size

cdef inline uint8_t _request_flags(request_t *request) noexcept nogil:
    return (ITEM_STR_KEY if request.options & OPT_STR_KEY else 0) | (
        ITEM_TAG if request.options & OPT_TAG else 0)

cdef int _cas_rule(request_t *request, view_t *view) noexcept nogil:
    # CACHE_OK: go on.
    if not request.options & OPT_CAS:
        return CACHE_OK
    if not view.exists:
        return CACHE_MISS
    return CACHE_OK if view.cas == request.cas else CACHE_EXISTS

cdef inline void _count_cas(cache_t *cache, request_t *request, view_t *view,
                            int status) noexcept nogil:
    # Once an operation, however often it was begun for want of room.
    cdef int rule
    if request.options & OPT_CAS and status < NEED_FRAMES:
        rule = _cas_rule(request, view)
        count(cache, COUNT_CAS_HITS if rule == CACHE_OK else COUNT_CAS_MISSES if (
            rule == CACHE_MISS) else COUNT_CAS_BADVAL, 1)

cdef int change_apply(cache_t *cache, shard_t *shard, request_t *request, record_t *record,
                      reply_t *reply, bint force) noexcept nogil:
    cdef view_t view
    cdef int64_t now = now_ms(cache)
    cdef int status = _view(cache, shard, request, record, reply, &view, now)
    reply.created = False
    if status != CACHE_OK:
        return status
    _meta(cache, &view, &reply.meta, now)
    reply.expire_before_ms = reply.meta.expire_ms
    status = _apply(cache, shard, request, &view, reply, force, now)
    _count_cas(cache, request, &view, status)
    return status

cdef int _apply(cache_t *cache, shard_t *shard, request_t *request, view_t *view, reply_t *reply,
                bint force, int64_t now) noexcept nogil:
    if request.op <= OP_REPLACE:
        return _apply_set(cache, shard, request, view, reply, force, now)
    if request.op == OP_APPEND or request.op == OP_PREPEND:
        return _apply_append(cache, shard, request, view, reply, force, now)
    if request.op == OP_DELETE:
        return _apply_delete(cache, shard, request, view, reply, force, now)
    if request.op == OP_INCR or request.op == OP_DECR:
        return _apply_number(cache, shard, request, view, reply, force, now)
    if request.op == OP_TOUCH:
        return _apply_touch(cache, shard, request, view, reply, force, now)
    if request.op == OP_META_GET:
        return _apply_meta_get(cache, shard, request, view, reply, force, now)
    return _apply_recache(cache, shard, request, view, reply, force, now)

cdef int _apply_set(cache_t *cache, shard_t *shard, request_t *request, view_t *view,
                    reply_t *reply, bint force, int64_t now) noexcept nogil:
    cdef content_t content
    cdef int64_t expire_ms = request.expire_ms
    cdef uint64_t bits = 0
    cdef int status = _cas_rule(request, view)
    if status == CACHE_EXISTS and request.options & OPT_INVALIDATE and request.cas < view.cas:
        bits = SLOT_STALE | (SLOT_WON if view.won else 0)
        expire_ms = view.expire_ms
        status = CACHE_OK
    if status != CACHE_OK:
        return status
    if request.op == OP_ADD and view.exists:
        _heat(view)
        return CACHE_NOT_STORED
    if request.op == OP_REPLACE and not view.exists:
        return CACHE_NOT_STORED
    if request.options & OPT_KEEP_TTL and view.exists:
        expire_ms = view.expire_ms
    _plain(request, &content)
    if expire_ms < 0:
        # expired at once: as stored, and gone
        if view.slot != NULL:
            unlink(cache, shard, request.hash, view.slot)
        reply.meta.cas = _new_cas(cache, request)
        reply.meta.value_size = request.value_size
        return CACHE_OK
    return _store(cache, shard, request, view, &content, request.client_flags, expire_ms,
                  request.tag, _request_flags(request), bits, force, now, reply)

cdef inline void _heat(view_t *view) noexcept nogil:
    # As a hit: add on an existing key bumps it.
    # Read once: a reader may heat the slot at the same time, and 3 + 1 would set its neighbours.
    cdef uint64_t low
    if view.slot != NULL:
        low = load64_relaxed(&view.slot.low)
        if slot_hotness(low) < 3:
            view.slot.low = low + (<uint64_t>1 << SLOT_HOT_SHIFT)

cdef int _apply_append(cache_t *cache, shard_t *shard, request_t *request, view_t *view,
                       reply_t *reply, bint force, int64_t now) noexcept nogil:
    cdef content_t content
    cdef int status = _cas_rule(request, view)
    if status != CACHE_OK:
        return status
    if not view.exists:
        if not request.options & OPT_VIVIFY:
            return CACHE_NOT_STORED
        _plain(request, &content)
        reply.created = True
        return _store(cache, shard, request, view, &content, request.client_flags,
                      request.vivify_expire_ms, request.tag, _request_flags(request), 0, force,
                      now, reply)
    memset(&content, 0, sizeof(content))
    content.old = True
    if request.op == OP_APPEND:
        content.after = request.value
        content.after_size = request.value_size
    else:
        content.before = request.value
        content.before_size = request.value_size
    return _store(cache, shard, request, view, &content, view.client_flags, view.expire_ms,
                  view.tag, view.flags, 0, force, now, reply)

cdef inline uint64_t _kept_bits(view_t *view) noexcept nogil:
    return (SLOT_FETCHED if view.fetched else 0)

cdef int _apply_delete(cache_t *cache, shard_t *shard, request_t *request, view_t *view,
                       reply_t *reply, bint force, int64_t now) noexcept nogil:
    cdef int status = _cas_rule(request, view)
    if not view.exists:
        count(cache, COUNT_DELETE_MISSES, 1)
        return CACHE_MISS
    if status != CACHE_OK:
        return status
    if request.options & (OPT_INVALIDATE | OPT_DROP_VALUE):
        return _rewrite(cache, shard, request, view, reply, force, now)
    if request.options & OPT_WANT_VALUE:
        status = _reply_value(cache, view, reply)
        if status != CACHE_OK:
            return status
    unlink(cache, shard, request.hash, view.slot)
    count(cache, COUNT_DELETE_HITS, 1)
    return CACHE_OK

cdef int _rewrite(cache_t *cache, shard_t *shard, request_t *request, view_t *view,
                  reply_t *reply, bint force, int64_t now) noexcept nogil:
    # md with I (stale, not won, new CAS, perhaps new TTL) and x (no value, no client flags).
    cdef content_t content
    cdef uint64_t bits = _kept_bits(view)
    cdef bint drop = (request.options & OPT_DROP_VALUE) != 0
    memset(&content, 0, sizeof(content))
    content.old = not drop
    if request.options & OPT_INVALIDATE:
        bits |= SLOT_STALE
    else:
        bits |= (SLOT_STALE if view.stale else 0) | (SLOT_WON if view.won else 0)
    return _store(cache, shard, request, view, &content, 0 if drop else view.client_flags,
                  request.expire_ms if request.options & OPT_TOUCH else view.expire_ms,
                  view.tag, view.flags, bits, force, now, reply)

cdef int _reply_value(cache_t *cache, view_t *view, reply_t *reply) noexcept nogil:
    reply.meta.value_size = view.value_size
    if reply.value_capacity < view.value_size or reply.value == NULL:
        return NEED_REPLY
    if view.value != NULL:
        memcpy(reply.value, view.value, view.value_size)
    else:
        item_read(cache, view.item, item_key_size(view.item), reply.value, view.value_size)
    return CACHE_OK

cdef bint _parse_number(cache_t *cache, view_t *view, uint64_t *number) noexcept nogil:
    # Digits, then spaces only (decr leaves them); at most 20 digits.
    cdef char text[32]
    cdef uint64_t place = 0, value = 0, digit
    if view.value_size == 0 or view.value_size > 32:
        return False
    if view.value != NULL:
        memcpy(text, view.value, view.value_size)
    else:
        item_read(cache, view.item, item_key_size(view.item), text, view.value_size)
    while place < view.value_size and c'0' <= text[place] <= c'9':
        digit = <uint64_t>(text[place] - c'0')
        if value > (U64_MAX - digit) // 10:
            return False
        value = value * 10 + digit
        place += 1
    if place == 0:
        return False
    while place < view.value_size:
        if text[place] != c' ':
            return False
        place += 1
    number[0] = value
    return True

cdef int _apply_number(cache_t *cache, shard_t *shard, request_t *request, view_t *view,
                       reply_t *reply, bint force, int64_t now) noexcept nogil:
    cdef uint64_t number = 0
    cdef bint incr = request.op == OP_INCR
    cdef int status
    if not view.exists:
        if not request.options & OPT_VIVIFY:
            count(cache, COUNT_INCR_MISSES if incr else COUNT_DECR_MISSES, 1)
            return CACHE_MISS
        reply.created = True
        reply.number = request.initial
        return _store_number(cache, shard, request, view, request.initial,
                             request.vivify_expire_ms, request.client_flags, force, now, reply)
    status = _cas_rule(request, view)
    if status != CACHE_OK:
        return status
    if not _parse_number(cache, view, &number):
        return CACHE_NOT_NUMBER
    if request.options & OPT_NO_WRAP and request.delta > (U64_MAX - number if incr else number):
        return CACHE_NOT_NUMBER
    if incr:
        number += request.delta
    else:
        number = number - request.delta if number > request.delta else 0
    status = _store_number(
        cache, shard, request, view, number,
        request.expire_ms if request.options & OPT_TOUCH else view.expire_ms,
        view.client_flags, force, now, reply)
    if status == CACHE_OK:
        reply.number = number
        count(cache, COUNT_INCR_HITS if incr else COUNT_DECR_HITS, 1)
    return status

cdef int _store_number(cache_t *cache, shard_t *shard, request_t *request, view_t *view,
                       uint64_t number, int64_t expire_ms, uint32_t client_flags, bint force,
                       int64_t now, reply_t *reply) noexcept nogil:
    cdef char text[40]
    cdef content_t content
    cdef uint64_t size
    memset(text, c' ', sizeof(text))
    memset(&content, 0, sizeof(content))
    size = <uint64_t>snprintf(text, sizeof(text), "%llu", <unsigned long long>number)
    text[size] = c' '
    if view.exists and view.value_size > size:
        size = view.value_size      # a shorter result is padded with spaces, the length kept
    content.before = text
    content.before_size = size
    return _store(cache, shard, request, view, &content, client_flags, expire_ms,
                  view.tag if view.exists else request.tag,
                  view.flags if view.exists else _request_flags(request),
                  _kept_bits(view) if view.exists else 0, force, now, reply)

cdef inline void _set_slot_expiry(view_t *view, uint64_t expiry) noexcept nogil:
    view.slot.high = (view.slot.high & SLOT_HIGH_HASH_MASK) | expiry

cdef inline bint _slot_may_say(cache_t *cache, view_t *view, int64_t expire_ms) noexcept nogil:
    # When the arena is lost the record's own expiry counts again: it must not be the later one.
    if slot_expiry_of(cache, expire_ms) == EXPIRY_LOOK:
        return False
    if view.record_expire_ms == 0:
        return expire_ms == 0
    return expire_ms == 0 or expire_ms > view.record_expire_ms - 1000

cdef int _retime(cache_t *cache, shard_t *shard, request_t *request, view_t *view,
                 int64_t expire_ms, reply_t *reply, bint force, int64_t now) noexcept nogil:
    # A new expiry; CAS and value stay. A later one of a flash item is in its slot alone.
    reply.meta.expire_ms = expire_ms
    if expire_ms < 0:
        unlink(cache, shard, request.hash, view.slot)
        return CACHE_OK
    if view.item == NULL:
        if _slot_may_say(cache, view, expire_ms):
            _set_slot_expiry(view, slot_expiry_of(cache, expire_ms))
            return CACHE_OK
    elif view.item.flags & ITEM_EXPIRY or expire_ms == 0:
        if view.item.flags & ITEM_EXPIRY:
            item_expiry(view.item)[0] = expire_ms
        _set_slot_expiry(view, slot_expiry_of(cache, expire_ms))
        return CACHE_OK
    if _no_room_in_ram(cache, request, view):
        _mortal(cache, view)
        _set_slot_expiry(view, min(slot_expiry_of(cache, expire_ms), EXPIRY_LOOK - 1))
        return CACHE_OK
    # the item has no room for an expiry, or its record says too late a one
    return _take_up(cache, shard, request, view, expire_ms, reply, force, now)

cdef inline bint _no_room_in_ram(cache_t *cache, request_t *request, view_t *view) noexcept nogil:
    return view.item == NULL and (
        view.value_size + request.key_size > cache.item_bytes_ram_max)

cdef inline void _mortal(cache_t *cache, view_t *view) noexcept nogil:
    # A flash item that is too large to be written anew keeps its place, but its record says what
    # is not true any more: it does not outlive the arena.
    log_dead(cache.log, slot_location(view.slot.low) * LOG_ALIGNMENT)

cdef int _take_up(cache_t *cache, shard_t *shard, request_t *request, view_t *view,
                  int64_t expire_ms, reply_t *reply, bint force, int64_t now) noexcept nogil:
    # A new item in RAM like the old one: CAS, flags, value and marks.
    cdef request_t same = request[0]
    cdef content_t content
    cdef int status
    same.options = OPT_CAS_NEW
    same.cas_new = view.cas
    memset(&content, 0, sizeof(content))
    content.old = True
    status = _store(cache, shard, &same, view, &content, view.client_flags, expire_ms, view.tag,
                    view.flags, _all_bits(view), force, now, reply)
    if status == CACHE_OK:
        view.item = item_at(cache, slot_location(view.slot.low) * 8)
    return status

cdef inline uint64_t _all_bits(view_t *view) noexcept nogil:
    return _kept_bits(view) | (SLOT_STALE if view.stale else 0) | (SLOT_WON if view.won else 0)

cdef int _apply_touch(cache_t *cache, shard_t *shard, request_t *request, view_t *view,
                      reply_t *reply, bint force, int64_t now) noexcept nogil:
    cdef int status
    if not view.exists:
        count(cache, COUNT_TOUCH_MISSES, 1)
        return CACHE_MISS
    status = _retime(cache, shard, request, view, request.expire_ms, reply, force, now)
    if status == CACHE_OK:
        count(cache, COUNT_TOUCH_HITS, 1)
    return status

cdef int _apply_meta_get(cache_t *cache, shard_t *shard, request_t *request, view_t *view,
                         reply_t *reply, bint force, int64_t now) noexcept nogil:
    cdef content_t content
    cdef int status
    cdef bint win, flash = view.item == NULL
    if not view.exists:
        if not request.options & OPT_VIVIFY:
            # as memcached: a get that touches counts as a touch
            count(cache, COUNT_TOUCH_MISSES if request.options & OPT_TOUCH else COUNT_GET_MISSES, 1)
            return CACHE_MISS
        memset(&content, 0, sizeof(content))
        reply.created = True
        memset(&reply.meta, 0, sizeof(meta_t))
        status = _store(cache, shard, request, view, &content, 0, request.vivify_expire_ms, 0,
                        _request_flags(request), SLOT_WON, force, now, reply)
        reply.meta.won = True
        if status < NEED_FRAMES:
            count(cache, COUNT_GET_MISSES, 1)
        return status
    if request.options & OPT_WANT_VALUE:
        status = _reply_value(cache, view, reply)
        if status != CACHE_OK:
            return status
    win = not view.won and (view.stale or (
        request.options & OPT_WIN and view.expire_ms != 0
        and view.expire_ms - now < request.win_below_ms))
    if flash and (win or request.options & OPT_CAS_NEW):
        # a mark or number that the record does not have would be lost with the arena
        status = _mark_flash(cache, shard, request, view, reply, force, now)
        if status != CACHE_OK:
            return status
    if request.options & OPT_TOUCH:
        status = _retime(cache, shard, request, view, request.expire_ms, reply, force, now)
        if status != CACHE_OK:
            return status
        if request.expire_ms < 0:
            reply.meta.won = win
            return _got(cache, request, flash)
    if request.options & OPT_CAS_NEW and slot_kind(view.slot.low) == SLOT_RAM:
        item_at(cache, slot_location(view.slot.low) * 8).cas = request.cas_new
        reply.meta.cas = request.cas_new
    reply.meta.won = win
    view.slot.low |= SLOT_WON if win else 0
    if not request.options & OPT_NO_BUMP:
        view.slot.low |= SLOT_FETCHED
        _heat(view)
    return _got(cache, request, flash)

cdef inline int _got(cache_t *cache, request_t *request, bint flash) noexcept nogil:
    count(cache, COUNT_TOUCH_HITS if request.options & OPT_TOUCH else COUNT_GET_HITS, 1)
    if flash:
        count(cache, COUNT_GET_FLASH, 1)
    return CACHE_OK

cdef int _mark_flash(cache_t *cache, shard_t *shard, request_t *request, view_t *view,
                     reply_t *reply, bint force, int64_t now) noexcept nogil:
    if not _no_room_in_ram(cache, request, view):
        return _take_up(cache, shard, request, view, view.expire_ms, reply, force, now)
    if request.options & OPT_CAS_NEW:
        return CACHE_TOO_LARGE
    _mortal(cache, view)
    return CACHE_OK

cdef int _apply_recache(cache_t *cache, shard_t *shard, request_t *request, view_t *view,
                        reply_t *reply, bint force, int64_t now) noexcept nogil:
    if not view.exists or view.item != NULL:
        return CACHE_MISS
    if _take_up(cache, shard, request, view, view.expire_ms, reply, force, now) == CACHE_OK:
        count(cache, COUNT_RECACHED, 1)
    return CACHE_OK
