"""memcached's binary protocol: packets of a header, extras, a key and a value, all big endian.

Owns the layout of packets and which reply each status becomes. A quiet command leaves its success
(of a get: its miss) unsaid. Promises what classic.pyx promises of commands; a packet that makes no
sense is answered, then the connection closes, since nothing says where the next one begins. Called
by the session's loop, without the GIL, for connections that began with a packet.

The layout is that of memcached's protocol-binary document; which bad packet gets which status was
measured on memcached 1.6.18. It takes a wrong number of bytes behind an unknown opcode; here the
stream goes on with the next packet.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from siltstone.cache.engine cimport (
    CACHE_BUSY, CACHE_EXISTS, CACHE_FLASH, CACHE_FOUND, CACHE_IO, CACHE_MISS, CACHE_NO_MEMORY,
    CACHE_NOT_NUMBER, CACHE_NOT_STORED, CACHE_OK, CACHE_TOO_LARGE, CACHE_WOULD_BLOCK, OP_ADD,
    OP_APPEND, OP_DECR, OP_DELETE, OP_INCR, OP_META_GET, OP_PREPEND, OP_REPLACE, OP_SET,
    OP_TOUCH, OPT_CAS, OPT_TOUCH, OPT_VIVIFY, OPT_WANT_VALUE, cache_copy, cache_fetch,
    cache_find, cache_found, cache_hash, meta_t, read_t,
)
from siltstone.log.log cimport LOG_NOWAIT
from siltstone.serve.request cimport (
    KEY_SIZE_MAX, PARKED_MAX, PARKED_PACKET, STEP_ADMIN, STEP_CLOSE, STEP_DONE, STEP_MORE,
    STEP_READS, count_prefix, drop_value, execute, expire_at, item_size, park, parked_t,
    reply_begin, reply_end, request_begin, session_t,
)
from siltstone.serve.wire cimport output_room, output_t, put_fit

cdef extern from "<endian.h>" nogil:
    uint16_t htobe16(uint16_t)
    uint16_t be16toh(uint16_t)
    uint32_t htobe32(uint32_t)
    uint32_t be32toh(uint32_t)
    uint64_t htobe64(uint64_t)
    uint64_t be64toh(uint64_t)

cdef enum:
    REPLY_MAGIC = 0x81
    HEADER_SIZE = 24
    NEVER_CREATE = 0xffffffff       # incr and decr: an expiry that says so

cdef enum opcode_t:
    # The quiet twins are other numbers: see `loud`.
    GET = 0x00
    SET = 0x01
    ADD = 0x02
    REPLACE = 0x03
    DELETE = 0x04
    INCR = 0x05
    DECR = 0x06
    QUIT = 0x07
    FLUSH = 0x08
    NOOP = 0x0a
    VERSION = 0x0b
    GETK = 0x0c
    APPEND = 0x0e
    PREPEND = 0x0f
    STAT = 0x10
    TOUCH = 0x1c
    GAT = 0x1d
    GATK = 0x23

cdef enum reply_status_t:
    SUCCESS = 0x00
    NOT_FOUND = 0x01
    EXISTS = 0x02
    TOO_LARGE = 0x03
    INVALID = 0x04
    NOT_STORED = 0x05
    NOT_NUMBER = 0x06
    UNKNOWN = 0x81
    NO_MEMORY = 0x82
    INTERNAL = 0x84
    BUSY = 0x85

cdef struct packet_t:
    uint8_t opcode          # as it came; replies carry it
    uint8_t op              # its loud twin
    uint16_t key_size
    uint8_t extras_size
    uint32_t body_size      # extras, key and value
    uint32_t value_size
    uint32_t opaque         # as it came: bytes of the client's
    uint64_t cas
    const char *extras
    const char *key

# header_t has no holes: 24 bytes as on the wire.
cdef packed struct header_t:
    uint8_t magic
    uint8_t opcode
    uint16_t key_size
    uint8_t extras_size
    uint8_t data_type
    uint16_t status         # of a request: a bucket's number, which memcached does not look at
    uint32_t body_size
    uint32_t opaque
    uint64_t cas


# Packets ------------------------------------------------------------------------------------


cdef int next_packet(session_t *s) noexcept nogil:
    cdef packet_t p
    cdef const char *at = s.input + s.at
    if s.size - s.at < HEADER_SIZE:
        s.need = HEADER_SIZE
        return STEP_MORE
    if <uint8_t>at[0] != REQUEST_MAGIC:
        return STEP_CLOSE
    read_header(&p, at)
    if p.key_size + <uint32_t>p.extras_size > p.body_size:
        return refuse_packet(s, &p, UNKNOWN)
    p.value_size = p.body_size - p.key_size - p.extras_size
    if not is_known(p.op):
        put_refusal(&s.out, &p, UNKNOWN)
        s.next = s.at + HEADER_SIZE
        s.swallow = p.body_size
        return STEP_DONE
    if not is_sound(&p):
        return refuse_packet(s, &p, INVALID)
    s.next = s.at + HEADER_SIZE + p.extras_size + p.key_size
    if s.next > s.size:
        s.need = s.next - s.at
        return STEP_MORE
    s.quiet = p.op != p.opcode
    return run_packet(s, &p)


cdef void read_header(packet_t *p, const char *at) noexcept nogil:
    cdef header_t header
    memcpy(&header, at, HEADER_SIZE)
    p.opcode = header.opcode
    p.op = loud(header.opcode)
    p.key_size = be16toh(header.key_size)
    p.extras_size = header.extras_size
    p.body_size = be32toh(header.body_size)
    p.opaque = header.opaque
    p.cas = be64toh(header.cas)
    p.extras = at + HEADER_SIZE
    p.key = p.extras + p.extras_size


cdef uint8_t loud(uint8_t opcode) noexcept nogil:
    """What a quiet opcode does; others are themselves."""
    if opcode == 0x09:
        return GET
    if opcode == 0x0d:
        return GETK
    if 0x11 <= opcode <= 0x18:
        return opcode - 0x10
    if opcode == 0x19:
        return APPEND
    if opcode == 0x1a:
        return PREPEND
    if opcode == 0x1e:
        return GAT
    return GATK if opcode == 0x24 else opcode


cdef bint is_known(uint8_t op) noexcept nogil:
    return op <= STAT and op not in (0x09, 0x0d) or op in (TOUCH, GAT, GATK)


cdef bint is_store(uint8_t op) noexcept nogil:
    return op in (SET, ADD, REPLACE, APPEND, PREPEND)


cdef bint is_sound(packet_t *p) noexcept nogil:
    """Are extras, key and value those that the command has?"""
    cdef uint32_t extras = 0
    if p.op in (SET, ADD, REPLACE):
        extras = 8
    elif p.op in (INCR, DECR):
        extras = 20
    elif p.op in (TOUCH, GAT, GATK) or (p.op == FLUSH and p.extras_size):
        extras = 4
    if p.extras_size != extras or p.key_size > KEY_SIZE_MAX:
        return False
    if p.value_size and not is_store(p.op):
        return False
    if p.op in (QUIT, FLUSH, NOOP, VERSION):
        return p.key_size == 0
    return p.key_size > 0 or p.op == STAT


cdef int run_packet(session_t *s, packet_t *p) noexcept nogil:
    if is_store(p.op):
        return run_store(s, p)
    if p.op == GET or p.op == GETK:
        return run_get(s, p)
    if p.op in (TOUCH, GAT, GATK):
        return run_touch(s, p)
    if p.op == DELETE:
        return run_delete(s, p)
    if p.op == INCR or p.op == DECR:
        return run_arithmetic(s, p)
    if p.op == FLUSH or p.op == STAT:
        s.line = s.input + s.at
        s.line_end = s.input + s.next
        return STEP_READS if s.parked_count else STEP_ADMIN
    if p.op == QUIT and s.parked_count:
        return STEP_READS
    if p.op == VERSION:
        if put_head(&s.out, p, SUCCESS, 0, 0, 6, 0):
            put_fit(&s.out, b"1.6.18", 6)
    elif not s.quiet:
        put_head(&s.out, p, SUCCESS, 0, 0, 0, 0)
    return STEP_CLOSE if p.op == QUIT else STEP_DONE


# Replies ------------------------------------------------------------------------------------


cdef bint put_head(output_t *out, const packet_t *p, uint16_t status, uint8_t extras_size,
                   uint16_t key_size, uint64_t value_size, uint64_t cas) noexcept nogil:
    """A reply's header, and room for what follows it; False: there is no memory."""
    cdef header_t header
    cdef uint64_t body_size = extras_size + key_size + value_size
    if not output_room(out, HEADER_SIZE + body_size):
        return False
    header.magic = REPLY_MAGIC
    header.opcode = p.opcode
    header.key_size = htobe16(key_size)
    header.extras_size = extras_size
    header.data_type = 0
    header.status = htobe16(status)
    header.body_size = htobe32(<uint32_t>body_size)
    header.opaque = p.opaque
    header.cas = htobe64(cas)
    put_fit(out, <const char *>&header, HEADER_SIZE)
    return True


