"""Reading a page's records from the device: base, its continuation, and the links, in order.

Runs without the lock, on copies of the places; whoever asked checks afterwards that the page is
still the one that it was. Records that are in the operating system's memory are read at once; the
others by this thread and the workers, several at the same time. Every record is checked for its
checksum (bound to salt and position), its kind and its page.
"""
from libc.errno cimport ENOMEM
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from siltstone.log.format cimport RECORD_HEADER_SIZE, record_header_t, word_kind, word_size
from siltstone.log.log cimport (LOG_CORRUPT, LOG_NOTHING, LOG_NOWAIT, LOG_OK, LOG_SHORT,
                                LOG_WOULD_BLOCK)
from siltstone.log.ordered cimport GROUP_ID_SIZE, ORDERED_GROUPED
from siltstone.log.ordered_read cimport ordered_read
from siltstone.store.compression cimport decompress
from siltstone.store.state cimport (KIND_BASE, KIND_LINK, KIND_MORE, KIND_MOVED, KIND_TABLE,
                                    MORE_HEADER_SIZE, NOTE_SIZE, PAGES_CORRUPT, PAGES_LOG,
                                    PAGES_OK, PAGE_HEADER_SIZE, TABLE_HEADER_SIZE, WORD_NOTE,
                                    pages_t, place_t)
from siltstone.store.together cimport do_together

cdef struct piece_t:            # one record of a chain
    pages_t *pages
    place_t place
    char *record
    int result
    const char *payload
    uint64_t size
    uint32_t kind


# One record --------------------------------------------------------------------------------------


cdef void piece_read(piece_t *piece, uint32_t flags) noexcept nogil:
    cdef uint64_t size = 0
    cdef int result = ordered_read(piece.pages.stream, piece.place.position, piece.record,
                                   piece.place.bytes, &size, flags)
    cdef record_header_t header
    cdef uint32_t skip
    piece.result = PAGES_OK if result == LOG_OK else PAGES_LOG + result
    if result == LOG_CORRUPT or result == LOG_SHORT or result == LOG_NOTHING:
        piece.result = PAGES_CORRUPT
    if result != LOG_OK:
        return
    memcpy(&header, piece.record, RECORD_HEADER_SIZE)
    skip = GROUP_ID_SIZE if word_kind(header.word) & ORDERED_GROUPED else 0
    piece.kind = word_kind(header.word) & ~<uint32_t>ORDERED_GROUPED
    if word_size(header.word) < skip + 8:
        piece.result = PAGES_CORRUPT
        return
    piece.payload = piece.record + RECORD_HEADER_SIZE + skip
    piece.size = word_size(header.word) - skip


cdef void blocked_read(void *context, uint32_t number) noexcept nogil:
    cdef piece_t *piece = &(<piece_t *>context)[number]
    if piece.result == PAGES_LOG + LOG_WOULD_BLOCK:
        piece_read(piece, 0)


# All records -------------------------------------------------------------------------------------


cdef int read_pieces(pages_t *pages, const place_t *places, uint32_t count,
                     piece_t **pieces) noexcept nogil:
    """All records; free() of *pieces frees their bytes too."""
    cdef uint64_t bytes = count * sizeof(piece_t)
    cdef uint32_t number, blocked = 0
    cdef char *at
    for number in range(count):
        bytes += places[number].bytes
    pieces[0] = <piece_t *>malloc(bytes)
    if pieces[0] == NULL:
        return -ENOMEM
    memset(pieces[0], 0, count * sizeof(piece_t))
    at = <char *>pieces[0] + count * sizeof(piece_t)
    for number in range(count):
        pieces[0][number].pages = pages
        pieces[0][number].place = places[number]
        pieces[0][number].record = at
        at += places[number].bytes
        piece_read(&pieces[0][number], LOG_NOWAIT if count > 1 else 0)
        blocked += pieces[0][number].result == PAGES_LOG + LOG_WOULD_BLOCK
    if blocked:
        do_together(pages.pool, blocked_read, pieces[0], count)
    return PAGES_OK


# A page ------------------------------------------------------------------------------------------


