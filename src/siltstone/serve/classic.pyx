"""The classic text commands: get, gets, gat, gats, the stores, incr, decr, delete, touch.

Owns their grammar and their reply lines. Promises: a command either changes nothing and is run
again later from its first byte (STEP_MORE, STEP_READS), or is done. A get of many keys may also
stop between two keys. Called by the session's loop in memcache.pyx, without the GIL.
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from siltstone.cache.engine cimport (
    CACHE_FLASH, CACHE_FOUND, CACHE_IO, CACHE_MISS, CACHE_NO_MEMORY, CACHE_OK, CACHE_TOO_LARGE,
    CACHE_WOULD_BLOCK, OP_ADD, OP_APPEND, OP_DECR,
    OP_DELETE, OP_INCR, OP_META_GET, OP_PREPEND, OP_REPLACE, OP_SET, OP_TOUCH, OPT_CAS,
    OPT_TOUCH, OPT_WANT_VALUE, cache_copy, cache_fetch, cache_find, cache_found,
    cache_hash, cache_prefetch, meta_t, read_t,
)
from siltstone.log.log cimport LOG_NOWAIT
from siltstone.serve.request cimport (
    KEY_SIZE_MAX, KEYS_GAT, KEYS_GATS, KEYS_GET, KEYS_GETS, KEYS_NONE, PARKED_GET, PARKED_GETS,
    PARKED_MAX, STEP_ADMIN, STEP_CLOSE, STEP_DONE, STEP_FULL, STEP_MORE, STEP_READS, answer,
    answer_status, count_prefix, drop_value, execute, expire_at, is_noreply, item_size, park,
    parked_t, reply_begin, reply_drop, reply_end, request_begin, session_t,
)
from siltstone.serve.wire cimport (
    DIGITS_MAX, TOKENS_MAX, next_token, output_room, output_t, parse_i64, parse_u64,
    put, put_byte_fit, put_fit, put_number_fit, split_tokens, token_is, token_t,
)

cdef enum:
    # "VALUE " key " " flags " " size " " cas CRLF, and the CRLF behind the value
    VALUE_LINES = 6 + 250 + 1 + 20 + 1 + 20 + 1 + 20 + 2 + 2
    # memcached reads a length as a 32-bit number and adds CRLF
    LENGTH_MAX = 2147483645
    KEYS_AHEAD = 16             # of a get of many, hashed and prefetched together


# get, gets, gat, gats -----------------------------------------------------------------------


cdef int run_get(session_t *s, int kind, const char *at, const char *end) noexcept nogil:
    """`at` is behind the command's name."""
    cdef token_t token
    cdef int64_t exptime
    s.quiet = False
    next_token(at, end, &token)
    if token.size == 0:
        put(&s.out, b"ERROR\r\n", 7)
        return STEP_DONE
    if kind == KEYS_GAT or kind == KEYS_GATS:
        at = next_token(at, end, &token)
        if not parse_i64(token.data, token.size, &exptime):
            put(&s.out, b"CLIENT_ERROR invalid exptime argument\r\n", 39)
            return STEP_DONE
        s.keys_expire_ms = expire_at(s, exptime)
    s.keys_kind = kind
    s.keys_checked = False
    s.keys_size = end - (s.input + s.at)
    s.keys_next = s.next - s.at
    reply_begin(s)
    return run_keys(s, at, end)


