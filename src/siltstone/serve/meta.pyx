"""The meta commands: mg, ms, md, ma, mn, me.

Owns the grammar of flags and the order of what is returned. Promises: as classic.pyx; O and k
come back on every reply that is sent, a miss too, so that pipelines stay matched. Called by the
session's loop in memcache.pyx, without the GIL.
"""
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from siltstone.cache.engine cimport (
    CACHE_EXISTS, CACHE_FLASH, CACHE_FOUND, CACHE_IO, CACHE_MISS, CACHE_NO_MEMORY,
    CACHE_NOT_STORED, CACHE_OK, CACHE_TOO_LARGE, CACHE_WOULD_BLOCK, OP_ADD, OP_APPEND, OP_DECR,
    OP_DELETE, OP_INCR, OP_META_GET, OP_PREPEND, OP_REPLACE, OP_SET, OPT_CAS, OPT_CAS_NEW,
    OPT_DROP_VALUE, OPT_INVALIDATE, OPT_NO_BUMP, OPT_TOUCH, OPT_VIVIFY, OPT_WANT_VALUE, OPT_WIN,
    cache_copy, cache_fetch, cache_find, cache_found, cache_hash, meta_t, read_t,
)
from siltstone.log.log cimport LOG_NOWAIT
from siltstone.serve.classic cimport value_step
from siltstone.serve.request cimport (
    KEY_SIZE_MAX, PARKED_MAX, PARKED_META, STEP_DONE, STEP_READS, answer_status, count_prefix,
    execute, expire_at, item_class, item_size, park, parked_t, reply_begin, reply_end,
    request_begin, session_t,
)
from siltstone.serve.wire cimport (
    TOKENS_MAX, decimal, output_room, output_t, parse_i64, parse_u64, put, put_byte_fit, put_fit,
    put_number_fit, split_tokens, token_t,
)

cdef enum:
    FLAG_WORDS_MAX = 19     # words of a line, its name and key included: memcached's limit
    OPAQUE_SIZE_MAX = 32    # "O" included
    HEAD_SIZE = 2048        # more than any reply line: 17 flags, a key, an opaque, numbers
    LENGTH_MAX = 2147483645

cdef extern from *:
    """
    #include <stdint.h>
    /* The bit of a flag letter: A-Z are bits 1-26, a-z bits 33-58. */
    #define FLAG_BIT(c) (UINT64_C(1) << ((c) - 64))
    static const char silt_base64[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    static inline int silt_base64_value(char c) {
        if (c >= 'A' && c <= 'Z') return c - 'A';
        if (c >= 'a' && c <= 'z') return c - 'a' + 26;
        if (c >= '0' && c <= '9') return c - '0' + 52;
        return c == '+' ? 62 : c == '/' ? 63 : -1;
    }
    /* Decoded size, or -1: whole groups of four, padding only at the end, at least one byte. */
    static int silt_base64_decode(const char *text, uint32_t size, char *to) {
        int done = 0;
        if (size == 0 || size % 4) return -1;
        for (uint32_t i = 0; i < size; i += 4) {
            int last = i + 4 == size;
            int pad = last ? (text[i + 3] == '=') + (text[i + 2] == '=' && text[i + 3] == '=') : 0;
            int a = silt_base64_value(text[i]), b = silt_base64_value(text[i + 1]);
            int c = pad == 2 ? 0 : silt_base64_value(text[i + 2]);
            int d = pad ? 0 : silt_base64_value(text[i + 3]);
            if (a < 0 || b < 0 || c < 0 || d < 0) return -1;
            to[done++] = (char)(a << 2 | b >> 4);
            if (pad < 2) to[done++] = (char)(b << 4 | c >> 2);
            if (pad < 1) to[done++] = (char)(c << 6 | d);
        }
        return done;
    }
    static uint32_t silt_base64_encode(const char *from, uint32_t size, char *to) {
        uint32_t done = 0;
        for (uint32_t i = 0; i < size; i += 3) {
            uint32_t left = size - i;
            uint32_t a = (uint8_t)from[i], b = left > 1 ? (uint8_t)from[i + 1] : 0;
            uint32_t c = left > 2 ? (uint8_t)from[i + 2] : 0;
            to[done++] = silt_base64[a >> 2];
            to[done++] = silt_base64[(a & 3) << 4 | b >> 4];
            to[done++] = left > 1 ? silt_base64[(b & 15) << 2 | c >> 6] : '=';
            to[done++] = left > 2 ? silt_base64[c & 63] : '=';
        }
        return done;
    }
    """
    uint64_t FLAG_BIT(char) noexcept nogil
    int base64_decode "silt_base64_decode"(const char *text, uint32_t size, char *to) noexcept nogil
    uint32_t base64_encode "silt_base64_encode"(const char *from_, uint32_t size,
                                                char *to) noexcept nogil

