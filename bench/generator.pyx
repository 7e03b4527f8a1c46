# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The load generator: one thread, epoll, no GIL, many times faster than what it measures.

It owns the connections and the values (each is derived from its key, so every byte of a reply can
be checked). It keeps one batch in flight on each connection: `pipeline` requests, written at once
and answered in full before the next batch. It promises that what it counts was seen: a reply is
parsed, its key compared, its length checked and, when asked, its bytes. Called by the benches in
the process that is pinned to the generator's core.

Classic text protocol only: `get` (with any number of keys) and `set`.
"""
from libc.errno cimport EAGAIN, EINPROGRESS, EINTR, errno
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memchr, memcmp, memcpy, memmove, memset

import socket

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        uint32_t u32
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int EPOLLIN, EPOLLOUT, EPOLL_CTL_ADD, EPOLL_CTL_MOD
    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int operation, int descriptor, epoll_event *event)
    int epoll_wait(int epoll, epoll_event *events, int count, int timeout_ms)

cdef extern from "<sys/socket.h>" nogil:
    int MSG_NOSIGNAL
    ssize_t recv(int descriptor, void *data, size_t size, int flags)
    ssize_t send(int descriptor, const void *data, size_t size, int flags)

cdef extern from "<unistd.h>" nogil:
    int close(int descriptor)

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int CLOCK_MONOTONIC
    int clock_gettime(int clock, timespec *now)

cdef enum:
    KEY_SIZE = 11               # "k" and ten digits
    EVENTS = 128
    HISTOGRAM = 64 * 64         # 64 sub-buckets for each power of two of nanoseconds
    RECEIVE_MIN = 1 << 16
    REPLY_PARTIAL = 0
    REPLY_DONE = 1
    REPLY_BAD = -1
    STALL_MS = 20000            # no reply at all for this long: the peer hangs

cdef struct plan_t:
    bint writing                # set, else get
    bint sequential
    bint check
    uint32_t pipeline
    uint32_t keys_per_get
    uint64_t first              # keys first .. first + count - 1
    uint64_t count
    uint32_t size_min
    uint32_t size_max
    uint64_t version            # of the values
    int64_t duration_ns         # 0: until `operations` are done
    uint64_t operations         # 0: until the time is over
    double rate                 # operations a second; 0: as fast as replies come

cdef struct connection_t:
    int descriptor
    bint writing_blocked
    char *out
    uint64_t out_size
    uint64_t out_sent
    uint64_t out_capacity
    char *into
    uint64_t into_size
    uint64_t into_capacity
    uint64_t parsed             # bytes of `into` that are dealt with
    uint64_t *keys              # pipeline x keys_per_get, in request order
    uint32_t requests           # in this batch
    uint32_t replies
    uint32_t next_key           # of the request now answered: where its next hit may be
    int64_t sent_ns

cdef struct tally_t:
    uint64_t requests
    uint64_t hits
    uint64_t misses
    uint64_t wrong
    uint64_t refused
    uint64_t hit_bytes          # key and value bytes of hits
    uint64_t issued             # operations sent or in flight
    int64_t started_ns
    int64_t finished_ns
    uint64_t histogram[HISTOGRAM]

cdef struct run_t:
    plan_t plan
    tally_t tally
    uint64_t random_state
    uint64_t next_sequential
    int epoll
    uint32_t count
    connection_t *connections
    uint32_t *idle              # connections that wait for their turn (paced runs)
    uint32_t idle_count
    uint32_t busy
    char error[128]


# Values ---------------------------------------------------------------------------------------


cdef inline uint64_t mix(uint64_t x) noexcept nogil:
    x += <uint64_t>0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * <uint64_t>0x94D049BB133111EB
    return x ^ (x >> 31)


cdef inline uint32_t size_of(uint64_t key, uint32_t size_min, uint32_t size_max) noexcept nogil:
    # Log-uniform: each doubling of the size is as likely as the next.
    cdef uint64_t h
    cdef uint32_t octaves = 0, low
    if size_max <= size_min:
        return size_min
    while (size_min << (octaves + 1)) <= size_max:
        octaves += 1
    h = mix(key ^ 0x517)
    low = size_min << (h % octaves)
    return low + <uint32_t>((h >> 32) % low)


cdef inline void fill(char *out, uint32_t size, uint64_t key, uint64_t version) noexcept nogil:
    cdef uint64_t x = mix(key ^ (version << 48))
    cdef uint32_t at = 0
    while at + 8 <= size:
        memcpy(out + at, &x, 8)
        x = x * <uint64_t>6364136223846793005 + <uint64_t>1442695040888963407
        at += 8
    if at < size:
        memcpy(out + at, &x, size - at)


cdef inline bint same(const char *data, uint32_t size, uint64_t key,
                      uint64_t version) noexcept nogil:
    cdef uint64_t x = mix(key ^ (version << 48)), word, differ = 0
    cdef uint32_t at = 0
    while at + 8 <= size:
        memcpy(&word, data + at, 8)
        differ |= word ^ x
        x = x * <uint64_t>6364136223846793005 + <uint64_t>1442695040888963407
        at += 8
    return differ == 0 and (at == size or memcmp(data + at, &x, size - at) == 0)


cdef inline void write_key(char *out, uint64_t key) noexcept nogil:
    cdef int at
    out[0] = c"k"
    for at in range(KEY_SIZE - 1, 0, -1):
        out[at] = <char>(48 + key % 10)
        key //= 10


def key_of(uint64_t index):
    """The key of item `index`, as bytes."""
    cdef char out[KEY_SIZE]
    write_key(out, index)
    return out[:KEY_SIZE]


def value_of(uint64_t index, uint32_t size_min, uint32_t size_max=0, uint64_t version=0):
    """The value of item `index`: the bytes that `run` stores and checks."""
    cdef uint32_t size = size_of(index, size_min, size_max)
    cdef bytes value = b"\0" * size
    fill(<char *>value, size, index, version)   # nobody else has seen this object yet
    return value


# Time and latencies ---------------------------------------------------------------------------


cdef inline int64_t now_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1000000000 + now.tv_nsec


cdef inline void note(tally_t *tally, int64_t elapsed_ns) noexcept nogil:
    cdef uint64_t x = <uint64_t>elapsed_ns if elapsed_ns > 0 else 1
    cdef uint32_t power = 0, at
    if x < 64:
        at = <uint32_t>x
    else:
        while (x >> power) >= 128:
            power += 1
        at = (power + 1) * 64 + <uint32_t>((x >> power) - 64)
    if at >= HISTOGRAM:
        at = HISTOGRAM - 1
    tally.histogram[at] += 1


cdef double percentile(tally_t *tally, double share):
    cdef uint64_t total = 0, seen = 0
    cdef int at
    cdef uint64_t power
    for at in range(HISTOGRAM):
        total += tally.histogram[at]
    if total == 0:
        return 0.0
    for at in range(HISTOGRAM):
        seen += tally.histogram[at]
        if seen >= share * total:
            if at < 64:
                return at
            power = at // 64 - 1
            return <double>((<uint64_t>(64 + at % 64) << power) + ((<uint64_t>1 << power) >> 1))
    return 0.0


# Requests -------------------------------------------------------------------------------------


cdef inline uint64_t pick(run_t *run) noexcept nogil:
    cdef uint64_t index
    if run.plan.sequential:
        index = run.next_sequential
        run.next_sequential += 1
        return run.plan.first + index % run.plan.count
    run.random_state += 1
    return run.plan.first + mix(run.random_state) % run.plan.count


cdef int room(char **data, uint64_t *capacity, uint64_t need) noexcept nogil:
    cdef char *larger
    cdef uint64_t size
    if need <= capacity[0]:
        return 0
    size = capacity[0] * 2
    if size < need:
        size = need
    larger = <char *>realloc(data[0], size)
    if larger == NULL:
        return -1
    data[0] = larger
    capacity[0] = size
    return 0


cdef inline uint32_t write_number(char *out, uint32_t number) noexcept nogil:
    cdef char digits[12]
    cdef uint32_t count = 0, at
    while True:
        digits[count] = <char>(48 + number % 10)
        count += 1
        number //= 10
        if number == 0:
            break
    for at in range(count):
        out[at] = digits[count - 1 - at]
    return count


cdef int write_set(run_t *run, connection_t *c, uint64_t key) noexcept nogil:
    cdef uint32_t size = size_of(key, run.plan.size_min, run.plan.size_max)
    cdef char *out
    if room(&c.out, &c.out_capacity, c.out_size + size + 64) < 0:
        return -1
    out = c.out + c.out_size
    memcpy(out, b"set ", 4)
    out += 4
    write_key(out, key)
    out += KEY_SIZE
    memcpy(out, b" 0 0 ", 5)
    out += 5
    out += write_number(out, size)
    memcpy(out, b"\r\n", 2)
    fill(out + 2, size, key, run.plan.version)
    memcpy(out + 2 + size, b"\r\n", 2)
    c.out_size = <uint64_t>(out - c.out) + size + 4
    return 0


cdef int write_get(run_t *run, connection_t *c, uint64_t *keys) noexcept nogil:
    cdef uint32_t at
    cdef char *out
    cdef uint64_t need = c.out_size + 8 + run.plan.keys_per_get * (KEY_SIZE + 1)
    if room(&c.out, &c.out_capacity, need) < 0:
        return -1
    out = c.out + c.out_size
    memcpy(out, b"get", 3)
    out += 3
    for at in range(run.plan.keys_per_get):
        out[0] = c" "
        write_key(out + 1, keys[at])
        out += KEY_SIZE + 1
    memcpy(out, b"\r\n", 2)
    c.out_size = <uint64_t>(out - c.out) + 2
    return 0


cdef bint finished(run_t *run) noexcept nogil:
    if run.plan.operations:
        return run.tally.issued >= run.plan.operations
    return now_ns() - run.tally.started_ns >= run.plan.duration_ns


cdef int push(run_t *run, uint32_t index) noexcept nogil:
    """Write what is left of the batch; ask for EPOLLOUT when the socket takes no more."""
    cdef connection_t *c = run.connections + index
    cdef epoll_event event
    cdef ssize_t sent
    while c.out_sent < c.out_size:
        sent = send(c.descriptor, c.out + c.out_sent, c.out_size - c.out_sent, MSG_NOSIGNAL)
        if sent < 0:
            if errno == EINTR:
                continue
            if errno != EAGAIN:
                memcpy(run.error, b"send failed\0", 12)
                return -1
            break
        c.out_sent += <uint64_t>sent
    if (c.out_sent < c.out_size) != c.writing_blocked:
        c.writing_blocked = c.out_sent < c.out_size
        memset(&event, 0, sizeof(event))
        event.events = EPOLLIN | (EPOLLOUT if c.writing_blocked else 0)
        event.data.u32 = index
        epoll_ctl(run.epoll, EPOLL_CTL_MOD, c.descriptor, &event)
    return 0


cdef int start_batch(run_t *run, uint32_t index) noexcept nogil:
    """Send the next batch on this connection: 1, or 0 when the run is over, or -1."""
    cdef connection_t *c = run.connections + index
    cdef uint32_t width = 1 if run.plan.writing else run.plan.keys_per_get
    cdef uint32_t request, at
    cdef uint64_t *keys
    if finished(run):
        return 0
    c.out_size = c.out_sent = 0
    c.requests = c.replies = c.next_key = 0
    for request in range(run.plan.pipeline):
        keys = c.keys + request * width
        for at in range(width):
            keys[at] = pick(run)
        if (write_set(run, c, keys[0]) if run.plan.writing else write_get(run, c, keys)) < 0:
            memcpy(run.error, b"out of memory\0", 14)
            return -1
        c.requests += 1
        run.tally.issued += width
        if run.plan.operations and run.tally.issued >= run.plan.operations:
            break
    run.busy += 1
    c.sent_ns = now_ns()
    return 1 if push(run, index) == 0 else -1


# Replies --------------------------------------------------------------------------------------


cdef int take_stored(run_t *run, connection_t *c) noexcept nogil:
    cdef char *at = c.into + c.parsed
    cdef uint64_t left = c.into_size - c.parsed
    cdef char *end
    if left >= 8 and memcmp(at, b"STORED\r\n", 8) == 0:
        c.parsed += 8
        run.tally.hits += 1
    else:
        end = <char *>memchr(at, c"\n", left)
        if end == NULL:
            return REPLY_PARTIAL
        c.parsed += <uint64_t>(end - at) + 1
        run.tally.refused += 1
    return REPLY_DONE


cdef int take_value(run_t *run, connection_t *c) noexcept nogil:
    """One `VALUE key flags size` block: its key must be the next asked for, or one after it."""
    cdef char *at = c.into + c.parsed
    cdef uint64_t left = c.into_size - c.parsed, head
    cdef uint64_t *keys = c.keys + c.replies * run.plan.keys_per_get
    cdef char *end = <char *>memchr(at, c"\n", left)
    cdef char expected[KEY_SIZE]
    cdef char *digit
    cdef uint32_t size = 0, want
    if end == NULL:
        return REPLY_PARTIAL
    head = <uint64_t>(end - at) + 1
    digit = end - 2
    while digit > at and digit[0] != c" ":
        digit -= 1
    digit += 1
    while c"0" <= digit[0] <= c"9":
        size = size * 10 + <uint32_t>(digit[0] - 48)
        digit += 1
    if left < head + size + 2:
        if room(&c.into, &c.into_capacity, c.parsed + head + size + 16) < 0:
            return REPLY_BAD
        return REPLY_PARTIAL
    while c.next_key < run.plan.keys_per_get:
        write_key(expected, keys[c.next_key])
        if head > KEY_SIZE + 8 and memcmp(at + 6, expected, KEY_SIZE) == 0:
            break
        c.next_key += 1         # that one was a miss
    if c.next_key == run.plan.keys_per_get:
        return REPLY_BAD        # a value that nobody asked for
    want = size_of(keys[c.next_key], run.plan.size_min, run.plan.size_max)
    run.tally.hits += 1
    run.tally.hit_bytes += KEY_SIZE + size
    if size != want or at[head + size] != c"\r" or (
            run.plan.check and not same(at + head, size, keys[c.next_key], run.plan.version)):
        run.tally.wrong += 1
    c.next_key += 1
    c.parsed += head + size + 2
    return REPLY_DONE


cdef int take_get(run_t *run, connection_t *c) noexcept nogil:
    """All of one get's reply, up to END. Misses are what was asked for and not among the hits."""
    cdef uint64_t left
    cdef char *at
    cdef char *end
    cdef int status
    while True:
        at = c.into + c.parsed
        left = c.into_size - c.parsed
        if left < 5:
            return REPLY_PARTIAL
        if at[0] == c"V":
            status = take_value(run, c)
            if status != REPLY_DONE:
                return status
            continue
        if memcmp(at, b"END\r\n", 5) == 0:
            c.parsed += 5
            return REPLY_DONE
        end = <char *>memchr(at, c"\n", left)
        if end == NULL:
            return REPLY_PARTIAL
        c.parsed += <uint64_t>(end - at) + 1
        run.tally.refused += 1
        return REPLY_DONE