cdef int run_keys(session_t *s, const char *at, const char *end) noexcept nogil:
    """Answer the keys from `at` on; stops between two of them when it must."""
    cdef token_t key
    cdef int status
    cdef uint64_t hashes[KEYS_AHEAD]
    cdef uint32_t ready = 0, done = 0
    while True:
        if done == ready:
            ready = keys_ahead(s, at, end, hashes)
            done = 0
        at = next_token(at, end, &key)
        if key.size == 0:
            put(&s.out, b"END\r\n", 5)
            reply_end(s)
            s.keys_kind = KEYS_NONE
            return STEP_DONE
        if key.size > KEY_SIZE_MAX:
            return keys_fail(s, b"CLIENT_ERROR bad command line format\r\n", 38)
        if s.out.size >= s.output_size_max:
            return keys_stop(s, STEP_FULL, key.data, end)
        if s.parked_count == PARKED_MAX:
            return keys_stop(s, STEP_READS, key.data, end)
        if s.keys_kind == KEYS_GET or s.keys_kind == KEYS_GETS:
            status = get_key(s, key.data, key.size, hashes[done])
        else:
            status = gat_key(s, key.data, key.size)
        if status == CACHE_WOULD_BLOCK:
            return keys_stop(s, STEP_READS, key.data, end)
        if status == CACHE_NO_MEMORY:
            s.out.failed = False
            return keys_fail(s, b"SERVER_ERROR out of memory writing get response\r\n", 49)
        if status != CACHE_FOUND and status != CACHE_MISS and status != CACHE_IO:
            return keys_fail(s, b"SERVER_ERROR busy\r\n", 19)
        if s.shared.detail:
            count_prefix(s, key.data, key.size, status == CACHE_FOUND)
        done += 1


cdef uint32_t keys_ahead(session_t *s, const char *at, const char *end,
                         uint64_t *hashes) noexcept nogil:
    """Hash the next keys, so that looking them up waits for memory once, not once a key."""
    cdef token_t key
    cdef uint32_t count = 0
    while count < KEYS_AHEAD:
        at = next_token(at, end, &key)
        if key.size == 0 or key.size > KEY_SIZE_MAX:
            break
        hashes[count] = cache_hash(s.cache, key.data, key.size)
        count += 1
    if count > 1:
        cache_prefetch(s.cache, hashes, count)
    return count


cdef int keys_fail(session_t *s, const char *line, uint64_t size) noexcept nogil:
    """One line instead of all that the command has answered so far."""
    reply_drop(s)
    put(&s.out, line, size)
    s.keys_kind = KEYS_NONE
    return STEP_DONE


cdef int keys_stop(session_t *s, int step, const char *at, const char *end) noexcept nogil:
    """Go on at `at` later. What is answered may be sent now, so the rest must be sound."""
    cdef token_t key
    cdef const char *ahead = at
    while not s.keys_checked:
        ahead = next_token(ahead, end, &key)
        if key.size > KEY_SIZE_MAX:
            return keys_fail(s, b"CLIENT_ERROR bad command line format\r\n", 38)
        s.keys_checked = key.size == 0
    s.keys_offset = at - (s.input + s.at)
    reply_end(s)
    return step


cdef int get_key(session_t *s, const char *key, uint32_t size, uint64_t hash) noexcept nogil:
    cdef read_t cursor
    cdef uint64_t start
    cdef bint with_cas = s.keys_kind == KEYS_GETS
    cdef int status
    cdef parked_t *parked
    s.count_get += 1
    cursor.tries = 0
    cursor.no_wait = False
    cursor.no_bump = False
    while True:
        status = cache_find(s.cache, key, size, hash, &cursor)
        if status != CACHE_FOUND:
            break
        start = s.out.size
        if not output_room(&s.out, VALUE_LINES + cursor.value_size):
            return CACHE_NO_MEMORY
        put_value_line_fit(&s.out, key, size, &cursor.meta, cursor.value_size, with_cas)
        cache_copy(&cursor, s.out.data + s.out.size)
        s.out.size += cursor.value_size
        put_fit(&s.out, b"\r\n", 2)
        if cache_found(s.cache, &cursor):
            return CACHE_FOUND
        s.out.size = start
    if status != CACHE_FLASH:
        return status
    status = cache_fetch(s.cache, key, size, hash, &cursor, &s.record, LOG_NOWAIT)
    if status == CACHE_FOUND:
        put_value(&s.out, key, size, &cursor.meta, cursor.value, with_cas)
    elif status == CACHE_WOULD_BLOCK:
        parked = park(s, PARKED_GETS if with_cas else PARKED_GET, key, size, hash)
        if parked == NULL:
            return CACHE_NO_MEMORY
        parked.cursor = cursor
        return CACHE_FOUND
    return status


