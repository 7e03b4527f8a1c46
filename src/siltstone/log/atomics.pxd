"""Atomic words: acquire loads, release stores, and the few read-modify-writes that are needed.

Thin names for the compiler's __atomic builtins, the same on x86-64 and arm64. `fence_acquire`
and `fence_release` are for the sequence-checked reads of a shard.
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    #define silt_load(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define silt_load_relaxed(p) __atomic_load_n((p), __ATOMIC_RELAXED)
    #define silt_store(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    #define silt_store_relaxed(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
    #define silt_add(p, v) __atomic_fetch_add((p), (v), __ATOMIC_RELAXED)
    #define silt_or(p, v) __atomic_fetch_or((p), (v), __ATOMIC_ACQ_REL)
    #define silt_and(p, v) __atomic_fetch_and((p), (v), __ATOMIC_ACQ_REL)
    static inline int silt_cas64(uint64_t *p, uint64_t expected, uint64_t desired) {
        return __atomic_compare_exchange_n(p, &expected, desired, 0,
                                           __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
    }
    static inline int silt_cas32(uint32_t *p, uint32_t expected, uint32_t desired) {
        return __atomic_compare_exchange_n(p, &expected, desired, 0,
                                           __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
    }
    #define silt_prefetch(p) __builtin_prefetch((p), 0, 3)
    #define silt_fence_acquire() __atomic_thread_fence(__ATOMIC_ACQUIRE)
    #define silt_fence_release() __atomic_thread_fence(__ATOMIC_RELEASE)
    #if defined(__x86_64__)
    #define silt_pause() __builtin_ia32_pause()
    #elif defined(__aarch64__)
    #define silt_pause() __asm__ __volatile__("yield")
    #else
    #define silt_pause() ((void)0)
    #endif
    """
    uint64_t load64 "silt_load"(const uint64_t *) noexcept nogil
    uint32_t load32 "silt_load"(const uint32_t *) noexcept nogil
    uint64_t load64_relaxed "silt_load_relaxed"(const uint64_t *) noexcept nogil
    uint32_t load32_relaxed "silt_load_relaxed"(const uint32_t *) noexcept nogil
    void store64 "silt_store"(uint64_t *, uint64_t) noexcept nogil
    void store32 "silt_store"(uint32_t *, uint32_t) noexcept nogil
    void store64_relaxed "silt_store_relaxed"(uint64_t *, uint64_t) noexcept nogil
    void store32_relaxed "silt_store_relaxed"(uint32_t *, uint32_t) noexcept nogil
    uint64_t add64 "silt_add"(uint64_t *, uint64_t) noexcept nogil      # returns the former value
    uint32_t add32 "silt_add"(uint32_t *, uint32_t) noexcept nogil
    uint64_t or64 "silt_or"(uint64_t *, uint64_t) noexcept nogil        # returns the former value
    uint64_t and64 "silt_and"(uint64_t *, uint64_t) noexcept nogil
    bint cas64 "silt_cas64"(uint64_t *, uint64_t expected, uint64_t desired) noexcept nogil
    bint cas32 "silt_cas32"(uint32_t *, uint32_t expected, uint32_t desired) noexcept nogil
    void fence_acquire "silt_fence_acquire"() noexcept nogil
    void fence_release "silt_fence_release"() noexcept nogil
    void cpu_pause "silt_pause"() noexcept nogil
    void prefetch "silt_prefetch"(const void *) noexcept nogil          # any address