cdef int parse(run_t *run, connection_t *c) noexcept nogil:
    """Deal with all whole replies: 1 when the batch is answered, 0 when not yet, -1 when bad."""
    cdef int status = REPLY_PARTIAL
    cdef uint64_t before
    while c.replies < c.requests:
        if run.plan.writing:
            status = take_stored(run, c) if c.parsed < c.into_size else REPLY_PARTIAL
        else:
            status = take_get(run, c)
        if status != REPLY_DONE:
            break
        c.replies += 1
        c.next_key = 0
        run.tally.requests += 1
    if status == REPLY_BAD:
        memcpy(run.error, b"a reply that answers no request\0", 32)
        return -1
    if c.parsed == c.into_size:
        c.parsed = c.into_size = 0
    elif c.parsed > c.into_capacity // 2:
        before = c.into_size - c.parsed
        memmove(c.into, c.into + c.parsed, before)
        c.parsed, c.into_size = 0, before
    return c.replies == c.requests


cdef int receive(run_t *run, uint32_t index) noexcept nogil:
    cdef connection_t *c = run.connections + index
    cdef ssize_t got
    if room(&c.into, &c.into_capacity, c.into_size + RECEIVE_MIN // 2) < 0:
        return -1
    got = recv(c.descriptor, c.into + c.into_size, c.into_capacity - c.into_size, 0)
    if got < 0 and (errno == EAGAIN or errno == EINTR):
        return 0
    if got <= 0:
        memcpy(run.error, b"the server closed the connection\0", 33)
        return -1
    c.into_size += <uint64_t>got
    return parse(run, c)


# The loop -------------------------------------------------------------------------------------


cdef int release(run_t *run) noexcept nogil:
    """Paced runs: start as many waiting connections as the rate allows by now."""
    cdef double due
    cdef int status
    while run.idle_count:
        due = run.plan.rate * <double>(now_ns() - run.tally.started_ns) / 1e9
        if <double>run.tally.issued > due:
            return 0
        run.idle_count -= 1
        status = start_batch(run, run.idle[run.idle_count])
        if status <= 0:
            return status
    return 0


cdef int next_batch(run_t *run, uint32_t index) noexcept nogil:
    if run.plan.rate > 0:
        run.idle[run.idle_count] = index
        run.idle_count += 1
        return 0
    return -1 if start_batch(run, index) < 0 else 0


cdef int loop(run_t *run) noexcept nogil:
    cdef epoll_event events[EVENTS]
    cdef int count, at, status, wait_ms, stalled_ms = 0
    cdef uint32_t index
    cdef connection_t *c
    run.tally.started_ns = now_ns()
    for index in range(run.count):
        if next_batch(run, index) < 0:
            return -1
    while True:
        if run.plan.rate > 0 and release(run) < 0:
            return -1
        if run.busy == 0 and (run.idle_count == 0 or finished(run)):
            break
        wait_ms = 1 if run.plan.rate > 0 and not finished(run) else 1000
        count = epoll_wait(run.epoll, events, EVENTS, wait_ms)
        stalled_ms = stalled_ms + wait_ms if count == 0 and run.busy else 0
        if stalled_ms > STALL_MS:
            memcpy(run.error, b"no reply for 20 s\0", 18)
            return -1
        for at in range(count):
            index = events[at].data.u32
            c = run.connections + index
            if events[at].events & <uint32_t>EPOLLOUT and push(run, index) < 0:
                return -1
            if not (events[at].events & ~<uint32_t>EPOLLOUT):
                continue
            status = receive(run, index)
            if status < 0:
                return -1
            if status:
                note(&run.tally, now_ns() - c.sent_ns)
                run.busy -= 1
                if next_batch(run, index) < 0:
                    return -1
    run.tally.finished_ns = now_ns()
    return 0


cdef int connect_all(run_t *run, list descriptors) except -1:
    cdef epoll_event event
    cdef uint32_t index
    cdef uint32_t width = run.plan.pipeline * (1 if run.plan.writing else run.plan.keys_per_get)
    cdef connection_t *c
    run.epoll = epoll_create1(0)
    if run.epoll < 0:
        raise OSError(errno, "epoll_create1")
    for index in range(run.count):
        c = run.connections + index
        c.descriptor = descriptors[index]
        c.keys = <uint64_t *>calloc(width, sizeof(uint64_t))
        if c.keys == NULL or room(&c.into, &c.into_capacity, RECEIVE_MIN) < 0:
            raise MemoryError
        memset(&event, 0, sizeof(event))
        event.events = EPOLLIN
        event.data.u32 = index
        if epoll_ctl(run.epoll, EPOLL_CTL_ADD, c.descriptor, &event) < 0:
            raise OSError(errno, "epoll_ctl")
    return 0


cdef void release_all(run_t *run) noexcept:
    cdef uint32_t index
    if run.connections != NULL:
        for index in range(run.count):
            free(run.connections[index].keys)
            free(run.connections[index].out)
            free(run.connections[index].into)
    free(run.connections)
    free(run.idle)
    if run.epoll > 0:
        close(run.epoll)
    free(run)


cdef dict report(run_t *run):
    cdef tally_t *tally = &run.tally
    cdef double seconds = (tally.finished_ns - tally.started_ns) / 1e9
    cdef uint64_t misses = 0
    if not run.plan.writing:
        misses = tally.issued - tally.hits
    return {
        "requests": tally.requests,
        "operations": tally.issued,
        "seconds": seconds,
        "rate": tally.issued / seconds,
        "hits": tally.hits,
        "misses": misses,
        "wrong": tally.wrong,
        "refused": tally.refused,
        "hit_bytes": tally.hit_bytes,
        "p50_us": percentile(tally, 0.5) / 1e3,
        "p99_us": percentile(tally, 0.99) / 1e3,
        "p999_us": percentile(tally, 0.999) / 1e3,
    }


def run(address, str operation, *, uint32_t connections=50, uint32_t pipeline=1,
        uint32_t keys_per_get=1, uint64_t first=0, uint64_t count=1, uint32_t size_min=100,
        uint32_t size_max=0, uint64_t version=0, bint sequential=False, double seconds=0.0,
        uint64_t operations=0, double rate=0.0, bint check=False, uint64_t seed=1):
    """Send `operation` ("get" or "set") to `address`, (host, port), and say what came back.

    Keys are first .. first + count - 1, at random or in turn (`sequential`). The run ends after
    `seconds`, or when `operations` keys were asked for or stored. `rate` paces it (operations a
    second, all connections together). `check` compares every byte of every value. Latencies are
    those of a batch: from its first byte sent to its last byte received.
    """
    cdef run_t *state
    cdef int status
    if operation not in ("get", "set"):
        raise ValueError(f"operation {operation!r}: it must be get or set")
    if not (connections and pipeline and keys_per_get and count and (operations or seconds > 0)):
        raise ValueError("connections, pipeline, keys_per_get, count and an end are needed")
    sockets = []
    state = <run_t *>calloc(1, sizeof(run_t))
    if state == NULL:
        raise MemoryError
    try:
        state.plan = plan_t(operation == "set", sequential, check, pipeline, keys_per_get, first,
                            count, size_min, size_max, version, <int64_t>(seconds * 1e9),
                            operations, rate)
        state.random_state = mix(seed)
        state.connections = <connection_t *>calloc(connections, sizeof(connection_t))
        state.idle = <uint32_t *>calloc(connections, sizeof(uint32_t))
        if state.connections == NULL or state.idle == NULL:
            raise MemoryError
        state.count = connections
        for _ in range(connections):
            connected = socket.create_connection(address, timeout=10)
            sockets.append(connected)
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connected.setblocking(False)
        connect_all(state, [each.fileno() for each in sockets])
        with nogil:
            status = loop(state)
        if status < 0:
            raise ConnectionError((<bytes>state.error).decode() or "the load run failed")
        return report(state)
    finally:
        for each in sockets:
            each.close()
        release_all(state)