cdef struct flags_t:
    uint64_t seen           # FLAG_BIT of each letter
    uint32_t count
    token_t flags[TOKENS_MAX]
    const char *key         # decoded when binary
    uint32_t key_size
    uint64_t cas
    uint64_t cas_new
    uint64_t delta
    uint64_t initial
    uint32_t client_flags
    int64_t ttl
    int64_t vivify_ttl
    int64_t win_below
    char mode               # 0: none was given
    const char *error       # with CRLF


cdef inline bint has(const flags_t *f, char letter) noexcept nogil:
    return (f.seen & FLAG_BIT(letter)) != 0


# Flags --------------------------------------------------------------------------------------


cdef uint64_t known_flags() noexcept nogil:
    cdef uint64_t known = 0
    cdef const char *letters = b"bcfhklqstuvCDEFIJLMNOPRT"
    while letters[0]:
        known |= FLAG_BIT(letters[0])
        letters += 1
    return known


cdef bint parse_flags(session_t *s, token_t *tokens, uint32_t count, uint32_t first,
                      uint64_t known, flags_t *f) noexcept nogil:
    """Flags from tokens[first] on; 0 with f.error set when one is wrong."""
    cdef uint32_t i
    cdef char letter
    memset(f, 0, sizeof(flags_t))
    f.key = tokens[1].data
    f.key_size = tokens[1].size
    f.delta = 1
    for i in range(first, count):
        letter = tokens[i].data[0]
        if not (b'A' <= letter <= b'Z' or b'a' <= letter <= b'z'):
            f.error = b"CLIENT_ERROR invalid flag\r\n"
            return False
        if f.seen & FLAG_BIT(letter):
            f.error = b"CLIENT_ERROR duplicate flag\r\n"
            return False
        if not (FLAG_BIT(letter) & known):
            f.error = b"CLIENT_ERROR invalid flag\r\n"
            return False
        f.seen |= FLAG_BIT(letter)
        f.flags[f.count] = tokens[i]
        f.count += 1
        if not parse_flag(s, f, letter, tokens[i].data + 1, tokens[i].size - 1):
            return False
    return True


cdef bint parse_flag(session_t *s, flags_t *f, char letter, const char *text,
                     uint32_t size) noexcept nogil:
    cdef uint64_t number
    cdef int decoded
    if letter == b'b':
        decoded = base64_decode(f.key, f.key_size, s.key)
        if decoded < 0:
            f.error = b"CLIENT_ERROR error decoding key\r\n"
            return False
        f.key = s.key
        f.key_size = <uint32_t>decoded
    elif letter == b'T' or letter == b'N' or letter == b'R':
        if not parse_i64(text, size, &f.ttl if letter == b'T' else
                         &f.vivify_ttl if letter == b'N' else &f.win_below):
            f.error = b"CLIENT_ERROR bad token in command line format\r\n"
            return False
    elif letter == b'C' or letter == b'E':
        if not parse_u64(text, size, &f.cas if letter == b'C' else &f.cas_new):
            f.error = b"CLIENT_ERROR bad token in command line format\r\n"
            return False
    elif letter == b'F':
        if not parse_u64(text, size, &number):
            f.error = b"CLIENT_ERROR bad command line format\r\n"
            return False
        f.client_flags = <uint32_t>number
    elif letter == b'D':
        if not parse_u64(text, size, &f.delta):
            f.error = b"CLIENT_ERROR invalid numeric delta value\r\n"
            return False
    elif letter == b'J':
        if not parse_u64(text, size, &f.initial):
            f.error = b"CLIENT_ERROR invalid numeric initial value\r\n"
            return False
    elif letter == b'M':
        if size != 1:
            f.error = b"CLIENT_ERROR incorrect length for M token\r\n"
            return False
        f.mode = text[0]
    elif letter == b'O' and size + 1 > OPAQUE_SIZE_MAX:
        f.error = b"CLIENT_ERROR opaque token too long\r\n"
        return False
    return True


