"""Every byte that the log puts on a device: sizes as sums, headers, and the checks of both ways.

Shared by cache streams and ordered streams; docs/format.md draws what is written here.
Little-endian, explicit widths. A checksum is bound to the segment's salt and to the position, so
bytes of an earlier life of the segment, and bytes that landed elsewhere, never validate. Zero is
never valid: kind 0 is no kind. No state, no I/O: any thread may call all of it.
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from siltstone.log.checksum cimport crc32c

cdef extern from *:
    """
    #ifndef SILT_FORMAT
    #define SILT_FORMAT
    #include <stdint.h>
    #include <string.h>
    #if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
    #error "siltstone's format is little-endian, and so must the machine be"
    #endif

    typedef struct {
        uint64_t magic;
        uint32_t format_version;
        uint32_t salt;
        uint64_t version;
        uint64_t previous_version;  /* of the same stream; 0 = none */
        uint8_t uuid[16];           /* of the device */
        uint32_t stream;
        uint32_t flags;
        uint32_t next_slots[2];     /* where this stream goes on; SLOT_NONE = not chosen */
        int64_t opened_ms;
        uint64_t segment_bytes;
        uint64_t stable_position;   /* of the stream when the segment was opened */
        uint32_t slot;
        uint32_t checksum;          /* of all before it */
    } silt_segment_header_t;
    #define SILT_SEGMENT_HEADER_SIZE (8 + 4 + 4 + 8 + 8 + 16 + 4 + 4 + 2 * 4 + 8 + 8 + 8 + 4 + 4)
    _Static_assert(sizeof(silt_segment_header_t) == SILT_SEGMENT_HEADER_SIZE, "segment header");
    _Static_assert(SILT_SEGMENT_HEADER_SIZE % 16 == 0, "what follows is aligned");

    typedef struct {
        uint32_t magic;
        uint32_t salt;
        uint64_t version;
        uint32_t offset;            /* of the run in its segment */
        uint32_t length;            /* of the run: the next one starts at offset + length */
        uint64_t stable_position;   /* of the stream when this header was made */
        uint32_t stream;
        uint32_t slot;
        uint32_t reserved;
        uint32_t checksum;          /* of all before it */
    } silt_run_header_t;
    #define SILT_RUN_HEADER_SIZE (4 + 4 + 8 + 4 + 4 + 8 + 4 + 4 + 4 + 4)
    _Static_assert(sizeof(silt_run_header_t) == SILT_RUN_HEADER_SIZE, "run header");
    _Static_assert(SILT_RUN_HEADER_SIZE % 16 == 0, "records are aligned");

    typedef struct {
        uint32_t checksum;
        uint32_t word;              /* kind | size << 8 */
    } silt_record_header_t;
    #define SILT_RECORD_HEADER_SIZE (4 + 4)
    _Static_assert(sizeof(silt_record_header_t) == SILT_RECORD_HEADER_SIZE, "record header");

    /* What a record's checksum covers, without padding between the fields. */
    #define SILT_RECORD_SEED_SIZE (4 + 8 + 4 + 4)
    static inline void silt_record_seed(unsigned char *seed, uint32_t salt, uint64_t position,
                                        uint32_t word, uint32_t body_crc) {
        memcpy(seed, &salt, 4);
        memcpy(seed + 4, &position, 8);
        memcpy(seed + 4 + 8, &word, 4);
        memcpy(seed + 4 + 8 + 4, &body_crc, 4);
    }
    #endif
    """
    ctypedef struct segment_header_t "silt_segment_header_t":
        uint64_t magic
        uint32_t format_version
        uint32_t salt
        uint64_t version
        uint64_t previous_version
        uint8_t uuid[16]
        uint32_t stream
        uint32_t flags
        uint32_t next_slots[2]
        int64_t opened_ms
        uint64_t segment_bytes
        uint64_t stable_position
        uint32_t slot
        uint32_t checksum

    ctypedef struct run_header_t "silt_run_header_t":
        uint32_t magic
        uint32_t salt
        uint64_t version
        uint32_t offset
        uint32_t length
        uint64_t stable_position
        uint32_t stream
        uint32_t slot
        uint32_t reserved
        uint32_t checksum

    ctypedef struct record_header_t "silt_record_header_t":
        uint32_t checksum
        uint32_t word

    enum:
        SEGMENT_HEADER_SIZE "SILT_SEGMENT_HEADER_SIZE"
        RUN_HEADER_SIZE "SILT_RUN_HEADER_SIZE"
        RECORD_HEADER_SIZE "SILT_RECORD_HEADER_SIZE"
        RECORD_SEED_SIZE "SILT_RECORD_SEED_SIZE"

    void record_seed "silt_record_seed"(unsigned char *seed, uint32_t salt, uint64_t position,
                                        uint32_t word, uint32_t body_crc) noexcept nogil

cdef enum:
    FORMAT_VERSION = 1
    RUN_MAGIC = 0x6e75722d          # "-run"
    RUN_ALIGNMENT = 4096            # runs start and end at multiples: whole blocks, O_DIRECT
    RECORD_ALIGNMENT = 16
    RECORD_SIZE_MIN = 64            # with header and padding: one live bit is one record
    RECORD_PAYLOAD_MAX = (1 << 24) - 1
    RECORD_PAD = 255                # kind of a record that says nothing: an aborted reservation
    SEGMENT_SIZE_MAX = 1 << 30      # offsets in a segment fit 32 bits with room to add
    SLOT_NONE = 0xFFFFFFFF

cdef inline uint64_t segment_magic() noexcept nogil:
    return 0x6d6765732d746c73       # "slt-segm"

cdef inline uint64_t record_bytes(uint64_t payload_size) noexcept nogil:
    # On the device: header, payload, padding.
    cdef uint64_t size = (RECORD_HEADER_SIZE + payload_size + RECORD_ALIGNMENT - 1) & (
        ~<uint64_t>(RECORD_ALIGNMENT - 1))
    return size if size > RECORD_SIZE_MIN else RECORD_SIZE_MIN

cdef inline uint32_t record_word(uint8_t kind, uint32_t payload_size) noexcept nogil:
    return <uint32_t>kind | (payload_size << 8)

cdef inline uint8_t word_kind(uint32_t word) noexcept nogil:
    return <uint8_t>(word & 0xFF)

cdef inline uint32_t word_size(uint32_t word) noexcept nogil:
    return word >> 8

cdef inline uint32_t record_checksum(uint32_t salt, uint64_t position, uint32_t word,
                                     uint32_t body_crc) noexcept nogil:
    cdef unsigned char seed[RECORD_SEED_SIZE]
    record_seed(seed, salt, position, word, body_crc)
    return crc32c(0, seed, RECORD_SEED_SIZE)

cdef inline int64_t record_check(const char *record, uint64_t available, uint32_t salt,
                                 uint64_t position) noexcept nogil:
    # Payload size of a valid record; -1: there is none (kind 0); -2: the size field goes past
    # `available`; -3: the checksum does not fit.
    cdef record_header_t header
    if available < RECORD_HEADER_SIZE:
        return -1
    memcpy(&header, record, RECORD_HEADER_SIZE)
    if word_kind(header.word) == 0:
        return -1
    if RECORD_HEADER_SIZE + <uint64_t>word_size(header.word) > available:
        return -2
    cdef uint32_t body = crc32c(0, record + RECORD_HEADER_SIZE, word_size(header.word))
    if record_checksum(salt, position, header.word, body) != header.checksum:
        return -3
    return word_size(header.word)

cdef inline void segment_header_finish(segment_header_t *header) noexcept nogil:
    header.magic = segment_magic()
    header.format_version = FORMAT_VERSION
    header.checksum = crc32c(0, header, SEGMENT_HEADER_SIZE - 4)

cdef inline bint segment_header_valid(const segment_header_t *header, const uint8_t *uuid,
                                      uint64_t segment_bytes, uint32_t slot) noexcept nogil:
    return (header.magic == segment_magic() and header.format_version == FORMAT_VERSION
            and header.slot == slot and header.segment_bytes == segment_bytes
            and header.version != 0 and memcmp(header.uuid, uuid, 16) == 0
            and header.checksum == crc32c(0, header, SEGMENT_HEADER_SIZE - 4))

cdef inline void run_header_finish(run_header_t *header) noexcept nogil:
    header.magic = RUN_MAGIC
    header.reserved = 0
    header.checksum = crc32c(0, header, RUN_HEADER_SIZE - 4)

cdef inline bint run_header_valid(const run_header_t *header, uint32_t salt, uint64_t version,
                                  uint32_t slot, uint64_t offset,
                                  uint64_t segment_bytes) noexcept nogil:
    return (header.magic == RUN_MAGIC and header.version == version and header.salt == salt
            and header.slot == slot and header.offset == offset
            and header.length >= RUN_ALIGNMENT and header.length % RUN_ALIGNMENT == 0
            and header.offset + <uint64_t>header.length <= segment_bytes
            and header.checksum == crc32c(0, header, RUN_HEADER_SIZE - 4))

cdef inline uint64_t run_first_record(uint64_t run_offset) noexcept nogil:
    # Offset in the segment. The segment's header stands at the front of its first run.
    return run_offset + RUN_HEADER_SIZE + (SEGMENT_HEADER_SIZE if run_offset == 0 else 0)

cdef inline uint64_t run_header_offset(uint64_t run_offset) noexcept nogil:
    return run_offset + (SEGMENT_HEADER_SIZE if run_offset == 0 else 0)