cdef int gat_key(session_t *s, const char *key, uint32_t size) noexcept nogil:
    cdef int status
    request_begin(s, OP_META_GET, key, size)
    s.request.options = OPT_TOUCH | OPT_WANT_VALUE
    s.request.expire_ms = s.keys_expire_ms
    status = execute(s)
    if status == CACHE_WOULD_BLOCK:
        return status
    s.count_touch += 1
    if status == CACHE_FOUND:
        put_value(&s.out, key, size, &s.reply.meta, s.reply.value, s.keys_kind == KEYS_GATS)
    return status


cdef inline void put_value_line_fit(output_t *out, const char *key, uint32_t size, meta_t *meta,
                                    uint64_t value_size, bint with_cas) noexcept nogil:
    put_fit(out, b"VALUE ", 6)
    put_fit(out, key, size)
    put_byte_fit(out, b' ')
    put_number_fit(out, meta.client_flags)
    put_byte_fit(out, b' ')
    put_number_fit(out, value_size)
    if with_cas:
        put_byte_fit(out, b' ')
        put_number_fit(out, meta.cas)
    put_fit(out, b"\r\n", 2)


cdef void put_value(output_t *out, const char *key, uint32_t size, meta_t *meta,
                    const char *value, bint with_cas) noexcept nogil:
    if output_room(out, VALUE_LINES + meta.value_size):
        put_value_line_fit(out, key, size, meta, meta.value_size, with_cas)
        put_fit(out, value, meta.value_size)
        put_fit(out, b"\r\n", 2)


cdef void put_parked_value(parked_t *parked, output_t *out) noexcept nogil:
    if parked.status == CACHE_FOUND:
        put_value(out, parked.key, parked.key_size, &parked.cursor.meta, parked.cursor.value,
                  parked.kind == PARKED_GETS)


# The stores ---------------------------------------------------------------------------------


cdef int run_store(session_t *s, uint8_t op, token_t *tokens, uint32_t count,
                   bint with_cas) noexcept nogil:
    """KEY FLAGS EXPTIME LENGTH [CAS] [noreply] and the value."""
    cdef uint32_t words = 6 if with_cas else 5
    cdef uint64_t client_flags = 0
    cdef uint64_t cas = 0
    cdef int64_t exptime = 0
    cdef int64_t length = -1
    cdef bint sound, length_sound
    if count != words and count != words + 1:
        put(&s.out, b"ERROR\r\n", 7)
        return STEP_DONE
    s.quiet = is_noreply(tokens[count - 1].data, tokens[count - 1].size)
    length_sound = (parse_i64(tokens[4].data, tokens[4].size, &length)
                    and length >= 0 and length <= LENGTH_MAX)
    sound = (length_sound and tokens[1].size <= KEY_SIZE_MAX
             and parse_u64(tokens[2].data, tokens[2].size, &client_flags)
             and parse_i64(tokens[3].data, tokens[3].size, &exptime)
             and (not with_cas or parse_u64(tokens[5].data, tokens[5].size, &cas)))
    if not sound:
        answer(s, b"CLIENT_ERROR bad command line format\r\n", 38)
        if length_sound:
            s.swallow = <uint64_t>length + 2
        return STEP_DONE
    request_begin(s, op, tokens[1].data, tokens[1].size)
    s.request.client_flags = <uint32_t>client_flags
    s.request.expire_ms = expire_at(s, exptime)
    s.request.value_size = <uint64_t>length
    if with_cas:
        s.request.options = OPT_CAS
        s.request.cas = cas
    return store_value(s, op, with_cas)