cdef int gather(const piece_t *pieces, uint32_t count, uint64_t pid, uint32_t stored, char **image,
                uint32_t *used) noexcept nogil:
    """The stored bytes of a base that was cut; *used = records that it took."""
    cdef uint64_t done = pieces[0].size - PAGE_HEADER_SIZE, word = 0
    cdef uint32_t offset = 0
    image[0] = <char *>malloc(stored)
    if image[0] == NULL:
        return -ENOMEM
    memcpy(image[0], pieces[0].payload + PAGE_HEADER_SIZE, done)
    used[0] = 1
    while done < stored:
        if used[0] >= count or pieces[used[0]].kind != KIND_MORE:
            return PAGES_CORRUPT
        if pieces[used[0]].size < MORE_HEADER_SIZE:
            return PAGES_CORRUPT
        memcpy(&word, pieces[used[0]].payload, 8)
        memcpy(&offset, pieces[used[0]].payload + 8, 4)
        if (word >> 8 != pid or offset != done
                or pieces[used[0]].size - MORE_HEADER_SIZE > stored - done):
            return PAGES_CORRUPT
        memcpy(image[0] + done, pieces[used[0]].payload + MORE_HEADER_SIZE,
               pieces[used[0]].size - MORE_HEADER_SIZE)
        done += pieces[used[0]].size - MORE_HEADER_SIZE
        used[0] += 1
    return PAGES_OK


cdef int base_node(pages_t *pages, const piece_t *pieces, uint32_t count, uint64_t pid,
                   char **node, uint32_t *used) noexcept nogil:
    cdef uint64_t word
    cdef uint32_t size, stored
    cdef char *joined = NULL
    cdef char *plain = NULL
    cdef const char *image = pieces[0].payload + PAGE_HEADER_SIZE
    cdef int result = PAGES_OK
    if pieces[0].size < PAGE_HEADER_SIZE or (pieces[0].kind != KIND_BASE
                                             and pieces[0].kind != KIND_MOVED):
        return PAGES_CORRUPT
    memcpy(&word, pieces[0].payload, 8)
    memcpy(&size, pieces[0].payload + 8, 4)
    memcpy(&stored, pieces[0].payload + 8 + 4, 4)
    used[0] = 1
    if word >> 8 != pid or pieces[0].size - PAGE_HEADER_SIZE > stored:
        return PAGES_CORRUPT
    if pieces[0].size - PAGE_HEADER_SIZE < stored:
        result = gather(pieces, count, pid, stored, &joined, used)
        image = joined
    if result == PAGES_OK and word & 0xFF:
        plain = <char *>malloc(max(size, <uint32_t>1))
        if plain == NULL:
            result = -ENOMEM
        elif decompress(<uint32_t>(word & 0xFF), image, stored, plain, size) != 0:
            result = PAGES_CORRUPT
        image = plain
    elif result == PAGES_OK and size != stored:
        result = PAGES_CORRUPT
    if result == PAGES_OK:
        result = pages.ops.decode(pages.context, pid, image, size, node)
        if result != 0 and result != -ENOMEM:
            result = PAGES_CORRUPT
    free(joined)
    free(plain)
    return result


cdef int link_node(pages_t *pages, const piece_t *piece, uint64_t pid, char **node) noexcept nogil:
    cdef uint64_t word
    cdef uint32_t skip = 8
    if piece.kind != KIND_LINK:
        return PAGES_CORRUPT
    memcpy(&word, piece.payload, 8)
    if word & WORD_NOTE:
        skip += NOTE_SIZE
    if word >> 8 != pid or piece.size < skip:
        return PAGES_CORRUPT
    if pages.ops.reserve(pages.context, node, <uint32_t>(piece.size - skip)) != 0:
        return -ENOMEM
    if pages.ops.apply(pages.context, node, piece.payload + skip,
                       <uint32_t>(piece.size - skip)) != 0:
        return PAGES_CORRUPT
    return PAGES_OK


