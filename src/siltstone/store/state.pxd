"""What the page cache keeps in memory: structures and numbers only, shared by its modules.

All of it is guarded by pages_t.lock. Engines see it through pagecache.pxd.
"""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from siltstone.log.ordered cimport group_t, ordered_t
from siltstone.log.pthread cimport pthread_mutex_t
from siltstone.log.workers cimport pool_t

cdef enum pages_result_t:
    PAGES_OK = 0
    PAGES_MISS = 1          # page, or the table block of its entry, is not in memory: pages_load()
    PAGES_ABSENT = 2        # no such page (never allocated, or freed; at that snapshot, if one)
    PAGES_WAIT = 3          # appending now could wait: pages_wait_ready(), then again
    PAGES_LARGE = 4         # more than the write buffers hold: do it with the GIL dropped
    PAGES_TOO_OLD = 5       # the snapshot was given up: over `snapshot_bytes_max`
    PAGES_CLOSED = 6
    PAGES_FORKED = 7
    PAGES_MORE = 9          # a part of it is done
    PAGES_CORRUPT = 8       # a record or image fails its check; pages.bad_position says which
    PAGES_LOG = 100         # + a result of the log (log.pxd): 100 + LOG_FAILED is "read-only now"

cdef enum:
    BLOCK_BITS = 9
    BLOCK_ENTRIES = 1 << BLOCK_BITS     # of a table block
    PID_FIRST = 2                       # 0 is "none", 1 is kept
    HEAT_MAX = 3
    RECENT_MAX = 64
    ROOT_NAME_MAX = 1024
    LINKS_MAX = 128                     # of a page; then its next change writes it whole

cdef enum:
    # Kinds of records; docs/pages.md draws their payloads.
    KIND_BASE = 1           # a page's whole content, or its beginning
    KIND_MORE = 2           # what of it did not fit into one record
    KIND_LINK = 3           # a fragment: a change to what the records before it say
    KIND_FREE = 4
    KIND_ROOT = 5
    KIND_IDS = 6            # ids below may have been given out
    KIND_TABLE = 7          # image of a table block, or a part of it
    KIND_MOVED = 8          # as KIND_BASE, but no change: the page is what it was
    MARK_COMMIT = 1         # first byte of a mark: this group is a commit
    NOTE_SIZE = 4 + 8       # root, difference
    WORD_NOTE = 1           # low byte of a link's first word: a note follows
    PAGE_HEADER_SIZE = 8 + 4 + 4        # of BASE and MOVED: word, image size, stored size
    MORE_HEADER_SIZE = 8 + 4            # word, offset
    TABLE_HEADER_SIZE = 8 + 4 + 4       # block, offset, size

cdef enum entry_state_t:
    PAGE_UNUSED = 0         # never allocated
    PAGE_FREE = 1
    PAGE_RESERVED = 2       # allocated in a change that is not committed
    PAGE_LIVE = 3

# What a page is in memory is its engine's: one malloc()ed node, whole and merged. All nogil, never
# called for one node by two threads; all but decode() and release() are called under the lock.
cdef struct page_ops_t:
    # Make sure that apply() of a fragment of `size` bytes cannot fail. May move the node. 0/-ENOMEM
    int (*reserve)(void *context, char **node, uint32_t size) noexcept nogil
    # Apply a logged fragment in place. 0; or not 0 when it is no fragment for this node.
    int (*apply)(void *context, char **node, const char *fragment, uint32_t size) noexcept nogil
    uint64_t (*image_size)(void *context, const char *node) noexcept nogil      # exact
    void (*encode)(void *context, const char *node, char *image) noexcept nogil
    # Full check of an image from the device. 0, -ENOMEM, or anything else: it is damaged.
    int (*decode)(void *context, uint64_t pid, const char *image, uint64_t size,
                  char **node) noexcept nogil
    uint64_t (*memory)(void *context, const char *node) noexcept nogil          # bytes of heap
    char *(*copy)(void *context, const char *node) noexcept nogil               # NULL: no memory
    void (*release)(void *context, char *node) noexcept nogil

cdef struct place_t:
    # A record on the device.
    uint64_t position
    uint32_t bytes          # that it takes of its segment
    uint32_t kind           # KIND_BASE, KIND_MORE or KIND_LINK

cdef struct version_t
cdef struct snapshot_t
cdef struct change_memory_t

cdef struct entry_t:        # 72 bytes
    char *node              # NULL: not in memory
    uint64_t stamp          # of the commit that changed it last; moving and paging keep it
    place_t first           # the base; position 0: none
    place_t *more           # what follows it, oldest first
    version_t *versions     # kept for snapshots, newest first
    uint32_t node_bytes     # as counted
    uint32_t link_bytes     # of records
    uint32_t redundant      # bytes of its records that say again what the page says
    uint16_t count          # places, `first` included
    uint16_t capacity       # of `more`
    uint8_t state
    uint16_t busy           # being loaded, moved, or part of a change: not evicted

cdef struct version_t:
    # What a page was from `stamp` on, until `until`.
    uint64_t stamp
    uint64_t until
    uint64_t pid
    char *node              # or NULL, then its places (their segments are pinned)
    place_t *places
    uint32_t count
    uint32_t bytes          # counted against snapshot_bytes_max
    version_t *older        # of the same page
    version_t *next         # of the same snapshot
    version_t *previous

cdef struct snapshot_t:
    # Zero it, then pages_snapshot_open(). The caller owns the memory, until the close.
    uint64_t stamp
    uint32_t open
    uint32_t too_old
    snapshot_t *newer
    snapshot_t *older
    version_t *versions     # for which it is the newest snapshot that needs them

cdef struct pending_part_t: # packed records follow: pending.pyx
    pending_part_t *next
    uint32_t used

