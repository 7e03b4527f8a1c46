"""The page cache: opening, recovery, checkpoints, closing, and the one lock.

Owns a log, its page table and what of it is in memory; what happens to single pages is in the
modules beside it: table.pyx (entries and blocks), resident.pyx (asking, loading, evicting),
commit.pyx (changing), versions.pyx (snapshots), cleaning.pyx, redo.pyx (recovery). Engines subclass
`Pages` and set the operations on their nodes. Any thread may call; a forked child may not.

A checkpoint describes the table at one moment: the log's segment table, roots, counts and ids are
taken under the lock; then dirty blocks are saved one by one, each before its next change. When all
are saved, the places of all blocks and the rest make the state that the log keeps.
"""
import atexit
import contextlib
import errno as errors_of_os
import os
import threading
import weakref

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset
from posix.unistd cimport usleep

from siltstone.clock import SYSTEM_CLOCK, SYSTEM_RANDOM
from siltstone.errors import (Closed, ConfigError, EnvironmentFailure,
                              ForkedProcess, KeyMissing, SiltstoneError, SnapshotTooOld)
from siltstone.log.device import FileDevice
from siltstone.log.directory import check_free_for, make_directory
from siltstone.log.atomics cimport load64_relaxed
from siltstone.log.capture cimport capture_t, capture_take
from siltstone.log.log cimport LOG_CORRUPT, LOG_GONE, LOG_OK
from siltstone.log.ordered cimport ordered_sync
from siltstone.log.pthread cimport mutex_init_spinning, pthread_atfork, pthread_mutex_destroy
from siltstone.log.regroup cimport Visitor
from siltstone.log.turns cimport turn_ask, turn_give, turn_taken, turn_wanted
from siltstone.log.workers cimport WorkerPool
from siltstone.store.check cimport (CHECK_COUNTS, CHECK_LIVE, CHECK_LOST, page_check, table_check)
from siltstone.store.cleaning cimport (clean_while_due, segment_clean, space_behind, space_t,
                                       space_take, space_victim)
from siltstone.store.cells cimport cells_ahead
from siltstone.store.compression cimport compression_ready
from siltstone.store.pending cimport pending_free
from siltstone.store.redo cimport redo_record, state_head, state_restore, state_tail
from siltstone.store.resident cimport block_load, blocks_settle
from siltstone.store.state cimport BLOCK_BITS, BLOCK_ENTRIES, LINKS_MAX, RECENT_MAX
from siltstone.store.table cimport block_save, entries_free
from siltstone.log.openers import Reader, Writer
from siltstone.store.report import Report
from siltstone.store.upkeep import Upkeep

cdef extern from *:
    """
    static int silt_forks = 0;
    static void silt_forked(void) { silt_forks++; }
    """
    int forks "silt_forks"
    void forked "silt_forked"() noexcept nogil

pthread_atfork(NULL, NULL, forked)

COMPRESSIONS = {"none": 0, "zstd": 1, "lz4": 2}
LIBRARIES = {"zstd": "libzstd.so.1", "lz4": "liblz4.so.1"}
# Measured: bench/store_space.py, 25 MB of records written six times, 2026-11-25. Both rows count:
# file size (peak, closed) and bytes written of a user's byte.
# Log between two checkpoints, in segments: a share of the file, but not less than some. What dies
# waits for two checkpoints: with 8 and an eighth the peak was 0.6 x live higher; the bytes that
# checkpoints write rose from 0.1 to 0.2 of the user's. A million records (2026-12-01): with a 24th
# writers paused for the background, with a 20th and a 16th they did not; the file's peak was 1.86
# to 1.90, 1.90 and 1.95 x what lives.
CHECKPOINT_SHARE = 20
CHECKPOINT_SEGMENTS_MIN = 3
# What recovery left for later cannot be evicted: where it takes more than this share of the cache,
# a checkpoint does it at once.
PENDING_SHARE = 8
# Segments that only freeing, cleaning and checkpoints may use: a full device can be emptied.
SLOTS_KEPT = 5
# Writers are slowed down only while segments are filled faster than the background threads give
# them back: so long a pause for each segment over what pages and checkpoints want, once a segment,
# at most PAUSE_MAX_US. A checkpoint waits 15 to 40 ms for the medium, a segment is filled in 5:
# with 500 us the peak of a small store (40,000 records) was 2.1 x its data, with 1,500 and with
# 4,000 it was 1.9; of a million 1.95 to 2.03 and, with 3,000, 1.90 (2026-12-01). So many segments
# more, or a share of the file, and writers do a step of maintenance themselves, which may wait for
# the medium: that is for a thread that gets no turn.
PAUSE_US = 3000
PAUSE_MAX_US = 20_000
HELP_SHARE = 8
HELP_SEGMENTS = 12
# A segment that is fuller than this (of 1000) is not worth moving when asked to.
COMPACT_BELOW = 990
CLOSED_FACTOR = 1.03
COMPACT_SECONDS = 2
# A file that is so close to what lives, and one segment, is not worth the writing of a close: a
# store that is opened to read and closed again would write each time.
CLOSED_NEAR = 1.1
LOOKS_MAX = 100                 # of a reader that never finds its checkpoint still there
_open_pages = weakref.WeakSet()