cdef int chain_node(pages_t *pages, uint64_t pid, const place_t *places, uint32_t count,
                    char **node, uint64_t *bad) noexcept nogil:
    cdef piece_t *pieces = NULL
    cdef uint32_t number, used = 0
    cdef int result
    node[0] = NULL
    bad[0] = places[0].position
    result = read_pieces(pages, places, count, &pieces)
    for number in range(count if result == PAGES_OK else 0):
        if pieces[number].result != PAGES_OK:
            result = pieces[number].result
            bad[0] = places[number].position
            break
    if result == PAGES_OK:
        result = base_node(pages, pieces, count, pid, node, &used)
    number = used
    while result == PAGES_OK and number < count:
        bad[0] = places[number].position
        result = link_node(pages, &pieces[number], pid, node)
        number += 1
    free(pieces)
    if result != PAGES_OK and node[0] != NULL:
        pages.ops.release(pages.context, node[0])
        node[0] = NULL
    return result


cdef int chain_salvage(pages_t *pages, uint64_t pid, const place_t *places, uint32_t count,
                       char *spare, char **node, uint64_t *bad, uint32_t most,
                       uint32_t *lost) noexcept nogil:
    cdef piece_t *pieces = NULL
    cdef uint32_t number, used = 1
    cdef int result = read_pieces(pages, places, count, &pieces)
    cdef int found = PAGES_CORRUPT
    node[0] = NULL
    lost[0] = 0
    if result == PAGES_OK and count:
        # the pieces of a base come before all links; one that is lost, and the base is
        while used < count and places[used].kind == KIND_MORE:
            used += 1
        for number in range(used):
            found = pieces[number].result
            if found != PAGES_OK:
                break
        if found == PAGES_OK:
            found = base_node(pages, pieces, count, pid, node, &number)
        result = -ENOMEM if found == -ENOMEM else PAGES_OK
    if result == PAGES_OK and found != PAGES_OK:
        bad[0] = places[0].position if count else 0
        lost[0] = 1
        node[0] = spare
        spare = NULL
    for number in range(used, count if result == PAGES_OK and node[0] != NULL else 0):
        found = pieces[number].result
        if found == PAGES_OK:
            found = link_node(pages, &pieces[number], pid, node)
        if found == -ENOMEM:
            result = found
        elif found != PAGES_OK:
            if lost[0] < most:
                bad[lost[0]] = places[number].position
            lost[0] += 1
    free(pieces)
    if spare != NULL:
        pages.ops.release(pages.context, spare)
    return result


# A table block -----------------------------------------------------------------------------------


cdef int table_image(pages_t *pages, uint64_t block, const place_t *places, uint32_t count,
                     char **image, uint64_t *size, uint64_t *bad) noexcept nogil:
    cdef piece_t *pieces = NULL
    cdef uint32_t number, offset, whole = 0
    cdef uint64_t named
    cdef int result = read_pieces(pages, places, count, &pieces)
    image[0] = NULL
    size[0] = 0
    for number in range(count if result == PAGES_OK else 0):
        bad[0] = places[number].position
        result = pieces[number].result
        if result != PAGES_OK:
            break
        result = PAGES_CORRUPT
        if pieces[number].kind != KIND_TABLE or pieces[number].size < TABLE_HEADER_SIZE:
            break
        memcpy(&named, pieces[number].payload, 8)
        memcpy(&offset, pieces[number].payload + 8, 4)
        if number == 0:
            memcpy(&whole, pieces[0].payload + 8 + 4, 4)
            image[0] = <char *>malloc(max(whole, <uint32_t>1))
            if image[0] == NULL:
                result = -ENOMEM
                break
        if (named != block or offset != size[0]
                or pieces[number].size - TABLE_HEADER_SIZE > whole - offset):
            break
        memcpy(image[0] + offset, pieces[number].payload + TABLE_HEADER_SIZE,
               pieces[number].size - TABLE_HEADER_SIZE)
        size[0] += pieces[number].size - TABLE_HEADER_SIZE
        result = PAGES_OK
    if result == PAGES_OK and size[0] != whole:
        result = PAGES_CORRUPT
    free(pieces)
    if result != PAGES_OK:
        free(image[0])
        image[0] = NULL
    return result