cdef void put_line(output_t *out, const char *line) noexcept nogil:
    cdef uint64_t size = 0
    while line[size]:
        size += 1
    put(out, line, size)


# Returned flags -----------------------------------------------------------------------------


cdef void put_key_fit(output_t *out, const flags_t *f) noexcept nogil:
    if has(f, b'b'):
        out.size += base64_encode(f.key, f.key_size, out.data + out.size)
    else:
        put_fit(out, f.key, f.key_size)


cdef int64_t ttl_left(int64_t expire_ms, int64_t now_ms) noexcept nogil:
    """Seconds, rounded up; -1 = never."""
    if expire_ms == 0:
        return -1
    return (expire_ms - now_ms + 999) // 1000 if expire_ms > now_ms else 0


cdef void put_echo_fit(output_t *out, const flags_t *f, const token_t *flag) noexcept nogil:
    """k and O, alike on every reply."""
    if flag.data[0] == b'O':
        put_byte_fit(out, b' ')
        put_fit(out, flag.data, flag.size)
    elif flag.data[0] == b'k':
        put_fit(out, b" k", 2)
        put_key_fit(out, f)
        if has(f, b'b'):
            put_fit(out, b" b", 2)


cdef void put_signed_fit(output_t *out, int64_t number) noexcept nogil:
    if number < 0:
        put_byte_fit(out, b'-')
        number = -number
    put_number_fit(out, <uint64_t>number)


cdef void put_flag_fit(output_t *out, char letter, uint64_t number) noexcept nogil:
    put_byte_fit(out, b' ')
    put_byte_fit(out, letter)
    put_number_fit(out, number)


cdef void put_echo(output_t *out, const flags_t *f, const char *code) noexcept nogil:
    """A reply that returns k and O only: EN, NF ..."""
    cdef uint32_t i
    if not output_room(out, HEAD_SIZE):
        return
    put_fit(out, code, 2)
    for i in range(f.count):
        put_echo_fit(out, f, &f.flags[i])
    put_fit(out, b"\r\n", 2)


cdef void put_get_head_fit(output_t *out, const flags_t *f, const meta_t *meta, bint with_value,
                           int64_t old_expire_ms, int64_t now_ms) noexcept nogil:
    """The first line of a hit of mg. Needs HEAD_SIZE bytes of room."""
    cdef uint32_t i
    cdef char letter
    cdef bint touched = False
    if with_value:
        put_fit(out, b"VA ", 3)
        put_number_fit(out, meta.value_size)
    else:
        put_fit(out, b"HD", 2)
    for i in range(f.count):
        letter = f.flags[i].data[0]
        if letter == b'T':
            touched = True
        elif letter == b't':
            put_fit(out, b" t", 2)
            put_signed_fit(out, ttl_left(
                meta.expire_ms if touched or not has(f, b'T') else old_expire_ms, now_ms))
        elif letter == b's':
            put_flag_fit(out, letter, meta.value_size)
        elif letter == b'c':
            put_flag_fit(out, letter, meta.cas)
        elif letter == b'f':
            put_flag_fit(out, letter, meta.client_flags)
        elif letter == b'h':
            put_flag_fit(out, letter, 1 if meta.fetched else 0)
        elif letter == b'l':
            put_flag_fit(out, letter, meta.idle_s)
        else:
            put_echo_fit(out, f, &f.flags[i])
    if meta.lost:
        put_fit(out, b" Z", 2)
    if meta.stale:
        put_fit(out, b" X", 2)
    if meta.won:
        put_fit(out, b" W", 2)
    put_fit(out, b"\r\n", 2)