@atexit.register
def _close_all():
    """What was committed survives the interpreter's end also where nobody closed."""
    for pages in list(_open_pages):
        try:
            pages.close()
        except SiltstoneError:
            pass                # said to whoever used it; there is nobody to tell now


# Small steps -------------------------------------------------------------------------------------


cdef int pages_ready(pages_t *pages, uint64_t bytes, uint32_t records) noexcept nogil:
    return append_ready(pages, bytes, records)


cdef int pages_wait_ready(pages_t *pages, uint64_t bytes, uint32_t records) noexcept nogil:
    return append_wait(pages, bytes, records)


cdef int pages_sync(pages_t *pages, uint64_t end) noexcept nogil:
    cdef int result = ordered_sync(pages.stream, end)
    return PAGES_OK if result == LOG_OK else PAGES_LOG + result


cdef int redo_visit(void *context, uint32_t kind, uint64_t position, const char *payload,
                    uint64_t size, uint64_t mark) noexcept nogil:
    """What makes no sense, or belongs to a block that cannot be read, is counted and left out."""
    cdef pages_t *pages = <pages_t *>context
    cdef int result = redo_record(pages, kind, position, payload, size, mark)
    if result == PAGES_CORRUPT:
        pages.left_out += 1
        return PAGES_OK
    return result


cdef void free_table(pages_t *pages) noexcept nogil:
    cdef uint32_t number, place
    cdef entry_t *entries
    for number in range(pages.block_count):
        entries = pages.blocks[number].entries
        for place in range(BLOCK_ENTRIES if entries != NULL else 0):
            if entries[place].node != NULL:
                pages.ops.release(pages.context, entries[place].node)
        entries_free(entries)
        pending_free(pages, number)
        free(pages.blocks[number].places)
    for number in range(pages.root_count):
        free(pages.roots[number].name)
    free(pages.blocks)
    free(pages.roots)
    free(pages.free_pids)
    free(pages.checkpoint_dead)
    free(pages.scratch)