cdef struct pending_t:      # what recovery found for a block that is not in memory
    pending_part_t *first
    pending_part_t *last
    uint64_t bytes          # of memory
    uint64_t stamp          # of the record that was noted last
    uint64_t position

cdef struct block_t:        # BLOCK_ENTRIES of the page table
    entry_t *entries        # NULL: not in memory. What is behind them: table.pxd
    place_t *places         # of its newest image
    uint16_t place_count
    uint32_t resident       # entries with a node, versions, or in use: then it is not evicted
    uint8_t dirty           # differs from its image
    uint8_t heat
    uint32_t checkpoint     # number of the checkpoint that has it already
    uint64_t redundant      # of all its entries, when it was dropped
    pending_t *pending      # to be applied when it is read; NULL: nothing

cdef struct root_t:
    uint32_t used
    uint32_t name_size
    char *name
    uint64_t pid
    int64_t count           # what the engine counts: records, say

cdef struct pages_counters_t:
    uint64_t commits
    uint64_t hits           # counted by engines that care
    uint64_t loads          # of pages from the device
    uint64_t load_bytes
    uint64_t evictions
    uint64_t block_loads
    uint64_t link_bytes     # appended, by parts: changes,
    uint64_t base_bytes     # whole pages written by changes,
    uint64_t mark_bytes
    uint64_t consolidated_bytes     # chains that grew too long,
    uint64_t cleaned_bytes  # pages moved out of sparse segments,
    uint64_t table_bytes    # checkpoints
    uint64_t cleaned_segments
    uint64_t checkpoints
    uint64_t versions_made
    uint64_t snapshots_lost
    uint64_t load_retries

cdef struct pages_t:
    pthread_mutex_t lock            # guards all below
    uint32_t wanted                 # by so many who try; atomic
    uint32_t given                  # so often to one of them
    ordered_t *stream
    pool_t *pool                    # NULL: loads read one after the other
    const page_ops_t *ops
    void *context                   # the engine's, given to every op
    const int *fork_count           # of this process; differs from `opened_in`: ForkedProcess
    int opened_in
    uint32_t closed
    uint32_t read_only
    uint32_t stopping               # cleaning is to come to an end
    # Table
    block_t *blocks
    uint32_t block_count
    uint32_t block_capacity
    uint64_t pid_next               # no pid at or above was ever allocated
    uint64_t *free_pids             # a stack; entries that are free no more are skipped
    uint32_t free_count
    uint32_t free_capacity
    # Commits and snapshots
    uint64_t commit_stamp
    uint64_t commit_end             # position behind the newest commit: what to sync up to
    snapshot_t *newest
    snapshot_t *oldest
    uint64_t snapshot_newest        # its stamp + 1; 0 = none is open
    uint64_t versions
    uint64_t version_bytes
    uint64_t snapshot_bytes_max
    # Roots, by id
    root_t *roots
    uint32_t root_count
    uint32_t root_capacity
    # Ids
    uint64_t id_next
    uint64_t id_limit               # ids below may be given out: a marker above them is durable
    uint64_t id_marker              # appended
    uint64_t id_marker_end
    uint64_t id_interval
    # Memory
    uint64_t resident_bytes         # nodes, table blocks, chains, what is pending for blocks
    uint64_t pending_bytes          # the last of these
    uint64_t cache_bytes            # the limit
    uint64_t evict_above            # the same, or higher after a round that found nothing to evict
    uint64_t resident_pages
    uint64_t redundant_bytes        # of all entries; as last known where the block was dropped
    uint64_t content_before         # size of the page that page_writable() gave
    uint32_t pages_min              # so many stay whatever the limit: an operation needs a few
    uint64_t recent[RECENT_MAX]     # the last `pages_min` pids that were loaded: busy
    uint32_t recent_next
    uint32_t hand_block
    uint32_t hand_entry
    # Checkpoint being made
    uint32_t checkpoint             # its number, while blocks may still have to be saved
    uint32_t checkpoint_failed
    uint32_t checkpoint_serial      # of the newest that was begun
    uint64_t checkpoint_end         # stream end at the newest one
    place_t *checkpoint_dead        # places of blocks that it replaced
    uint32_t dead_count
    uint32_t dead_capacity
    # Policy
    uint32_t compression            # 0 none, 1 zstd, 2 lz4
    uint32_t links_max
    uint32_t due                    # there is work for maintain()
    uint64_t log_limit              # of log since the last checkpoint
    uint64_t bad_position
    uint64_t left_out               # records that recovery could not make sense of
    char *scratch                   # for encoding under the lock
    uint64_t scratch_bytes
    pages_counters_t counters

cdef struct change_item_t:
    uint32_t kind
    uint32_t root
    uint64_t pid
    char *node                      # becomes the page's node, or NULL
    char *data                      # fragment: in `memory` of the set; or name: owned
    uint64_t size
    place_t *places                 # of an image that is written already
    uint32_t place_count
    place_t place                   # the only one, where `places` is NULL

cdef struct change_memory_t:        # bytes of fragments follow
    change_memory_t *older
    uint64_t used
    uint64_t size

# A set of changes that counts as a whole. Zero it; one thread's; change_commit() or
# change_abandon() ends it. Nothing in memory or for others changes before the commit.
cdef struct change_t:
    pages_t *pages
    change_item_t *items
    uint32_t count
    uint32_t capacity
    uint32_t appended               # items so far are in the log already
    change_memory_t *memory
    uint64_t bytes                  # that appending the others will take, about
    uint32_t flags                  # ORDERED_URGENT: may use the segments kept for making room
    bint waits                      # for the medium, as soon as it is committed
    group_t group
    char *notes                     # (root id, difference) pairs
    uint32_t note_count
    uint32_t note_capacity
