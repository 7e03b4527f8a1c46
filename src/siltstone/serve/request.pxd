"""What a session is in C, and how one request meets the engine. See request.pyx."""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from siltstone.cache.engine cimport cache_t, read_t, record_t, reply_t, request_t
from siltstone.log.workers cimport job_t
from siltstone.serve.wire cimport output_t

cdef enum:
    KEY_SIZE_MAX = 250
    PARKED_MAX = 64             # reads that one session has in flight at once
    RELATIVE_TIME_MAX = 2592000 # 30 days; larger exptimes are Unix times

cdef enum step_t:
    # What a command says, and why the loop stops.
    STEP_DONE = 0       # go on behind it
    STEP_MORE = 1       # it is not all there: feed `need` bytes
    STEP_FULL = 2       # too much output: drain it, then resume
    STEP_READS = 3      # flash reads must be done first, then resume
    STEP_ADMIN = 4      # a line for Control: line .. line_end
    STEP_CLOSE = 5      # close the connection after the output is written

cdef enum keys_t:
    # Which multi-key command is being answered.
    KEYS_NONE = 0
    KEYS_GET = 1
    KEYS_GETS = 2
    KEYS_GAT = 3
    KEYS_GATS = 4

cdef enum parked_kind_t:
    PARKED_GET = 1
    PARKED_GETS = 2
    PARKED_META = 3
    PARKED_RECORD = 4   # the record that a changing command needs; it is executed again
    PARKED_PACKET = 5   # a get of the binary protocol

cdef enum protocol_t:
    # What a connection speaks; its first byte decides unless it is set.
    PROTOCOL_AUTO = 0
    PROTOCOL_TEXT = 1
    PROTOCOL_BINARY = 2

cdef struct shared_t:
    # What all sessions of a server share; changed with atomics.
    uint64_t bytes_read
    uint64_t bytes_written
    uint64_t buffered       # bytes held by all sessions' buffers
    uint64_t buffered_max
    uint64_t detail         # prefixes are counted (stats detail on)

cdef struct session_t

cdef struct parked_t:
    # A read on its way to a worker, and where its answer belongs.
    job_t job               # first: a worker is given the job's address
    session_t *session
    read_t cursor
    record_t record
    int status              # of cache_fetch
    uint32_t flags          # of the read: LOG_NOWAIT never
    uint8_t kind
    bint submitted
    uint32_t command        # which command of the session it belongs to
    uint64_t start          # of the command's reply in the output
    uint64_t offset         # of the answer
    uint64_t end            # of the command's reply
    uint64_t hash
    uint32_t key_size
    char key[KEY_SIZE_MAX]
    char *line              # PARKED_META: the command's flags, to be parsed again
    uint32_t line_size
    uint8_t opcode          # PARKED_PACKET: of the command, and what its reply repeats
    uint32_t opaque

cdef struct session_t:
    cache_t *cache
    shared_t *shared
    void *face              # the Session
    output_t out
    const char *input
    uint64_t size
    uint64_t at             # start of the command in hand
    uint64_t next           # of what follows it
    uint64_t need           # bytes from `at` on without which it need not be looked at
    uint64_t scanned        # bytes from `at` on that hold no newline
    uint64_t swallow        # bytes of a refused value that are still to come
    int64_t now_ms
    uint8_t protocol        # protocol_t
    uint64_t line_size_max
    uint64_t output_size_max
    uint64_t item_size_max
    const char *line
    const char *line_end
    bint quiet              # noreply
    bint no_memory          # the value announced by the command in hand cannot be held
    uint8_t keys_kind
    uint64_t keys_offset    # next key, from `at`
    uint64_t keys_size      # end of the line, from `at`
    bint keys_checked       # none of them is too long
    int64_t keys_expire_ms
    uint64_t keys_next      # what follows the line, from `at`
    uint64_t reply_start    # of the command's reply in `out`
    uint32_t command        # counts replies begun
    uint32_t parked_before  # reads parked before the command
    uint32_t parked_count
    uint32_t parked_done
    parked_t *parked[PARKED_MAX]
    record_t record         # for the changing command in hand
    bint record_ready
    request_t request
    reply_t reply
    char key[KEY_SIZE_MAX + 2]      # a decoded binary key
    uint64_t count_get
    uint64_t count_set
    uint64_t count_touch
    uint64_t count_meta

cdef void session_begin(session_t *s) noexcept nogil
cdef void session_clear(session_t *s) noexcept nogil
cdef void session_count(session_t *s) noexcept nogil    # hand the counts to the engine
cdef void count_prefix(session_t *s, const char *key, uint32_t size, int what) noexcept nogil

cdef int64_t expire_at(session_t *s, int64_t exptime) noexcept nogil
cdef uint64_t item_size(uint32_t key_size, uint32_t client_flags,
                        uint64_t value_size) noexcept nogil
cdef uint32_t item_class(uint64_t size) noexcept nogil

# Fill s.request first. Reads the record where the engine needs it. A cache_status_t;
# CACHE_WOULD_BLOCK: a read was parked, return STEP_READS.
cdef int execute(session_t *s) noexcept nogil
cdef void request_begin(session_t *s, uint8_t op, const char *key,
                        uint32_t key_size) noexcept nogil
# Instead, for a value that cannot be taken: too large, or no memory to gather it (s.no_memory).
# Which of the two, or CACHE_WOULD_BLOCK. A set that fails removes the former value.
cdef int drop_value(session_t *s) noexcept nogil
cdef void answer(session_t *s, const char *line, uint64_t size) noexcept nogil
cdef void answer_status(session_t *s, int status) noexcept nogil

# A command that changes the key must not overtake a parked read of it.
cdef bint key_parked(session_t *s, uint64_t hash) noexcept nogil
# Park a read of the key; NULL when there is no memory.
cdef parked_t *park(session_t *s, uint8_t kind, const char *key, uint32_t key_size,
                    uint64_t hash) noexcept nogil
cdef void reply_begin(session_t *s) noexcept nogil
cdef void reply_drop(session_t *s) noexcept nogil       # forget what the command has answered
cdef void reply_end(session_t *s) noexcept nogil
cdef void parked_free(parked_t *parked) noexcept nogil

cdef inline bint is_noreply(const char *data, uint32_t size) noexcept nogil:
    return (size == 7 and data[0] == b'n' and data[1] == b'o' and data[2] == b'r'
            and data[3] == b'e' and data[4] == b'p' and data[5] == b'l' and data[6] == b'y')