cdef class Pages:
    """See pagecache.pxd for what engines do with it."""

    def __cinit__(self, *_, **__):
        memset(&self.pages, 0, sizeof(pages_t))
        mutex_init_spinning(&self.pages.lock)
        self.pages.fork_count = &forks
        self.pages.opened_in = forks
        self.pages.closed = 1
        self._checkpointing, self._maintenance = threading.RLock(), threading.RLock()

    def __dealloc__(self):
        # In a forked child the memory stays: another thread may have been changing it.
        if self.pages.opened_in == forks:
            while self.pages.oldest != NULL:
                pages_snapshot_close(&self.pages, self.pages.oldest)
            free_table(&self.pages)
            pthread_mutex_destroy(&self.pages.lock)

    # Opening

    def open_with(self, settings, *, device=None, engine="store", background=True, pages_min=64,
                  clock=SYSTEM_CLOCK, rng=SYSTEM_RANDOM):
        """Open or create, and recover. `settings`: PageSettings. `device`: instead of its path."""
        if self.log is not None:
            raise Closed("these pages were opened before")
        if self.pages.ops == NULL:
            raise ConfigError("a page cache needs an engine's operations")
        self.settings, self.clock = settings, clock
        self._set_policy(settings, pages_min)
        try:
            self.device = device if device is not None else self._open_device(engine)
            if settings.workers:
                self._pool = WorkerPool(settings.workers, patient=True)
            self.log = OrderedLog(
                self.device, buffer_bytes=settings.buffer_size, buffer_count=settings.buffers,
                align_commits=settings.align_commits, pool=self._pool, clock=clock, rng=rng,
                read_only=settings.read_only, slots_kept=SLOTS_KEPT)
            self.pages.stream = &self.log.stream
            if self._pool is not None:
                self.pages.pool = &(<WorkerPool>self._pool).pool
            self._recover()
        except BaseException:
            self._release()
            raise
        self.pages.closed = 0
        _open_pages.add(self)
        if background and not settings.read_only:
            try:
                self._upkeep = Upkeep(self, settings, clock)
            except RuntimeError:        # no more threads are to be had
                self.close()
                raise

    def _set_policy(self, settings, pages_min):
        self.pages.read_only = settings.read_only
        self.pages.cache_bytes = self.pages.evict_above = settings.cache
        self.pages.snapshot_bytes_max = settings.snapshot_bytes_max
        self.pages.id_interval = settings.id_interval
        self.pages.pages_min = max(4, min(pages_min, RECENT_MAX))
        self.pages.links_max = LINKS_MAX
        self.pages.compression = COMPRESSIONS[settings.compression]
        self.durable = settings.durability == "sync"
        if self.pages.compression and not compression_ready(self.pages.compression):
            raise ConfigError(f"compression {settings.compression!r} needs "
                              f"{LIBRARIES[settings.compression]}, which this system lacks")

    def _open_device(self, engine):
        settings = self.settings
        if settings.path is None:
            raise ConfigError("give a path or a device")
        path = os.fspath(settings.path)
        if settings.read_only:
            self._opener = Reader(path)
        else:
            check_free_for("data", path)
            make_directory(path)
            self._opener = Writer(path, mode=settings.mode)
        device = FileDevice([(os.path.join(path, "data"), None)], settings.segment_size,
                            engine=engine, preallocate=False,
                            lock=None if settings.read_only else "exclusive",
                            read_only=settings.read_only, mode=settings.mode)
        self._opened = device
        return device

    def _look(self):
        """A reader: the newest checkpoint is held before it is trusted."""
        for _ in range(LOOKS_MAX):
            position = self.device.reload_superblock().checkpoint_position
            self._opener.look_at(position)
            block = self.device.reload_superblock()
            if position in (block.checkpoint_position, block.checkpoint_before):
                return
        raise SnapshotTooOld(errors_of_os.ESTALE, "the writer makes checkpoints faster than they "
                             "can be read: try again")

    def _recover(self):
        cdef Visitor visitor = Visitor()
        visitor.visit = redo_visit
        visitor.context = &self.pages
        if self._opener is not None and self.settings.read_only:
            self._look()
        self.recovery = self.log.recover(visitor, self._restore)
        if self._opener is not None and not self.settings.read_only:
            self.log.keep_for_readers(self._opener)
        self.pages.id_next = self.pages.id_limit = max(<uint64_t>1, self.pages.id_marker)
        self.pages.id_marker = self.pages.id_limit
        number = self.pages.pid_next >> BLOCK_BITS
        if number < self.pages.block_count and not self.settings.read_only:
            # where pages are allocated: without it nothing can be written
            self.raise_result(block_load(&self.pages, number), number << BLOCK_BITS)
        # What had to be read now counts for the next checkpoint: a store that is often killed
        # young would else read more each time.
        self._checkpoint_segments = (0 if self.recovery.outcome == "clean"
                                     else -self.recovery.segments_read)
        self._segments_seen = 0

    def _restore(self, bytes state):
        self.raise_result(state_restore(&self.pages, PyBytes_AS_STRING(state), len(state)), 0)

    # The lock, and what comes of results

    cdef int lock(self) except -1:
        cdef pages_t *pages = &self.pages
        cdef int result = pages_usable(pages)
        if result != PAGES_OK:
            return self.raise_result(result, 0)
        while not pages_trylock(pages):
            with nogil:
                pages_lock(pages)
                pages_unlock(pages)
        return 0

    cdef int raise_result(self, int result, uint64_t pid) except -1:
        if result == PAGES_OK:
            return 0
        if result == PAGES_CLOSED:
            raise Closed("the store is closed")
        if result == PAGES_FORKED:
            raise ForkedProcess("this store was opened before the fork; open it again here")
        if result == PAGES_LOG + LOG_GONE:
            self._check_reader()
        if result == PAGES_ABSENT or result == PAGES_LOG + LOG_GONE:
            raise KeyMissing(f"there is no page {pid}")
        if result == PAGES_TOO_OLD:
            raise SnapshotTooOld(errors_of_os.ESTALE, "old versions for this snapshot went over "
                                 f"{self.pages.snapshot_bytes_max} bytes: take a new one")
        if result == -ENOMEM:
            raise MemoryError("no memory for a page")
        if result == PAGES_CORRUPT:
            self._check_reader()
            self.log._raise(LOG_CORRUPT, self.pages.bad_position)
        if result >= PAGES_LOG:
            self.log._raise(result - PAGES_LOG, self.pages.bad_position)
        raise EnvironmentFailure(-result if result < 0 else errors_of_os.EIO,
                                 f"page {pid}: result {result}")

    def _check_reader(self):
        """A reader that no writer knows of, whose records went: no damage, if the writer has moved
        on since."""
        if not self.pages.read_only or (self._opener is not None and self._opener.protected):
            return
        if self.device.superblock != self.device.reload_superblock():
            raise SnapshotTooOld(errors_of_os.ESTALE, "the writer has used these segments again: "
                                 "open it once more")

    cdef int _wait(self, uint64_t end) except -1:
        cdef int result
        with nogil:
            result = pages_sync(&self.pages, end)
        return self.raise_result(result, 0)

    cdef int changed(self, uint64_t end, bint durable) except -1:
        cdef uint64_t opened = load64_relaxed(&self.pages.stream.counters.segments_opened)
        if durable:
            self._wait(end)
        if turn_wanted():
            turn_give()
        if opened != self._segments_seen:
            self._segments_seen = opened
            cells_ahead(self.pages.pool)
            if self._upkeep is not None:
                self._press()
        return 0

    cdef int _press(self) except -1:
        """Once for each segment that writers fill: the background threads are woken, and given time
        in proportion to how far they are behind, so that the bound holds however busy they are."""
        cdef int64_t behind = self.behind()
        cdef uint32_t pause_us
        self._upkeep.wake()
        if behind > HELP_SEGMENTS + self.pages.stream.slots_used // HELP_SHARE:
            self._help()
        elif behind > 0:
            pause_us = min(PAUSE_MAX_US, behind * PAUSE_US)
            with nogil:
                usleep(pause_us)
        return 0

    def behind(self):
        """Segments more than writers are to leave: above 0, they pause."""
        return space_behind(&self.pages, &self._held) - 3 * self._checkpoint_interval()

    def _help(self):
        try:
            self.step()
        except SiltstoneError as error:
            self._upkeep.error = error      # the commit itself is done; the log says it to the next

    def _usable(self):
        """Closed, ForkedProcess: it is not."""
        self.raise_result(pages_usable(&self.pages), 0)

    def sync(self, uint64_t end=0):
        """Everything committed so far (or up to `end`) is on the medium afterwards."""
        self.raise_result(pages_usable(&self.pages), 0)
        self._wait(end)

    # Checkpoints

    cdef int _begin(self, capture_t *capture, char **head, uint64_t *size) noexcept nogil:
        cdef pages_t *pages = &self.pages
        cdef int result
        pages_lock(pages)
        result = capture_take(pages.stream, capture)
        if result > 0:
            result += PAGES_LOG
        if result == PAGES_OK:
            result = state_head(pages, head, size)
        if result == PAGES_OK:
            pages.checkpoint_serial += 1
            pages.checkpoint = pages.checkpoint_serial
            pages.checkpoint_failed = 0
            pages.dead_count = 0
        pages_unlock(pages)
        return result

    cdef int _save_blocks(self) noexcept nogil:
        """Those that were dirty at the moment, each in a hold of the lock of its own."""
        cdef pages_t *pages = &self.pages
        cdef uint32_t number = 0
        cdef int result = PAGES_OK
        while result == PAGES_OK:
            result = append_wait(pages, BLOCK_ENTRIES * 64, 1)
            if result == PAGES_LARGE:
                result = PAGES_OK
            pages_lock_behind(pages)
            while number < pages.block_count and (
                    not pages.blocks[number].dirty
                    or pages.blocks[number].checkpoint == pages.checkpoint):
                number += 1
            if number >= pages.block_count or result != PAGES_OK:
                pages_unlock(pages)
                break
            result = block_save(pages, number)
            pages_unlock(pages)
            number += 1
        return result

    def checkpoint(self):
        """Make the next recovery start here, and give back segments that nothing needs."""
        self.raise_result(pages_usable(&self.pages), 0)
        self._checkpoint()

    def _checkpoint(self):
        """True. When all of it is appended cleaning goes on, as changes do: the rest is waiting for
        the medium."""
        with self._checkpointing, contextlib.ExitStack() as held:
            held.callback(self._wake)
            held.enter_context(self._maintenance)
            self.raise_result(pages_usable(&self.pages), 0)
            before = self._checkpoint_segments
            try:
                begun, state = self._describe()
                self.log.finish_checkpoint(begun, state, appended=held.close)
            except BaseException:
                self._checkpoint_segments = before
                raise
        self.pages.counters.checkpoints += 1
        return True

    def _wake(self):
        if self._upkeep is not None:
            self._upkeep.wake()

    def _describe(self):
        """What a checkpoint says of this moment; (the log's part, pages')."""
        cdef capture_t capture
        cdef char *head = NULL
        cdef char *tail = NULL
        cdef uint64_t head_size = 0, tail_size = 0, opened
        cdef int began, result = PAGES_OK
        self._settle()
        opened = load64_relaxed(&self.pages.stream.counters.segments_opened)
        with nogil:
            began = self._begin(&capture, &head, &head_size)
            if began == PAGES_OK:
                result = self._save_blocks()
                pages_lock(&self.pages)
                if result == PAGES_OK and self.pages.checkpoint_failed:
                    result = self.pages.checkpoint_failed
                if result == PAGES_OK:
                    result = state_tail(&self.pages, &tail, &tail_size)
                self.pages.checkpoint = 0
                pages_unlock(&self.pages)
            turn_ask()
        turn_taken()
        try:
            begun = self.log._begun(began - PAGES_LOG if began > PAGES_LOG else began, &capture)
            self.raise_result(result, 0)
            state = (PyBytes_FromStringAndSize(head, head_size)
                     + PyBytes_FromStringAndSize(tail, tail_size))
        finally:
            free(head)
            free(tail)
        self._checkpoint_segments = opened
        return begun, state

    def _settle(self):
        cdef int result
        with nogil:
            result = blocks_settle(&self.pages)
            turn_ask()
        turn_taken()
        self.raise_result(result, 0)

    # What the background threads do

    def tick(self):
        """What time brings. Idle: no I/O at all."""
        self.raise_result(pages_usable(&self.pages), 0)
        self.log.tick()

    def step(self):
        """One piece of maintenance, if one is due; whether there was."""
        return self.checkpoint_if_due() or self.clean_if_due()

    def checkpoint_if_due(self):
        """Whether one was."""
        return self._while_writable(self._checkpointing, self._checkpoint_if_due)

    def clean_if_due(self):
        """Whether any segment was cleaned; at most until the next checkpoint is due."""
        return self._while_writable(self._maintenance, self._clean_while_due)

    def _while_writable(self, lock, work):
        """On a full device nothing is done: writers are told, and what they free makes room."""
        if pages_usable(&self.pages) != PAGES_OK:
            return False
        with lock:
            if self.pages.closed or self.pages.read_only or self.pages.stream.failed:
                return False
            try:
                return work()
            except EnvironmentFailure as error:
                if error.errno != errors_of_os.ENOSPC:
                    raise
                return False

    def _checkpoint_if_due(self):
        return self._checkpoint_due() and self._checkpoint()

    def _checkpoint_due(self):
        opened = load64_relaxed(&self.pages.stream.counters.segments_opened)
        return (opened - self._checkpoint_segments > self._checkpoint_interval()
                or self.pages.pending_bytes > self.pages.cache_bytes // PENDING_SHARE)

    def _checkpoint_interval(self):
        """Segments of log between two checkpoints."""
        return max(CHECKPOINT_SEGMENTS_MIN, self.pages.stream.slots_used // CHECKPOINT_SHARE)

    def _space(self):
        cdef space_t space
        space_take(&self.pages, &space)
        return space

    def _clean_while_due(self):
        cdef uint64_t cleaned = 0, damaged = 0
        cdef uint64_t opened_max = max(0, self._checkpoint_segments + self._checkpoint_interval())
        cdef int result
        with nogil:
            result = clean_while_due(&self.pages, opened_max, &cleaned, &damaged)
            turn_ask()
        turn_taken()
        self._damaged_segments += damaged
        self.raise_result(result, 0)
        return cleaned > 0

    def _clean(self, below, before):
        """Empty one segment that is less than `below` (of 1000) full, and older than version
        `before`; whether there was one."""
        cdef uint64_t version = 0
        cdef int64_t slot
        cdef int result
        slot = space_victim(&self.pages, below, before, &version)
        if slot < 0:
            return False
        with nogil:
            result = segment_clean(&self.pages, <uint32_t>slot, version)
        if result == PAGES_CORRUPT:
            self._damaged_segments += 1
        elif result != PAGES_WAIT:
            self.raise_result(result, 0)
        return result != PAGES_WAIT

    def collect_garbage(self):
        """Move what lives out of sparse segments, and give those back: how many were emptied."""
        self.raise_result(pages_usable(&self.pages), 0)
        emptied = 0
        with self._checkpointing, self._maintenance:
            self._settle()
            before = self.pages.stream.version
            space = self._space()
            if space["empty"]:
                self._checkpoint()          # on a full device: the room to move anything
                self._checkpoint()
            try:
                while self._clean(COMPACT_BELOW, before):
                    emptied += 1
            except EnvironmentFailure as error:
                if error.errno != errors_of_os.ENOSPC:
                    raise
            self._free_emptied()
        return emptied

    def _free_emptied(self):
        """What is empty now is free when two checkpoints have begun since."""
        self.log.roll()
        self._checkpoint()
        self._checkpoint()

    def _compact(self):
        """At closing: at most COMPACT_SECONDS long, the file becomes close to what lives."""
        self._settle()      # then live bytes are exact
        before = self.pages.stream.version
        deadline_ns = self.clock.monotonic_ns() + COMPACT_SECONDS * 1_000_000_000
        space = self._space()
        if space["segments"] <= space["live_bytes"] / space["segment_bytes"] * CLOSED_NEAR + 1:
            return
        while self.clock.monotonic_ns() < deadline_ns:
            space = self._space()
            wanted = space["live_bytes"] / space["segment_bytes"] * CLOSED_FACTOR + 1
            if space["segments"] - space["empty"] <= wanted:
                break
            if not self._clean(COMPACT_BELOW, before):
                break
        self._free_emptied()

    # Closing

    def close(self):
        """Checkpoint, sync, clean mark; before that the file is made small, for COMPACT_SECONDS
        at most and a checkpoint more. After a failure of the log: no I/O. Idempotent."""
        if self.pages.closed or self.log is None:
            return
        if self.pages.opened_in != forks:
            self.pages.closed = 1
            return
        if self._upkeep is not None:
            self.pages.stopping = 1
            self._upkeep.close()
        with self._checkpointing, self._maintenance:
            if self.pages.closed:
                return
            try:
                if not self.pages.read_only and not self.pages.stream.failed:
                    self._finish()
            finally:
                self.pages.closed = 1
                self._release()

    def _finish(self):
        """Small and quick to open, if there is room for that; what was committed stays anyway."""
        cdef uint64_t before = self.pages.counters.table_bytes
        try:
            self._compact()
            self._checkpoint()
            if self.pages.counters.table_bytes - before > BLOCK_ENTRIES * 64:
                self._checkpoint()      # behind all those blocks: the next opening reads no more
            self.log.punch_free()
        except EnvironmentFailure as error:
            if error.errno != errors_of_os.ENOSPC:
                raise

    def _release(self):
        _open_pages.discard(self)
        try:
            if self.log is not None:
                self.log.close()
        finally:
            if self._pool is not None:
                self._pool.close()
            if self._opened is not None:
                self._opened.close()
            if self._opener is not None:
                self._opener.close()

    # Looking in

    def _load_table(self):
        cdef uint32_t number = 0, count = self.pages.block_count
        cdef int result = PAGES_OK
        with nogil:
            while number < count and result == PAGES_OK:
                result = block_load(&self.pages, number)
                number += 1
        self.raise_result(result, number << BLOCK_BITS)

    def check_invariants(self):
        """For tests and verify, while no change set is open: table, segments and memory agree."""
        cdef uint64_t number = 0, expected = 0, found = 0
        cdef int result
        limit = self.pages.evict_above
        self.pages.evict_above = <uint64_t>-1       # the whole table at once
        try:
            self._load_table()
            with nogil:
                pages_lock(&self.pages)
                result = table_check(&self.pages, &number, &expected, &found)
                pages_unlock(&self.pages)
        finally:
            self.pages.evict_above = limit
        assert result != CHECK_LOST, f"a record of {number} lies in a segment that is not there"
        assert result != CHECK_LIVE, (f"slot {number}: {found} live bytes, its records have "
                                      f"{expected}")
        assert result != CHECK_COUNTS, f"{found} bytes or pages counted, {expected} there"
        self.log.check_invariants()

    def verify(self, progress=None):
        """Read every page from the device and check it. `progress(pages done, of)`, now and then.

        Returns a Report; what recovery found is in it too.
        """
        cdef uint64_t pid, bad = 0, bytes_read = 0
        cdef uint32_t records = 0
        cdef int result
        self.raise_result(pages_usable(&self.pages), 0)
        report = Report(problems=[str(problem) for problem in self.recovery.problems])
        pid = PID_FIRST
        while pid < self.pages.pid_next:
            with nogil:
                result = page_check(&self.pages, pid, &bad, &records, &bytes_read)
            if result == PAGES_OK:
                report.pages += 1
                report.records += records
            elif result != PAGES_ABSENT:
                report.problems.append(f"page {pid}: {self._text(result, bad)}")
            pid += 1
            if progress is not None and pid % 1024 == 0:
                progress(pid, self.pages.pid_next)
        if self.pages.left_out:
            report.problems.append(f"recovery left out {self.pages.left_out} records: their page "
                                   "or its table block was damaged")
        return report

    def _text(self, int result, uint64_t position):
        self.pages.bad_position = position
        try:
            self.raise_result(result, 0)
        except (SiltstoneError, MemoryError) as error:
            return str(error)

    def stats(self):
        """Counters and sizes, all numbers. `..._written_bytes` are parts of `written_bytes`."""
        cdef pages_counters_t counters
        log = self.log.stats()
        space = self._space()
        self.lock()
        counters = self.pages.counters
        found = {
            "commits": counters.commits, "cache_misses": counters.loads,
            "cache_hits": counters.hits, "evictions": counters.evictions,
            "table_loads": counters.block_loads, "load_retries": counters.load_retries,
            "cleaned_segments": counters.cleaned_segments, "checkpoints": counters.checkpoints,
            "log_written_bytes": counters.link_bytes + counters.mark_bytes,
            "pages_written_bytes": counters.base_bytes + counters.consolidated_bytes,
            "cleaning_written_bytes": counters.cleaned_bytes,
            "checkpoint_written_bytes": counters.table_bytes,
            "cache_bytes": self.pages.resident_bytes, "cache_pages": self.pages.resident_pages,
            "cache_limit_bytes": self.pages.cache_bytes,
            "snapshot_bytes": self.pages.version_bytes, "snapshot_versions": self.pages.versions,
            "snapshots_lost": counters.snapshots_lost,
            "redundant_bytes": self.pages.redundant_bytes,
        }
        pages_unlock(&self.pages)
        found["written_bytes"] = self.device.handle.stats()["bytes_written"]
        found["read_bytes"] = self.device.handle.stats()["bytes_read"]
        found["live_bytes"] = space["live_bytes"]
        found["used_bytes"] = space["segments"] * space["segment_bytes"]
        found["garbage_bytes"] = found["used_bytes"] - space["live_bytes"]
        for name in ("segments_used", "syncs", "sync_calls", "sync_shared", "zeroed_bytes",
                     "rewritten_bytes", "pad_bytes", "buffer_waits", "busy", "failed"):
            found[name] = log[name]
        found["damaged_segments"] = self._damaged_segments
        return found

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
