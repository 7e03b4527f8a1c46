"""Memory of nodes: cells of few sizes in chunks that the system may back by one large page each.

A get is a handful of cache misses, and without large pages nearly each of them is one of the
processor's page tables too. malloc() has its memory in small pages; so nodes have their own:

    chunk (2 MiB, aligned)   header | slab * 32
    slab (64 KiB)            cells of one size, the first slab less the header

A slab without a cell in use goes back to its chunk and may serve another size; a chunk without a
slab in use goes back to the system, but for one. The first chunk has small pages: a process with a
small store should not take 2 MiB for it. Sizes are an eighth apart, so that what rounding adds is
little, and nodes use it to grow.

The system fills a new large page with zeros, which takes milliseconds. Of a store that is being
filled a worker has the next chunk ready before it is wanted.

One heap for the process, with a lock of its own that is the last in any order. A forked child
begins with an empty one: what was allocated before stays as it was, and is never given back there.
"""
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from siltstone.log.pthread cimport (mutex_init_spinning, pthread_atfork, pthread_mutex_lock,
                                    pthread_mutex_t, pthread_mutex_unlock)
from siltstone.log.workers cimport job_t, pool_submit, pool_t

cdef extern from "<sys/mman.h>" nogil:
    enum:
        PROT_READ
        PROT_WRITE
        MAP_PRIVATE
        MAP_ANONYMOUS
        MADV_HUGEPAGE
    void *MAP_FAILED
    void *mmap(void *, size_t, int, int, int, long)
    int munmap(void *, size_t)
    int madvise(void *, size_t, int)

cdef extern from *:
    """
    #define silt_lowest(word) ((uint32_t)__builtin_ctz(word))
    #define silt_highest(word) (63 - (uint32_t)__builtin_clzll(word))
    #define silt_bits(word) ((uint32_t)__builtin_popcount(word))
    """
    uint32_t lowest_bit "silt_lowest"(uint32_t word) noexcept nogil      # of a word that is not 0
    uint32_t highest_bit "silt_highest"(uint64_t word) noexcept nogil
    uint32_t bits_of "silt_bits"(uint32_t word) noexcept nogil

cdef enum:
    CHUNK_BYTES = 1 << 21
    SLAB_BITS = 16
    SLAB_BYTES = 1 << SLAB_BITS
    SLABS = CHUNK_BYTES // SLAB_BYTES
    CHUNK_HEADER_SIZE = 1 << 11
    LINE = 64
    STEP_SMALL = 128            # up to EIGHTHS_FROM; above, an eighth of a power of two
    EIGHTHS_FROM_BITS = 10
    EIGHTHS_FROM = 1 << EIGHTHS_FROM_BITS
    SIZES = 8 + 8 * 4           # up to CELL_MAX
    SYSTEM_PAGE = 4096
    # Slabs to spare below which the next chunk is made ready: all, as soon as one is taken. 1 MiB
    # of nodes is 5 to 10 ms of writes, zeroing a chunk takes 3 to 5. With half of them writers
    # still zeroed for 125 ms of a million records, now for 12 to 37 (2026-12-01).
    AHEAD_BELOW = 32

cdef struct slab_t:
    char *given                 # cells that came back: each holds the next one's address
    slab_t *next                # of the same size, with room
    slab_t *previous
    uint32_t used               # cells
    uint32_t fresh              # cells from here on were never taken
    uint32_t cells
    uint32_t bytes              # of a cell

cdef struct chunk_t:            # at the beginning of its memory
    chunk_t *next               # with slabs to spare
    chunk_t *previous
    uint32_t spare              # a bit for each slab that is not in use
    uint32_t generation         # of the process that made it
    slab_t slabs[SLABS]

cdef struct heap_t:
    pthread_mutex_t lock
    slab_t *open[SIZES]         # with room for a cell
    chunk_t *chunks             # with room for a slab
    uint64_t chunk_count
    uint64_t empty_count        # of them without a slab in use
    uint64_t used_bytes
    uint32_t generation
    uint32_t preparing          # a worker has the job
    job_t job

cdef heap_t heap
assert sizeof(chunk_t) <= CHUNK_HEADER_SIZE


cdef void _begin() noexcept nogil:
    """Also in a forked child, whose parent may have been inside."""
    cdef uint32_t generation = heap.generation + 1
    memset(&heap, 0, sizeof(heap_t))
    heap.generation = generation
    mutex_init_spinning(&heap.lock)