cdef void put_word_fit(output_t *out, uint32_t word) noexcept nogil:
    cdef uint32_t ordered = htobe32(word)
    put_fit(out, <const char *>&ordered, 4)


cdef void put_refusal(output_t *out, const packet_t *p, uint16_t status) noexcept nogil:
    """Why it was not done, in a number and in words."""
    if status == NOT_FOUND:
        put_reason(out, p, status, b"Not found", 9)
    elif status == EXISTS:
        put_reason(out, p, status, b"Data exists for key.", 20)
    elif status == TOO_LARGE:
        put_reason(out, p, status, b"Too large.", 10)
    elif status == INVALID:
        put_reason(out, p, status, b"Invalid arguments", 17)
    elif status == NOT_STORED:
        put_reason(out, p, status, b"Not stored.", 11)
    elif status == NOT_NUMBER:
        put_reason(out, p, status, b"Non-numeric server-side value for incr or decr", 46)
    elif status == UNKNOWN:
        put_reason(out, p, status, b"Unknown command", 15)
    elif status == NO_MEMORY:
        put_reason(out, p, status, b"Out of memory", 13)
    elif status == BUSY:
        put_reason(out, p, status, b"Busy", 4)
    else:
        put_reason(out, p, status, b"Internal error", 14)


cdef void put_reason(output_t *out, const packet_t *p, uint16_t status, const char *text,
                     uint32_t size) noexcept nogil:
    if put_head(out, p, status, 0, 0, size, 0):
        put_fit(out, text, size)


