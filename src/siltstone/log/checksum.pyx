"""CRC32C (Castagnoli), the one checksum of everything that siltstone writes.

Three implementations with the same results, chosen once when the module is loaded: the SSE4.2
instruction (x86-64; long inputs as three interleaved streams, since the instruction takes three
cycles but one can start every cycle), the ARMv8 instruction, and slice-by-8 tables. Any thread may
call, no GIL needed. `use_implementation` is for tests only: it is not synchronised.
"""
from libc.stdint cimport uint32_t, uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    #if defined(__aarch64__)
    #include <sys/auxv.h>
    #endif

    #define SILT_CRC_POLYNOMIAL 0x82F63B78u     /* reflected Castagnoli */
    #define SILT_CRC_LONG 2048                  /* bytes of one of three interleaved streams */
    #define SILT_CRC_SHORT 256

    static uint32_t silt_crc_table[8][256];
    /* What a register becomes after LONG (SHORT) zero bytes, a byte of the register at a time. */
    static uint32_t silt_crc_skip_long[4][256];
    static uint32_t silt_crc_skip_short[4][256];

    static uint64_t silt_load_word(const unsigned char *from) {
        uint64_t word;
        memcpy(&word, from, 8);
    #if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        word = __builtin_bswap64(word);
    #endif
        return word;
    }

    static uint32_t silt_crc_raw_table(uint32_t crc, const unsigned char *data, uint64_t size) {
        while (size >= 8) {
            uint64_t word = silt_load_word(data) ^ crc;
            crc = silt_crc_table[7][word & 255] ^ silt_crc_table[6][(word >> 8) & 255]
                ^ silt_crc_table[5][(word >> 16) & 255] ^ silt_crc_table[4][(word >> 24) & 255]
                ^ silt_crc_table[3][(word >> 32) & 255] ^ silt_crc_table[2][(word >> 40) & 255]
                ^ silt_crc_table[1][(word >> 48) & 255] ^ silt_crc_table[0][word >> 56];
            data += 8;
            size -= 8;
        }
        while (size--)
            crc = (crc >> 8) ^ silt_crc_table[0][(crc ^ *data++) & 255];
        return crc;
    }

    static inline uint32_t silt_crc_skip(uint32_t table[4][256], uint32_t crc) {
        return table[0][crc & 255] ^ table[1][(crc >> 8) & 255]
             ^ table[2][(crc >> 16) & 255] ^ table[3][crc >> 24];
    }

    static void silt_crc_fill_skip(uint32_t table[4][256], uint32_t zeros) {
        uint32_t bit_after[32];
        for (int bit = 0; bit < 32; bit++) {
            uint32_t crc = (uint32_t)1 << bit;
            for (uint32_t i = 0; i < zeros; i++)
                crc = (crc >> 8) ^ silt_crc_table[0][crc & 255];
            bit_after[bit] = crc;
        }
        for (int place = 0; place < 4; place++)
            for (int value = 0; value < 256; value++) {
                uint32_t crc = 0;
                for (int bit = 0; bit < 8; bit++)
                    if (value >> bit & 1)
                        crc ^= bit_after[8 * place + bit];
                table[place][value] = crc;
            }
    }

    static void silt_crc_fill_tables(void) {
        for (uint32_t value = 0; value < 256; value++) {
            uint32_t crc = value;
            for (int bit = 0; bit < 8; bit++)
                crc = (crc >> 1) ^ (crc & 1 ? SILT_CRC_POLYNOMIAL : 0);
            silt_crc_table[0][value] = crc;
        }
        for (int slice = 1; slice < 8; slice++)
            for (int value = 0; value < 256; value++) {
                uint32_t crc = silt_crc_table[slice - 1][value];
                silt_crc_table[slice][value] = (crc >> 8) ^ silt_crc_table[0][crc & 255];
            }
        silt_crc_fill_skip(silt_crc_skip_long, SILT_CRC_LONG);
        silt_crc_fill_skip(silt_crc_skip_short, SILT_CRC_SHORT);
    }

    #if defined(__x86_64__)
    #define SILT_CRC_HARDWARE __attribute__((target("sse4.2")))
    #define silt_crc_word(crc, word) ((uint32_t)__builtin_ia32_crc32di((crc), (word)))
    #define silt_crc_byte(crc, byte) __builtin_ia32_crc32qi((crc), (byte))
    #elif defined(__aarch64__)
    #define SILT_CRC_HARDWARE
    static inline uint32_t silt_crc_word(uint32_t crc, uint64_t word) {
        __asm__(".arch_extension crc\\n\\tcrc32cx %w0, %w0, %x1" : "+r"(crc) : "r"(word));
        return crc;
    }
    static inline uint32_t silt_crc_byte(uint32_t crc, unsigned char byte) {
        __asm__(".arch_extension crc\\n\\tcrc32cb %w0, %w0, %w1" : "+r"(crc) : "r"(byte));
        return crc;
    }
    #endif

    #if defined(SILT_CRC_HARDWARE)
    /* Three blocks of `block` bytes at once; the first two registers are then moved over the
       blocks behind them by the skip table. */
    #define SILT_CRC_THREE(block, skip)                                                       \\
        while (size >= 3 * (block)) {                                                         \\
            uint32_t second = 0, third = 0;                                                   \\
            const unsigned char *end = data + (block);                                        \\
            do {                                                                              \\
                crc = silt_crc_word(crc, silt_load_word(data));                               \\
                second = silt_crc_word(second, silt_load_word(data + (block)));               \\
                third = silt_crc_word(third, silt_load_word(data + 2 * (block)));             \\
                data += 8;                                                                    \\
            } while (data < end);                                                             \\
            crc = silt_crc_skip((skip), crc) ^ second;                                        \\
            crc = silt_crc_skip((skip), crc) ^ third;                                         \\
            data += 2 * (block);                                                              \\
            size -= 3 * (block);                                                              \\
        }

    SILT_CRC_HARDWARE
    static uint32_t silt_crc_raw_hardware(uint32_t crc, const unsigned char *data,
                                          uint64_t size) {
        SILT_CRC_THREE(SILT_CRC_LONG, silt_crc_skip_long)
        SILT_CRC_THREE(SILT_CRC_SHORT, silt_crc_skip_short)
        while (size >= 8) {
            crc = silt_crc_word(crc, silt_load_word(data));
            data += 8;
            size -= 8;
        }
        while (size--)
            crc = silt_crc_byte(crc, *data++);
        return crc;
    }
    #endif

    static int silt_crc_has_hardware(void) {
    #if defined(__x86_64__)
        return __builtin_cpu_supports("sse4.2") != 0;
    #elif defined(__aarch64__)
        return (getauxval(AT_HWCAP) & (1 << 7)) != 0;      /* HWCAP_CRC32 */
    #else
        return 0;
    #endif
    }

    static uint32_t (*silt_crc_raw)(uint32_t, const unsigned char *, uint64_t)
        = silt_crc_raw_table;

    static int silt_crc_choose(int hardware) {
    #if defined(SILT_CRC_HARDWARE)
        if (hardware && silt_crc_has_hardware()) {
            silt_crc_raw = silt_crc_raw_hardware;
            return 1;
        }
    #endif
        silt_crc_raw = silt_crc_raw_table;
        return 0;
    }

    static inline uint32_t silt_crc32c(uint32_t crc, const void *data, uint64_t size) {
        return ~silt_crc_raw(~crc, (const unsigned char *)data, size);
    }
    """
    void fill_tables "silt_crc_fill_tables"() noexcept nogil
    int choose "silt_crc_choose"(int hardware) noexcept nogil
    uint32_t c_crc32c "silt_crc32c"(uint32_t crc, const void *data, uint64_t size) noexcept nogil


cdef uint32_t crc32c(uint32_t crc, const void *data, uint64_t size) noexcept nogil:
    return c_crc32c(crc, data, size)


def _crc32c(const unsigned char[::1] data not None, uint32_t crc=0):
    """The CRC32C of `data` (any contiguous bytes), continuing from `crc`."""
    cdef uint64_t size = <uint64_t>data.shape[0]
    cdef uint32_t result = crc
    if size:
        with nogil:
            result = c_crc32c(crc, &data[0], size)
    return result


def use_implementation(str name):
    """For tests: "hardware" or "table" from now on; returns the name of what is in use."""
    if name not in ("hardware", "table"):
        raise ValueError(f"no such implementation: {name}")
    return "hardware" if choose(name == "hardware") else "table"


# The C function of this name is not in the module's dictionary, so the Python one may be.
globals()["crc32c"] = _crc32c
fill_tables()
choose(True)