_begin()
pthread_atfork(NULL, NULL, _begin)


# Sizes -------------------------------------------------------------------------------------------

cdef inline uint32_t _number(uint64_t size) noexcept nogil:
    # Of the smallest size that is not below.
    cdef uint32_t bits
    if size <= EIGHTHS_FROM + LINE:
        return <uint32_t>((size - LINE - 1) // STEP_SMALL) if size > LINE else 0
    bits = highest_bit(size - LINE - 1)
    return 8 * (bits - EIGHTHS_FROM_BITS) + <uint32_t>((size - LINE - 1) >> (bits - 3))


cdef uint64_t cell_size(uint64_t size) noexcept nogil:
    cdef uint64_t step = STEP_SMALL
    if size > CELL_MAX:
        step = LINE
    elif size > EIGHTHS_FROM + LINE:
        step = <uint64_t>1 << (highest_bit(size - LINE - 1) - 3)
    elif size <= LINE:
        return LINE + step
    return LINE + ((size - LINE + step - 1) & ~(step - 1))


# Slabs and chunks; all under the lock ------------------------------------------------------------

cdef inline chunk_t *_chunk_of(const void *address) noexcept nogil:
    return <chunk_t *>(<uint64_t>address & ~<uint64_t>(CHUNK_BYTES - 1))


cdef inline char *_first_cell(const slab_t *slab) noexcept nogil:
    cdef chunk_t *chunk = _chunk_of(slab)
    cdef uint64_t number = slab - chunk.slabs
    return <char *>chunk + (number << SLAB_BITS) + (CHUNK_HEADER_SIZE if number == 0 else 0)


cdef void _chunk_offer(chunk_t *chunk) noexcept nogil:
    chunk.previous = NULL
    chunk.next = heap.chunks
    if chunk.next != NULL:
        chunk.next.previous = chunk
    heap.chunks = chunk


cdef void _chunk_withdraw(chunk_t *chunk) noexcept nogil:
    if chunk.next != NULL:
        chunk.next.previous = chunk.previous
    if chunk.previous != NULL:
        chunk.previous.next = chunk.next
    else:
        heap.chunks = chunk.next


cdef char *_chunk_map() noexcept nogil:
    """Aligned memory of a chunk, or NULL. The one thing here that needs no lock."""
    cdef char *mapped = <char *>mmap(NULL, 2 * CHUNK_BYTES, PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    cdef char *begin
    if mapped == MAP_FAILED:
        return NULL
    begin = <char *>_chunk_of(mapped + CHUNK_BYTES - 1)
    if begin != mapped:
        munmap(mapped, begin - mapped)
    if begin != mapped + CHUNK_BYTES:
        munmap(begin + CHUNK_BYTES, mapped + CHUNK_BYTES - begin)
    return begin


cdef void _chunk_add(char *begin) noexcept nogil:
    cdef chunk_t *chunk = <chunk_t *>begin
    chunk.spare = <uint32_t>-1
    chunk.generation = heap.generation
    heap.chunk_count += 1
    heap.empty_count += 1
    _chunk_offer(chunk)


cdef bint _chunk_make() noexcept nogil:
    cdef char *begin = _chunk_map()
    if begin == NULL:
        return False
    if heap.chunk_count:
        madvise(begin, CHUNK_BYTES, MADV_HUGEPAGE)      # only faster with it
    _chunk_add(begin)
    return True


cdef void _slab_offer(slab_t *slab) noexcept nogil:
    cdef slab_t **open = &heap.open[_number(slab.bytes)]
    slab.previous = NULL
    slab.next = open[0]
    if slab.next != NULL:
        slab.next.previous = slab
    open[0] = slab


cdef void _slab_withdraw(slab_t *slab) noexcept nogil:
    if slab.next != NULL:
        slab.next.previous = slab.previous
    if slab.previous != NULL:
        slab.previous.next = slab.next
    else:
        heap.open[_number(slab.bytes)] = slab.next


cdef bint _slab_make(uint32_t bytes) noexcept nogil:
    cdef chunk_t *chunk
    cdef slab_t *slab
    cdef uint32_t number
    if heap.chunks == NULL and not _chunk_make():
        return False
    chunk = heap.chunks
    heap.empty_count -= chunk.spare == <uint32_t>-1
    number = lowest_bit(chunk.spare)
    chunk.spare &= chunk.spare - 1
    if chunk.spare == 0:
        _chunk_withdraw(chunk)
    slab = &chunk.slabs[number]
    memset(slab, 0, sizeof(slab_t))
    slab.bytes = bytes
    slab.cells = (SLAB_BYTES - (CHUNK_HEADER_SIZE if number == 0 else 0)) // bytes
    _slab_offer(slab)
    return True


cdef void _slab_empty(slab_t *slab) noexcept nogil:
    cdef chunk_t *chunk = _chunk_of(slab)
    _slab_withdraw(slab)
    if chunk.spare == 0:
        _chunk_offer(chunk)
    chunk.spare |= <uint32_t>1 << <uint32_t>(slab - chunk.slabs)
    if chunk.spare != <uint32_t>-1:
        return
    heap.empty_count += 1
    if heap.empty_count > 1:
        _chunk_withdraw(chunk)
        heap.empty_count -= 1
        heap.chunk_count -= 1
        munmap(chunk, CHUNK_BYTES)


# Chunks ahead ------------------------------------------------------------------------------------

cdef void _ahead_job(job_t *job) noexcept nogil:
    cdef char *begin = _chunk_map()
    cdef chunk_t *before
    cdef uint32_t at = 0
    if begin != NULL:
        madvise(begin, CHUNK_BYTES, MADV_HUGEPAGE)
        while at < CHUNK_BYTES:
            begin[at] = 0
            at += SYSTEM_PAGE
    pthread_mutex_lock(&heap.lock)
    if begin != NULL:
        before = heap.chunks
        if before != NULL:
            _chunk_withdraw(before)
        _chunk_add(begin)
        if before != NULL:
            _chunk_offer(before)        # what is in use already is used up first
    heap.preparing = 0
    pthread_mutex_unlock(&heap.lock)


cdef void cells_ahead(pool_t *pool) noexcept nogil:
    cdef bint wanted
    if pool == NULL or pool.threads_wanted == 0:
        return
    pthread_mutex_lock(&heap.lock)
    wanted = (heap.chunk_count > 1 and not heap.preparing
              and (heap.chunks == NULL or (heap.chunks.next == NULL
                                           and bits_of(heap.chunks.spare) < AHEAD_BELOW)))
    if wanted:
        heap.preparing = 1
    pthread_mutex_unlock(&heap.lock)
    if not wanted:
        return
    heap.job.run = _ahead_job
    if pool_submit(pool, &heap.job) != 0:
        pthread_mutex_lock(&heap.lock)
        heap.preparing = 0
        pthread_mutex_unlock(&heap.lock)


# Cells -------------------------------------------------------------------------------------------

cdef char *cell_take(uint64_t size) noexcept nogil:
    cdef slab_t *slab
    cdef char *cell = NULL
    if size > CELL_MAX:
        return <char *>malloc(size)
    pthread_mutex_lock(&heap.lock)
    if heap.open[_number(size)] != NULL or _slab_make(<uint32_t>size):
        slab = heap.open[_number(size)]
        cell = slab.given
        if cell != NULL:
            slab.given = (<char **>cell)[0]
        else:
            cell = _first_cell(slab) + <uint64_t>slab.fresh * slab.bytes
            slab.fresh += 1
        slab.used += 1
        if slab.used == slab.cells:
            _slab_withdraw(slab)
        heap.used_bytes += size
    pthread_mutex_unlock(&heap.lock)
    return cell


cdef void cell_give(char *cell, uint64_t size) noexcept nogil:
    cdef chunk_t *chunk
    cdef slab_t *slab
    if size > CELL_MAX or cell == NULL:
        free(cell)
        return
    chunk = _chunk_of(cell)
    if chunk.generation != heap.generation:
        return
    pthread_mutex_lock(&heap.lock)
    slab = &chunk.slabs[(cell - <char *>chunk) >> SLAB_BITS]
    (<char **>cell)[0] = slab.given
    slab.given = cell
    if slab.used == slab.cells:
        _slab_offer(slab)
    slab.used -= 1
    if slab.used == 0:
        _slab_empty(slab)
    heap.used_bytes -= size
    pthread_mutex_unlock(&heap.lock)


cdef void cells_count(uint64_t *mapped, uint64_t *used) noexcept nogil:
    pthread_mutex_lock(&heap.lock)
    mapped[0] = heap.chunk_count * CHUNK_BYTES
    used[0] = heap.used_bytes
    pthread_mutex_unlock(&heap.lock)