cdef int refuse_packet(session_t *s, packet_t *p, uint16_t status) noexcept nogil:
    if s.parked_count:
        return STEP_READS       # replies before it are still to come
    put_refusal(&s.out, p, status)
    return STEP_CLOSE


cdef uint16_t refusal_of(int status) noexcept nogil:
    """The number of a cache_status_t that is an error whatever the command was."""
    if status == CACHE_MISS or status == CACHE_IO:
        return NOT_FOUND
    if status == CACHE_EXISTS:
        return EXISTS
    if status == CACHE_TOO_LARGE:
        return TOO_LARGE
    if status == CACHE_NO_MEMORY:
        return NO_MEMORY
    if status == CACHE_NOT_NUMBER:
        return NOT_NUMBER
    if status == CACHE_NOT_STORED:
        return NOT_STORED
    return BUSY if status == CACHE_BUSY else INTERNAL


cdef void answer_packet(session_t *s, packet_t *p, int status) noexcept nogil:
    """The reply of what returns nothing but the item's new CAS number."""
    if status != CACHE_OK:
        put_refusal(&s.out, p, refusal_of(status))
    elif not s.quiet:
        put_head(&s.out, p, SUCCESS, 0, 0, 0, 0 if p.op == DELETE else s.reply.meta.cas)


# Gets ---------------------------------------------------------------------------------------


cdef int run_get(session_t *s, packet_t *p) noexcept nogil:
    cdef int status
    if s.parked_count == PARKED_MAX:
        return STEP_READS
    s.count_get += 1
    reply_begin(s)
    status = get_item(s, p)
    reply_end(s)
    if status == CACHE_NO_MEMORY:
        s.out.failed = False
    if status == CACHE_MISS or status == CACHE_IO:
        put_miss(&s.out, p, p.key)
    elif status != CACHE_FOUND:
        put_refusal(&s.out, p, refusal_of(status))
    if s.shared.detail:
        count_prefix(s, p.key, p.key_size, status == CACHE_FOUND)
    return STEP_DONE