cdef bint wants_value(const flags_t *f, const meta_t *meta) noexcept nogil:
    """v, unless C names the CAS number that the client already has."""
    return has(f, b'v') and not (has(f, b'C') and f.cas == meta.cas)


cdef void put_get(output_t *out, const flags_t *f, const meta_t *meta, const char *value,
                  int64_t old_expire_ms, int64_t now_ms) noexcept nogil:
    cdef bint with_value = wants_value(f, meta)
    if not output_room(out, HEAD_SIZE + meta.value_size):
        return
    put_get_head_fit(out, f, meta, with_value, old_expire_ms, now_ms)
    if with_value:
        put_fit(out, value, meta.value_size)
        put_fit(out, b"\r\n", 2)


# mg -----------------------------------------------------------------------------------------


cdef int run_meta_get(session_t *s, token_t *tokens, uint32_t count) noexcept nogil:
    cdef flags_t f
    cdef int status = CACHE_FLASH
    if tokens[1].size > KEY_SIZE_MAX:
        put(&s.out, b"CLIENT_ERROR bad command line format\r\n", 38)
        return STEP_DONE
    if count > FLAG_WORDS_MAX:
        put(&s.out, b"CLIENT_ERROR options flags are too long\r\n", 41)
        return STEP_DONE
    if not parse_flags(s, tokens, count, 2, known_flags(), &f):
        put_line(&s.out, f.error)
        return STEP_DONE
    reply_begin(s)
    if not (has(&f, b'T') or has(&f, b'N') or has(&f, b'R') or has(&f, b'E')):
        status = read_meta(s, &f, tokens[1].data)
    if status == CACHE_FLASH:
        status = change_meta(s, &f)
    if status == CACHE_WOULD_BLOCK:
        return STEP_READS
    s.count_meta += 1
    if has(&f, b'T'):
        s.count_touch += 1
    else:
        s.count_get += 1
    if status == CACHE_MISS or status == CACHE_IO:
        if not has(&f, b'q'):
            put_echo(&s.out, &f, b"EN")
    elif status != CACHE_FOUND:
        answer_status(s, status)
    if s.shared.detail:
        count_prefix(s, f.key, f.key_size, status == CACHE_FOUND)
    reply_end(s)
    return STEP_DONE


cdef int read_meta(session_t *s, flags_t *f, const char *line) noexcept nogil:
    """An mg that changes nothing. CACHE_FLASH: it does after all (a win is to be had)."""
    cdef read_t cursor
    cdef uint64_t start
    cdef uint64_t hash = cache_hash(s.cache, f.key, f.key_size)
    cdef int status
    cdef bint with_value
    cursor.tries = 0
    cursor.no_wait = False
    cursor.no_bump = has(f, b'u')
    cursor.meta.stale = cursor.meta.lost = False
    while True:
        status = cache_find(s.cache, f.key, f.key_size, hash, &cursor)
        if status != CACHE_FOUND:
            break
        if cursor.meta.stale and not cursor.meta.lost:
            return CACHE_FLASH
        start = s.out.size
        if not output_room(&s.out, HEAD_SIZE + cursor.value_size):
            return CACHE_NO_MEMORY
        with_value = wants_value(f, &cursor.meta)
        put_get_head_fit(&s.out, f, &cursor.meta, with_value, 0, s.now_ms)
        if with_value:
            cache_copy(&cursor, s.out.data + s.out.size)
            s.out.size += cursor.value_size
            put_fit(&s.out, b"\r\n", 2)
        if cache_found(s.cache, &cursor):
            return CACHE_FOUND
        s.out.size = start
    if status != CACHE_FLASH:
        return status
    return fetch_meta(s, f, line, hash, &cursor)


