"""How long something takes: a histogram in powers of two, added to by any thread without a lock."""
from libc.stdint cimport uint64_t

from siltstone.log.atomics cimport add64, load64_relaxed

cdef extern from *:
    """
    #include <stdint.h>
    #include <time.h>

    static inline uint64_t silt_now_ns(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    }
    static inline int silt_log2(uint64_t value) { return 63 - __builtin_clzll(value | 1); }
    static inline void silt_largest(uint64_t *word, uint64_t value) {
        uint64_t seen = __atomic_load_n(word, __ATOMIC_RELAXED);
        while (seen < value && !__atomic_compare_exchange_n(word, &seen, value, 1,
                                                            __ATOMIC_RELAXED, __ATOMIC_RELAXED))
            ;
    }
    """
    uint64_t now_ns "silt_now_ns"() noexcept nogil          # monotonic
    int log2_of "silt_log2"(uint64_t) noexcept nogil
    void keep_largest "silt_largest"(uint64_t *, uint64_t) noexcept nogil

cdef enum:
    LATENCY_BUCKETS = 40    # bucket n counts durations in [2^n, 2^(n+1)) ns

cdef struct latency_t:
    uint64_t count
    uint64_t total_ns
    uint64_t longest_ns
    uint64_t buckets[LATENCY_BUCKETS]


cdef inline void latency_add(latency_t *latency, uint64_t started_ns) noexcept nogil:
    cdef uint64_t duration_ns = now_ns() - started_ns
    cdef int bucket = log2_of(duration_ns)
    if bucket >= LATENCY_BUCKETS:
        bucket = LATENCY_BUCKETS - 1
    add64(&latency.count, 1)
    add64(&latency.total_ns, duration_ns)
    add64(&latency.buckets[bucket], 1)
    keep_largest(&latency.longest_ns, duration_ns)


cdef inline dict latency_dict(latency_t *latency):
    return {
        "count": load64_relaxed(&latency.count),
        "total_ns": load64_relaxed(&latency.total_ns),
        "longest_ns": load64_relaxed(&latency.longest_ns),
        "buckets": [load64_relaxed(&latency.buckets[i]) for i in range(LATENCY_BUCKETS)],
    }