cdef int get_item(session_t *s, packet_t *p) noexcept nogil:
    """The reply to a hit, now or when its record is read (CACHE_FOUND, too)."""
    cdef read_t cursor
    cdef parked_t *parked
    cdef uint64_t start = s.out.size
    cdef uint64_t hash = cache_hash(s.cache, p.key, p.key_size)
    cdef int status
    cursor.tries = 0
    cursor.no_wait = False
    cursor.no_bump = False
    while True:
        status = cache_find(s.cache, p.key, p.key_size, hash, &cursor)
        if status != CACHE_FOUND:
            break
        if not put_value_head(&s.out, p, p.key, &cursor.meta, cursor.value_size):
            return CACHE_NO_MEMORY
        cache_copy(&cursor, s.out.data + s.out.size)
        s.out.size += cursor.value_size
        if cache_found(s.cache, &cursor):
            return CACHE_FOUND
        s.out.size = start
    if status != CACHE_FLASH:
        return status
    status = cache_fetch(s.cache, p.key, p.key_size, hash, &cursor, &s.record, LOG_NOWAIT)
    if status == CACHE_FOUND:
        put_value(&s.out, p, p.key, &cursor.meta, cursor.value)
    elif status == CACHE_WOULD_BLOCK:
        parked = park(s, PARKED_PACKET, p.key, p.key_size, hash)
        if parked == NULL:
            return CACHE_NO_MEMORY
        parked.cursor = cursor
        parked.opcode = p.opcode
        parked.opaque = p.opaque
        return CACHE_FOUND
    return status


cdef bint put_value_head(output_t *out, const packet_t *p, const char *key, const meta_t *meta,
                         uint64_t value_size) noexcept nogil:
    """All of a hit's reply but the value, for which there is room then."""
    cdef uint16_t key_size = p.key_size if p.op == GETK or p.op == GATK else 0
    if not put_head(out, p, SUCCESS, 4, key_size, value_size, meta.cas):
        return False
    put_word_fit(out, meta.client_flags)
    put_fit(out, key, key_size)
    return True


cdef void put_value(output_t *out, const packet_t *p, const char *key, const meta_t *meta,
                    const char *value) noexcept nogil:
    if put_value_head(out, p, key, meta, meta.value_size):
        put_fit(out, value, meta.value_size)


cdef void put_miss(output_t *out, const packet_t *p, const char *key) noexcept nogil:
    if p.op != p.opcode:
        return
    if p.op != GETK and p.op != GATK:
        put_refusal(out, p, NOT_FOUND)
    elif put_head(out, p, NOT_FOUND, 0, p.key_size, 0, 0):
        put_fit(out, key, p.key_size)


cdef packet_t packet_of(parked_t *parked) noexcept nogil:
    """As much of a parked get's packet as its reply needs."""
    cdef packet_t p
    memset(&p, 0, sizeof(p))
    p.opcode = parked.opcode
    p.op = loud(parked.opcode)
    p.opaque = parked.opaque
    p.key_size = <uint16_t>parked.key_size
    return p


cdef void put_parked_packet(parked_t *parked, output_t *out) noexcept nogil:
    cdef packet_t p = packet_of(parked)
    if parked.status == CACHE_FOUND:
        put_value(out, &p, parked.key, &parked.cursor.meta, parked.cursor.value)
    else:
        put_miss(out, &p, parked.key)


cdef void put_busy_packet(parked_t *parked, output_t *out) noexcept nogil:
    cdef packet_t p = packet_of(parked)
    put_refusal(out, &p, BUSY)


# Changes ------------------------------------------------------------------------------------


cdef uint32_t word_at(const char *at) noexcept nogil:
    cdef uint32_t word
    memcpy(&word, at, 4)
    return be32toh(word)


cdef uint64_t double_word_at(const char *at) noexcept nogil:
    cdef uint64_t word
    memcpy(&word, at, 8)
    return be64toh(word)


cdef void begin(session_t *s, packet_t *p, uint8_t op) noexcept nogil:
    """s.request for the packet's key; a CAS number that is not 0 must be the item's."""
    request_begin(s, op, p.key, p.key_size)
    if p.cas:
        s.request.options = OPT_CAS
        s.request.cas = p.cas