cdef int fetch_meta(session_t *s, flags_t *f, const char *line, uint64_t hash,
                    read_t *cursor) noexcept nogil:
    """The same for an item on flash: answered now, or parked."""
    cdef parked_t *parked
    cdef uint32_t line_size = <uint32_t>(s.line_end - line)
    cdef char *copied
    cdef int status
    if s.parked_count == PARKED_MAX:
        return CACHE_WOULD_BLOCK
    if cursor.meta.stale and not cursor.meta.lost:
        return CACHE_FLASH
    status = cache_fetch(s.cache, f.key, f.key_size, hash, cursor, &s.record, LOG_NOWAIT)
    if status == CACHE_FOUND:
        if cursor.meta.stale and not cursor.meta.lost:
            return CACHE_FLASH
        put_get(&s.out, f, &cursor.meta, cursor.value, 0, s.now_ms)
    elif status == CACHE_WOULD_BLOCK:
        copied = <char *>malloc(line_size)
        parked = park(s, PARKED_META, f.key, f.key_size, hash) if copied != NULL else NULL
        if parked == NULL:
            free(copied)
            return CACHE_NO_MEMORY
        memcpy(copied, line, line_size)
        parked.cursor = cursor[0]
        parked.line, parked.line_size = copied, line_size
        return CACHE_FOUND
    return status


cdef void put_parked_meta(session_t *s, parked_t *parked, output_t *out) noexcept nogil:
    cdef token_t tokens[TOKENS_MAX + 1]
    cdef flags_t f
    cdef uint32_t count = split_tokens(parked.line, parked.line + parked.line_size, tokens + 1)
    parse_flags(s, tokens, count + 1, 2, known_flags(), &f)     # was parsed before: is sound
    if parked.status == CACHE_FOUND:
        put_get(out, &f, &parked.cursor.meta, parked.cursor.value, 0, s.now_ms)
    elif not has(&f, b'q'):
        put_echo(out, &f, b"EN")


cdef int64_t created_ttl(const flags_t *f) noexcept nogil:
    """Of what N makes: T counts after a creation as after a hit, so the later of the two."""
    cdef uint32_t i
    cdef int64_t ttl = f.vivify_ttl
    for i in range(f.count):
        if f.flags[i].data[0] == b'T':
            ttl = f.ttl
        elif f.flags[i].data[0] == b'N':
            ttl = f.vivify_ttl
    return ttl