cdef int store_value(session_t *s, uint8_t op, bint with_cas) noexcept nogil:
    cdef int step = value_step(s)
    cdef int status
    if step != STEP_DONE or s.request.value == NULL:
        return step
    status = execute(s)
    if status == CACHE_WOULD_BLOCK:
        return STEP_READS
    s.next += s.request.value_size + 2
    s.count_set += 1
    if s.shared.detail:
        count_prefix(s, s.request.key, s.request.key_size, 2)
    if status == CACHE_OK:
        answer(s, b"STORED\r\n", 8)
    elif status == CACHE_MISS or status == CACHE_IO:
        if with_cas:
            answer(s, b"NOT_FOUND\r\n", 11)
        else:
            answer(s, b"NOT_STORED\r\n", 12)
    elif status == CACHE_TOO_LARGE and (op == OP_APPEND or op == OP_PREPEND):
        answer(s, b"NOT_STORED\r\n", 12)
    else:
        answer_status(s, status)
    return STEP_DONE


cdef int value_step(session_t *s) noexcept nogil:
    """Is the value of s.request there and may it be stored? Then request.value is set.

    Else it is answered and skipped (STEP_DONE), or waited for.
    """
    cdef uint64_t length = s.request.value_size
    cdef const char *value
    if s.no_memory or item_size(s.request.key_size, s.request.client_flags,
                                length) > s.item_size_max:
        return value_refuse(s, length)
    if s.size - s.next < length + 2:
        s.need = s.next - s.at + length + 2
        return STEP_MORE
    value = s.input + s.next
    if value[length] != b'\r' or value[length + 1] != b'\n':
        answer(s, b"CLIENT_ERROR bad data chunk\r\n", 29)
        s.next += length + 2
        return STEP_DONE
    s.request.value = value
    return STEP_DONE


cdef int value_refuse(session_t *s, uint64_t length) noexcept nogil:
    cdef int status = drop_value(s)
    if status == CACHE_WOULD_BLOCK:
        return STEP_READS
    answer_status(s, status)
    s.swallow = length + 2
    return STEP_DONE


# incr, decr, touch, delete ------------------------------------------------------------------


cdef int run_arithmetic(session_t *s, uint8_t op, token_t *tokens, uint32_t count) noexcept nogil:
    cdef uint64_t delta
    cdef int status
    if count != 3 and count != 4:
        put(&s.out, b"ERROR\r\n", 7)
        return STEP_DONE
    s.quiet = is_noreply(tokens[count - 1].data, tokens[count - 1].size)
    if tokens[1].size > KEY_SIZE_MAX:
        answer(s, b"CLIENT_ERROR bad command line format\r\n", 38)
        return STEP_DONE
    if not parse_u64(tokens[2].data, tokens[2].size, &delta):
        answer(s, b"CLIENT_ERROR invalid numeric delta argument\r\n", 45)
        return STEP_DONE
    request_begin(s, op, tokens[1].data, tokens[1].size)
    s.request.delta = delta
    status = execute(s)
    if status == CACHE_WOULD_BLOCK:
        return STEP_READS
    if status != CACHE_OK:
        answer_status(s, status)
    elif not s.quiet and output_room(&s.out, DIGITS_MAX + 2):
        put_number_fit(&s.out, s.reply.number)
        put_fit(&s.out, b"\r\n", 2)
    return STEP_DONE


cdef int run_touch(session_t *s, token_t *tokens, uint32_t count) noexcept nogil:
    cdef int64_t exptime
    cdef int status
    if count != 3 and count != 4:
        put(&s.out, b"ERROR\r\n", 7)
        return STEP_DONE
    s.quiet = is_noreply(tokens[count - 1].data, tokens[count - 1].size)
    if tokens[1].size > KEY_SIZE_MAX:
        answer(s, b"CLIENT_ERROR bad command line format\r\n", 38)
        return STEP_DONE
    if not parse_i64(tokens[2].data, tokens[2].size, &exptime):
        answer(s, b"CLIENT_ERROR invalid exptime argument\r\n", 39)
        return STEP_DONE
    request_begin(s, OP_TOUCH, tokens[1].data, tokens[1].size)
    s.request.expire_ms = expire_at(s, exptime)
    status = execute(s)
    if status == CACHE_WOULD_BLOCK:
        return STEP_READS
    s.count_touch += 1
    if status == CACHE_OK:
        answer(s, b"TOUCHED\r\n", 9)
    else:
        answer_status(s, status)
    return STEP_DONE