cdef int run_store(session_t *s, packet_t *p) noexcept nogil:
    cdef bint joins = p.op == APPEND or p.op == PREPEND
    cdef int status
    begin(s, p, store_op(p))
    s.request.value_size = p.value_size
    if not joins:
        s.request.client_flags = word_at(p.extras)
        s.request.expire_ms = expire_at(s, word_at(p.extras + 4))
    if s.no_memory or item_size(p.key_size, s.request.client_flags,
                                p.value_size) > s.item_size_max:
        status = drop_value(s)
        if status == CACHE_WOULD_BLOCK:
            return STEP_READS
        put_refusal(&s.out, p, refusal_of(status))
        s.swallow = p.value_size
        return STEP_DONE
    if s.size - s.next < p.value_size:
        s.need = s.next - s.at + p.value_size
        return STEP_MORE
    s.request.value = s.input + s.next
    status = execute(s)
    if status == CACHE_WOULD_BLOCK:
        return STEP_READS
    s.next += p.value_size
    s.count_set += 1
    if s.shared.detail:
        count_prefix(s, p.key, p.key_size, 2)
    if joins and status in (CACHE_MISS, CACHE_IO, CACHE_TOO_LARGE):
        status = CACHE_NOT_STORED
    elif not joins and status == CACHE_NOT_STORED:
        status = CACHE_EXISTS if p.op == ADD else CACHE_MISS
    answer_packet(s, p, status)
    return STEP_DONE


cdef uint8_t store_op(packet_t *p) noexcept nogil:
    if p.op == APPEND:
        return OP_APPEND
    if p.op == PREPEND:
        return OP_PREPEND
    if p.cas:
        return OP_SET       # the item must be there and as it was: add and replace say no more
    if p.op == ADD:
        return OP_ADD
    return OP_REPLACE if p.op == REPLACE else OP_SET


cdef int run_delete(session_t *s, packet_t *p) noexcept nogil:
    cdef int status
    begin(s, p, OP_DELETE)
    status = execute(s)
    if status == CACHE_WOULD_BLOCK:
        return STEP_READS
    if s.shared.detail:
        count_prefix(s, p.key, p.key_size, 3)
    answer_packet(s, p, status)
    return STEP_DONE


cdef int run_arithmetic(session_t *s, packet_t *p) noexcept nogil:
    """Extras: how much, what it is at first, and for how long that is kept."""
    cdef uint32_t expiry = word_at(p.extras + 16)
    cdef uint64_t ordered
    cdef int status
    begin(s, p, OP_INCR if p.op == INCR else OP_DECR)
    s.request.delta = double_word_at(p.extras)
    if expiry != NEVER_CREATE:
        s.request.options |= OPT_VIVIFY
        s.request.initial = double_word_at(p.extras + 8)
        s.request.vivify_expire_ms = expire_at(s, expiry)
    status = execute(s)
    if status == CACHE_WOULD_BLOCK:
        return STEP_READS
    if status != CACHE_OK:
        answer_packet(s, p, status)
    elif not s.quiet and put_head(&s.out, p, SUCCESS, 0, 0, 8, s.reply.meta.cas):
        ordered = htobe64(s.reply.number)
        put_fit(&s.out, <const char *>&ordered, 8)
    return STEP_DONE


cdef int run_touch(session_t *s, packet_t *p) noexcept nogil:
    """touch, and the gets that touch."""
    cdef bint gets = p.op != TOUCH
    cdef int status
    request_begin(s, OP_META_GET if gets else OP_TOUCH, p.key, p.key_size)
    s.request.expire_ms = expire_at(s, word_at(p.extras))
    if gets:
        s.request.options = OPT_TOUCH | OPT_WANT_VALUE
    status = execute(s)
    if status == CACHE_WOULD_BLOCK:
        return STEP_READS
    s.count_touch += 1
    if status == CACHE_MISS or status == CACHE_IO:
        put_miss(&s.out, p, p.key)
    elif status != CACHE_OK:
        put_refusal(&s.out, p, refusal_of(status))
    elif gets:
        put_value(&s.out, p, p.key, &s.reply.meta, s.reply.value)
    elif put_head(&s.out, p, SUCCESS, 4, 0, 0, s.reply.meta.cas):
        put_word_fit(&s.out, s.reply.meta.client_flags)
    return STEP_DONE
