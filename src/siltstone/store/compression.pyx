"""Compressing page images with zstd or lz4: the system's shared libraries, loaded when asked for.

Each page stands alone, so that reading one needs nothing else. Pages are compressed and restored
without the GIL, often under the page cache's lock, which is why the C libraries are called and not
their Python packages. Any thread may call.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef extern from *:
    """
    #include <dlfcn.h>
    #include <stddef.h>
    #include <stdint.h>
    typedef size_t (*silt_zstd_bound_t)(size_t);
    typedef size_t (*silt_zstd_compress_t)(void *, size_t, const void *, size_t, int);
    typedef size_t (*silt_zstd_decompress_t)(void *, size_t, const void *, size_t);
    typedef unsigned (*silt_zstd_error_t)(size_t);
    typedef int (*silt_lz4_bound_t)(int);
    typedef int (*silt_lz4_compress_t)(const char *, char *, int, int);
    typedef int (*silt_lz4_decompress_t)(const char *, char *, int, int);
    static silt_zstd_bound_t silt_zstd_bound;
    static silt_zstd_compress_t silt_zstd_compress;
    static silt_zstd_decompress_t silt_zstd_decompress;
    static silt_zstd_error_t silt_zstd_error;
    static silt_lz4_bound_t silt_lz4_bound;
    static silt_lz4_compress_t silt_lz4_compress;
    static silt_lz4_decompress_t silt_lz4_decompress;

    static int silt_zstd_load(void) {
        void *library = dlopen("libzstd.so.1", RTLD_NOW | RTLD_LOCAL);
        if (library == NULL) return 0;
        silt_zstd_bound = (silt_zstd_bound_t)dlsym(library, "ZSTD_compressBound");
        silt_zstd_compress = (silt_zstd_compress_t)dlsym(library, "ZSTD_compress");
        silt_zstd_error = (silt_zstd_error_t)dlsym(library, "ZSTD_isError");
        silt_zstd_decompress = (silt_zstd_decompress_t)dlsym(library, "ZSTD_decompress");
        return silt_zstd_bound && silt_zstd_compress && silt_zstd_error && silt_zstd_decompress;
    }
    static int silt_lz4_load(void) {
        void *library = dlopen("liblz4.so.1", RTLD_NOW | RTLD_LOCAL);
        if (library == NULL) return 0;
        silt_lz4_bound = (silt_lz4_bound_t)dlsym(library, "LZ4_compressBound");
        silt_lz4_compress = (silt_lz4_compress_t)dlsym(library, "LZ4_compress_default");
        silt_lz4_decompress = (silt_lz4_decompress_t)dlsym(library, "LZ4_decompress_safe");
        return silt_lz4_bound && silt_lz4_compress && silt_lz4_decompress;
    }
    static int silt_zstd_ready = -1, silt_lz4_ready = -1;
    static int silt_compression_ready(uint32_t kind) {
        int *ready = kind == 1 ? &silt_zstd_ready : &silt_lz4_ready;
        int known = __atomic_load_n(ready, __ATOMIC_ACQUIRE);
        if (known < 0) {    /* loading twice at the same time does no harm */
            known = kind == 1 ? silt_zstd_load() : silt_lz4_load();
            __atomic_store_n(ready, known, __ATOMIC_RELEASE);
        }
        return known;
    }
    static int64_t silt_compress(uint32_t kind, const char *data, uint64_t size, char *out,
                                 uint64_t capacity) {
        if (size > 0x7E000000u || !silt_compression_ready(kind)) return -1;
        if (kind == 1) {
            size_t put = silt_zstd_compress(out, capacity, data, size, 1);
            return silt_zstd_error(put) || put >= size ? -1 : (int64_t)put;
        }
        int put = silt_lz4_compress(data, out, (int)size,
                                    capacity > 0x7FFFFFFF ? 0x7FFFFFFF : (int)capacity);
        return put <= 0 || (uint64_t)put >= size ? -1 : put;
    }
    static int silt_decompress(uint32_t kind, const char *data, uint64_t stored, char *out,
                               uint64_t size) {
        if ((kind != 1 && kind != 2) || !silt_compression_ready(kind)) return -1;
        if (stored > 0x7FFFFFFF || size > 0x7FFFFFFF) return -1;
        if (kind == 1) {
            size_t got = silt_zstd_decompress(out, size, data, stored);
            return !silt_zstd_error(got) && got == size ? 0 : -1;
        }
        return silt_lz4_decompress(data, out, (int)stored, (int)size) == (int)size ? 0 : -1;
    }
    static uint64_t silt_compress_bound(uint32_t kind, uint64_t size) {
        if (kind == 1) return silt_zstd_bound(size);
        return (uint64_t)silt_lz4_bound((int)size);
    }
    """
    int silt_compression_ready(uint32_t kind) noexcept nogil
    uint64_t silt_compress_bound(uint32_t kind, uint64_t size) noexcept nogil
    int64_t silt_compress(uint32_t kind, const char *data, uint64_t size, char *out,
                          uint64_t capacity) noexcept nogil
    int silt_decompress(uint32_t kind, const char *data, uint64_t stored, char *out,
                        uint64_t size) noexcept nogil


cdef bint compression_ready(uint32_t kind) noexcept nogil:
    return silt_compression_ready(kind) != 0


cdef uint64_t compress_bound(uint32_t kind, uint64_t size) noexcept nogil:
    return silt_compress_bound(kind, size)


cdef int64_t compress(uint32_t kind, const char *data, uint64_t size, char *out,
                      uint64_t capacity) noexcept nogil:
    return silt_compress(kind, data, size, out, capacity)


cdef int decompress(uint32_t kind, const char *data, uint64_t stored, char *out,
                    uint64_t size) noexcept nogil:
    return silt_decompress(kind, data, stored, out, size)