cdef int change_meta(session_t *s, flags_t *f) noexcept nogil:
    """An mg that touches, creates, may win, or sets the CAS number."""
    cdef int status
    request_begin(s, OP_META_GET, f.key, f.key_size)
    s.request.options = OPT_WIN if has(f, b'R') else 0
    s.request.win_below_ms = max(<int64_t>0, min(f.win_below, INT64_MAX // 1000)) * 1000
    if has(f, b'v'):
        s.request.options |= OPT_WANT_VALUE
    if has(f, b'u'):
        s.request.options |= OPT_NO_BUMP
    if has(f, b'T'):
        s.request.options |= OPT_TOUCH
        s.request.expire_ms = expire_at(s, f.ttl)
    if has(f, b'N'):
        s.request.options |= OPT_VIVIFY
        s.request.vivify_expire_ms = expire_at(s, created_ttl(f))
    if has(f, b'E'):
        s.request.options |= OPT_CAS_NEW
        s.request.cas_new = f.cas_new
    status = execute(s)
    if status == CACHE_FOUND:
        put_get(&s.out, f, &s.reply.meta, s.reply.value,
                expire_at(s, f.vivify_ttl) if s.reply.created else s.reply.expire_before_ms,
                s.now_ms)
    return status


# ms -----------------------------------------------------------------------------------------


cdef int run_meta_set(session_t *s, token_t *tokens, uint32_t count) noexcept nogil:
    cdef flags_t f
    cdef int64_t length = -1
    cdef bint length_sound
    f.error = NULL
    length_sound = (count > 2 and parse_i64(tokens[2].data, tokens[2].size, &length)
                    and length >= 0 and length <= LENGTH_MAX)
    if not length_sound or tokens[1].size > KEY_SIZE_MAX:
        f.error = b"CLIENT_ERROR bad command line format\r\n"
    elif count > FLAG_WORDS_MAX:
        f.error = b"CLIENT_ERROR options flags too long\r\n"
    elif parse_flags(s, tokens, count, 3, known_flags(), &f):
        if set_mode(f.mode) < 0:
            f.error = b"CLIENT_ERROR invalid mode for ms M token\r\n"
    if f.error != NULL:
        put_line(&s.out, f.error)
        if length_sound:
            s.swallow = <uint64_t>length + 2
        return STEP_DONE
    fill_meta_set(s, &f, <uint64_t>length)
    return store_meta(s, &f)


cdef int set_mode(char mode) noexcept nogil:
    """The operation of an M token of ms; -1 = there is none."""
    if mode == 0 or mode == b'S':
        return OP_SET
    if mode == b'E':
        return OP_ADD
    if mode == b'A':
        return OP_APPEND
    if mode == b'P':
        return OP_PREPEND
    return OP_REPLACE if mode == b'R' else -1


cdef void fill_meta_set(session_t *s, flags_t *f, uint64_t length) noexcept nogil:
    cdef int op = set_mode(f.mode)
    request_begin(s, <uint8_t>op, f.key, f.key_size)
    s.request.value_size = length
    s.request.client_flags = f.client_flags
    s.request.expire_ms = expire_at(s, f.ttl)
    s.request.options = 0
    if has(f, b'C') and op != OP_ADD:
        s.request.options |= OPT_CAS
        s.request.cas = f.cas
        if has(f, b'I'):
            s.request.options |= OPT_INVALIDATE
    if has(f, b'E'):
        s.request.options |= OPT_CAS_NEW
        s.request.cas_new = f.cas_new
    if has(f, b'N') and (op == OP_APPEND or op == OP_PREPEND):
        s.request.options |= OPT_VIVIFY
        s.request.vivify_expire_ms = expire_at(s, f.vivify_ttl)


cdef int store_meta(session_t *s, flags_t *f) noexcept nogil:
    cdef int step = value_step(s)
    cdef int status
    if step != STEP_DONE or s.request.value == NULL:
        return step
    status = execute(s)
    if status == CACHE_WOULD_BLOCK:
        return STEP_READS
    s.next += s.request.value_size + 2
    s.count_meta += 1
    s.count_set += 1
    if s.shared.detail:
        count_prefix(s, f.key, f.key_size, 2)
    if status == CACHE_OK:
        if not has(f, b'q'):
            put_stored(s, f, b"HD", s.reply.meta.cas, s.reply.meta.value_size)
    elif status == CACHE_EXISTS:
        put_stored(s, f, b"EX", 0, s.request.value_size)
    elif (status == CACHE_MISS or status == CACHE_IO) and s.request.options & OPT_CAS and (
            s.request.op != OP_APPEND and s.request.op != OP_PREPEND):
        put_stored(s, f, b"NF", 0, s.request.value_size)
    elif status == CACHE_MISS or status == CACHE_IO or status == CACHE_NOT_STORED or (
            status == CACHE_TOO_LARGE and (s.request.op == OP_APPEND
                                           or s.request.op == OP_PREPEND)):
        put_stored(s, f, b"NS", 0, s.request.value_size)
    else:
        answer_status(s, status)
    return STEP_DONE


cdef void put_stored(session_t *s, flags_t *f, const char *code, uint64_t cas,
                     uint64_t size) noexcept nogil:
    cdef uint32_t i
    cdef char letter
    if not output_room(&s.out, HEAD_SIZE):
        return
    put_fit(&s.out, code, 2)
    for i in range(f.count):
        letter = f.flags[i].data[0]
        if letter == b'c':
            put_flag_fit(&s.out, letter, cas)
        elif letter == b's':
            put_flag_fit(&s.out, letter, size)
        else:
            put_echo_fit(&s.out, f, &f.flags[i])
    put_fit(&s.out, b"\r\n", 2)


# md and ma ----------------------------------------------------------------------------------


cdef bint changing_flags(session_t *s, token_t *tokens, uint32_t count, uint64_t known,
                         flags_t *f) noexcept nogil:
    """What md and ma check alike; memcached has one line for nearly every wrong flag of theirs."""
    cdef bint opaque = False
    if tokens[1].size > KEY_SIZE_MAX:
        put(&s.out, b"CLIENT_ERROR bad command line format\r\n", 38)
        return False
    if count > FLAG_WORDS_MAX:
        put(&s.out, b"CLIENT_ERROR options flags too long\r\n", 37)
        return False
    if parse_flags(s, tokens, count, 2, known, f):
        return True
    opaque = f.count > 0 and f.flags[f.count - 1].data[0] == b'O'
    if opaque and f.flags[f.count - 1].size > OPAQUE_SIZE_MAX:
        put_line(&s.out, f.error)
    else:
        put(&s.out, b"CLIENT_ERROR invalid or duplicate flag\r\n", 40)
    return False


cdef int run_meta_delete(session_t *s, token_t *tokens, uint32_t count) noexcept nogil:
    cdef flags_t f
    cdef int status
    if not changing_flags(s, tokens, count, known_flags() | FLAG_BIT(b'x'), &f):
        return STEP_DONE
    request_begin(s, OP_DELETE, f.key, f.key_size)
    s.request.options = 0
    if has(&f, b'C'):
        s.request.options |= OPT_CAS
        s.request.cas = f.cas
    if has(&f, b'E'):
        s.request.options |= OPT_CAS_NEW
        s.request.cas_new = f.cas_new
    if has(&f, b'x'):
        s.request.options |= OPT_DROP_VALUE
    if has(&f, b'I'):
        s.request.options |= OPT_INVALIDATE
        if has(&f, b'T'):
            s.request.options |= OPT_TOUCH
            s.request.expire_ms = expire_at(s, f.ttl)
    status = execute(s)
    if status == CACHE_WOULD_BLOCK:
        return STEP_READS
    s.count_meta += 1
    if s.shared.detail:
        count_prefix(s, f.key, f.key_size, 3)
    if status == CACHE_OK:
        if not has(&f, b'q'):
            put_echo(&s.out, &f, b"HD")
    elif status == CACHE_EXISTS:
        put_echo(&s.out, &f, b"EX")
    elif status == CACHE_MISS or status == CACHE_IO:
        put_echo(&s.out, &f, b"NF")
    else:
        answer_status(s, status)
    return STEP_DONE


cdef int run_meta_arithmetic(session_t *s, token_t *tokens, uint32_t count) noexcept nogil:
    cdef flags_t f
    cdef int status
    if not changing_flags(s, tokens, count, known_flags(), &f):
        return STEP_DONE
    if f.mode != 0 and f.mode not in (b'I', b'+', b'D', b'-'):
        put(&s.out, b"CLIENT_ERROR invalid mode for ma M token\r\n", 42)
        return STEP_DONE
    request_begin(s, OP_DECR if f.mode == b'D' or f.mode == b'-' else OP_INCR, f.key, f.key_size)
    s.request.delta = f.delta
    s.request.options = 0
    if has(&f, b'N'):
        s.request.options |= OPT_VIVIFY
        s.request.initial = f.initial
        # T after a creation counts as after any other change of the number
        s.request.vivify_expire_ms = expire_at(s, f.ttl if has(&f, b'T') else f.vivify_ttl)
    if has(&f, b'T'):
        s.request.options |= OPT_TOUCH
        s.request.expire_ms = expire_at(s, f.ttl)
    if has(&f, b'C') and f.cas:         # 0 compares with nothing
        s.request.options |= OPT_CAS
        s.request.cas = f.cas
    if has(&f, b'E'):
        s.request.options |= OPT_CAS_NEW
        s.request.cas_new = f.cas_new
    status = execute(s)
    if status == CACHE_WOULD_BLOCK:
        return STEP_READS
    s.count_meta += 1
    if status == CACHE_OK:
        if not has(&f, b'q'):
            put_number_reply(s, &f)
    elif status == CACHE_MISS or status == CACHE_IO:
        put_echo(&s.out, &f, b"NF")
    elif status == CACHE_EXISTS:
        put_echo(&s.out, &f, b"EX")
    elif status == CACHE_NOT_STORED:
        put_echo(&s.out, &f, b"NS")
    else:
        answer_status(s, status)
    return STEP_DONE


cdef void put_number_reply(session_t *s, flags_t *f) noexcept nogil:
    cdef uint32_t i
    cdef char letter
    cdef char digits[20]
    cdef uint32_t size = decimal(digits, s.reply.number)
    cdef bint touched = False
    if not output_room(&s.out, HEAD_SIZE):
        return
    if has(f, b'v'):
        put_fit(&s.out, b"VA ", 3)
        put_number_fit(&s.out, size)
    else:
        put_fit(&s.out, b"HD", 2)
    for i in range(f.count):
        letter = f.flags[i].data[0]
        if letter == b'T':
            touched = True
        elif letter == b't':
            put_fit(&s.out, b" t", 2)
            put_signed_fit(&s.out, ttl_left(
                s.reply.meta.expire_ms if touched or not has(f, b'T') or s.reply.created
                else s.reply.expire_before_ms, s.now_ms))
        elif letter == b'c':
            put_flag_fit(&s.out, letter, s.reply.meta.cas)
        else:
            put_echo_fit(&s.out, f, &f.flags[i])
    put_fit(&s.out, b"\r\n", 2)
    if has(f, b'v'):
        put_fit(&s.out, digits, size)
        put_fit(&s.out, b"\r\n", 2)


# me -----------------------------------------------------------------------------------------


cdef int run_meta_examine(session_t *s, token_t *tokens, uint32_t count) noexcept nogil:
    """KEY [b]: what is known of the item, for people."""
    cdef flags_t f
    cdef int status
    cdef int decoded = 0
    cdef meta_t *meta = &s.reply.meta
    cdef uint64_t size
    memset(&f, 0, sizeof(f))
    if count > 1:
        f.key = tokens[1].data
        f.key_size = tokens[1].size
    if f.key_size and count > 2 and tokens[2].size == 1 and tokens[2].data[0] == b'b':
        f.seen = FLAG_BIT(b'b')
        if f.key_size <= KEY_SIZE_MAX:
            decoded = base64_decode(f.key, f.key_size, s.key)
            f.key = s.key
            f.key_size = <uint32_t>decoded
    if f.key_size == 0 or decoded < 0 or f.key_size > KEY_SIZE_MAX:
        put(&s.out, b"CLIENT_ERROR bad command line format\r\n", 38)
        return STEP_DONE
    request_begin(s, OP_META_GET, f.key, f.key_size)
    s.request.options = OPT_NO_BUMP
    status = execute(s)
    if status == CACHE_WOULD_BLOCK:
        return STEP_READS
    if status == CACHE_MISS or status == CACHE_IO:
        put(&s.out, b"EN\r\n", 4)
    elif status != CACHE_OK:
        answer_status(s, status)
    elif output_room(&s.out, HEAD_SIZE):
        size = item_size(f.key_size, meta.client_flags, meta.value_size)
        put_fit(&s.out, b"ME ", 3)
        put_key_fit(&s.out, &f)
        put_fit(&s.out, b" exp=", 5)
        put_signed_fit(&s.out, ttl_left(meta.expire_ms, s.now_ms))
        put_fit(&s.out, b" la=", 4)
        put_number_fit(&s.out, meta.idle_s)
        put_fit(&s.out, b" cas=", 5)
        put_number_fit(&s.out, meta.cas)
        put_fit(&s.out, b" fetch=yes" if meta.fetched else b" fetch=no", 10 if meta.fetched else 9)
        put_fit(&s.out, b" cls=", 5)
        put_number_fit(&s.out, item_class(size))
        put_fit(&s.out, b" size=", 6)
        put_number_fit(&s.out, size)
        put_fit(&s.out, b"\r\n", 2)
    return STEP_DONE


# Which command it is ------------------------------------------------------------------------


cdef int run_meta(session_t *s, const char *at, const char *end) noexcept nogil:
    """A line whose first word is m and one of g s d a n e."""
    cdef token_t tokens[TOKENS_MAX]
    cdef uint32_t count = split_tokens(at, end, tokens)
    cdef char letter = tokens[0].data[1]
    s.quiet = False
    if letter == b'n':
        put(&s.out, b"MN\r\n", 4)
        return STEP_DONE
    if letter == b'e':
        return run_meta_examine(s, tokens, count)
    if count < 2:
        put(&s.out, b"ERROR\r\n", 7)
        return STEP_DONE
    if letter == b'g':
        return run_meta_get(s, tokens, count)
    if letter == b's':
        return run_meta_set(s, tokens, count)
    if letter == b'd':
        return run_meta_delete(s, tokens, count)
    return run_meta_arithmetic(s, tokens, count)