cdef int run_delete(session_t *s, token_t *tokens, uint32_t count) noexcept nogil:
    """KEY [0] [noreply]: the 0 is what is left of a delay that memcached once knew."""
    cdef int status
    cdef bint zero
    if count < 2 or count > 4:
        put(&s.out, b"ERROR\r\n", 7)
        return STEP_DONE
    s.quiet = count > 2 and is_noreply(tokens[count - 1].data, tokens[count - 1].size)
    zero = count > 2 and token_is(&tokens[2], b"0", 1)
    if count > 2 and not ((count == 3 and (zero or s.quiet)) or (count == 4 and zero and s.quiet)):
        answer(s, b"CLIENT_ERROR bad command line format.  Usage: delete <key> [noreply]\r\n", 70)
        return STEP_DONE
    if tokens[1].size > KEY_SIZE_MAX:
        answer(s, b"CLIENT_ERROR bad command line format\r\n", 38)
        return STEP_DONE
    request_begin(s, OP_DELETE, tokens[1].data, tokens[1].size)
    status = execute(s)
    if status == CACHE_WOULD_BLOCK:
        return STEP_READS
    if s.shared.detail:
        count_prefix(s, s.request.key, s.request.key_size, 3)
    if status == CACHE_OK:
        answer(s, b"DELETED\r\n", 9)
    else:
        answer_status(s, status)
    return STEP_DONE


# Which command it is ------------------------------------------------------------------------


cdef int run_classic(session_t *s, const char *at, const char *end) noexcept nogil:
    """A line that is no meta command. The four gets take any number of words."""
    cdef token_t tokens[TOKENS_MAX]
    cdef uint32_t count
    cdef token_t name
    cdef const char *rest = next_token(at, end, &name)
    if token_is(&name, b"get", 3):
        return run_get(s, KEYS_GET, rest, end)
    if token_is(&name, b"gets", 4):
        return run_get(s, KEYS_GETS, rest, end)
    if token_is(&name, b"gat", 3):
        return run_get(s, KEYS_GAT, rest, end)
    if token_is(&name, b"gats", 4):
        return run_get(s, KEYS_GATS, rest, end)
    s.quiet = False
    count = split_tokens(at, end, tokens)
    if token_is(&name, b"set", 3):
        return run_store(s, OP_SET, tokens, count, False)
    if token_is(&name, b"add", 3):
        return run_store(s, OP_ADD, tokens, count, False)
    if token_is(&name, b"replace", 7):
        return run_store(s, OP_REPLACE, tokens, count, False)
    if token_is(&name, b"append", 6):
        return run_store(s, OP_APPEND, tokens, count, False)
    if token_is(&name, b"prepend", 7):
        return run_store(s, OP_PREPEND, tokens, count, False)
    if token_is(&name, b"cas", 3):
        return run_store(s, OP_SET, tokens, count, True)
    if token_is(&name, b"incr", 4):
        return run_arithmetic(s, OP_INCR, tokens, count)
    if token_is(&name, b"decr", 4):
        return run_arithmetic(s, OP_DECR, tokens, count)
    if token_is(&name, b"delete", 6):
        return run_delete(s, tokens, count)
    if token_is(&name, b"touch", 5):
        return run_touch(s, tokens, count)
    if token_is(&name, b"version", 7):
        put(&s.out, b"VERSION 1.6.18\r\n", 16)
        return STEP_DONE
    if token_is(&name, b"quit", 4):
        return STEP_CLOSE
    return STEP_ADMIN
