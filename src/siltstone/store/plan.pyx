"""How a set of edits becomes one commit.

Step by step, each a short hold of the lock: edits are cut into runs that belong to one leaf, and
what becomes of the leaf is prepared: a fragment, or, when it would grow too large, or when that
costs no more, new pages. Nothing changes for others. A run of very many edits is worked on without
the lock, on a copy. What is larger than the write buffers is appended as room comes, waiting
without the lock. In the last hold, if every leaf is still what it was and nothing that was read
has changed, the pages above the new ones are dealt with, and all of it counts at once.

If a leaf was changed meanwhile all begins anew; who asks for `whole` gets it done in one hold.
"""
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset

from siltstone.log.atomics cimport prefetch
from siltstone.store.blob cimport blob_free
from siltstone.store.descent cimport (SEEK_AT, TREE_BROKEN, node_fetch, path_find, path_leaf,
                                      path_near, path_pid, path_t, path_upper)
from siltstone.store.edits cimport edits_bytes, edits_grown, edits_link
from siltstone.store.growth cimport page_grow, parents_grow, root_grow, sprouts_free
from siltstone.store.page cimport (KEY_SIZE_MAX, PAGE_LEAF, RECORD_BLOB, WORD_SIZE, compare_keys,
                                   node_copy, node_free, node_key, node_new, node_record,
                                   node_search, node_t, record_word, word_bytes, word_key_size,
                                   word_payload_size)
from siltstone.store.pagecache cimport (PAGES_ABSENT, PAGES_LARGE, PAGES_MISS, PAGES_MORE,
                                        PAGES_OK, PAGES_WAIT, change_allocate, change_append,
                                        change_commit, change_count, change_cut, change_hold,
                                        change_needs, change_root, entry_t, page_entry, page_get,
                                        page_node, pages_load_many, pages_lock, pages_ready,
                                        pages_root_find, pages_t, pages_unlock, pages_wait_ready)
from siltstone.store.state cimport RECENT_MAX
from siltstone.store.write cimport leaf_settle

cdef enum:
    STEP_EDITS = 1024           # in one hold of the lock: about half a millisecond
    RUNS_AHEAD = 8              # whose leaves are on their way from memory; with 16: the same
    VALUES_AHEAD = 16           # of one run
    AHEAD_SHARE = 4             # of the pages that stay in memory: leaves that are read ahead


# Leaves -----------------------------------------------------------------------------------------

cdef uint64_t _run_end(const plan_t *plan, uint64_t first, uint64_t count, const path_t *path,
                       char *fence) noexcept nogil:
    # The first edit that is not for this leaf any more.
    cdef int depth = path_upper(path)
    cdef uint32_t size
    cdef uint64_t at = first + 1
    if depth < 0:
        return count
    size = node_key(path.nodes[depth], path.indexes[depth] + 1, fence)
    while at < count and compare_keys(plan.edits[at].key, plan.edits[at].key_size, fence,
                                      size) < 0:
        at += 1
    return at


cdef int _free_blob(plan_t *plan, const char *record, bint locked) noexcept nogil:
    cdef uint32_t word = record_word(record)
    cdef int result
    if not locked:
        pages_lock(plan.change.pages)
    result = blob_free(&plan.change, record + WORD_SIZE + word_key_size(word),
                       word_payload_size(word), &plan.missing)
    if not locked:
        pages_unlock(plan.change.pages)
    return result


cdef int _look(plan_t *plan, run_t *run, const node_t *leaf, bint locked,
               bint *appended) noexcept nogil:
    # What each edit of a run meets, and what is freed with it. Nothing is added unless all is.
    cdef uint32_t before = plan.change.count, index
    cdef int64_t delta = 0
    cdef uint64_t at
    cdef edit_t *edit
    cdef const char *record
    cdef bint found
    cdef int result
    run.deleted = 0
    run.effects = 0
    for at in range(run.first, run.end):
        edit = &plan.edits[at]
        index = node_search(leaf, edit.key, edit.key_size, &found)
        if at == run.first:
            appended[0] = index == leaf.count and leaf.count > 0
        edit.effect = found or edit.payload != NULL
        run.effects += edit.effect
        edit.before = 0
        if edit.payload == NULL:
            delta -= found
            run.deleted |= found
        else:
            delta += not found
        if not found:
            continue
        record = node_record(leaf, index)
        edit.before = word_bytes(record_word(record))
        if record_word(record) & RECORD_BLOB():
            result = _free_blob(plan, record, locked)
            if result != PAGES_OK:
                plan.change.count = before      # what was added owns nothing
                return result
    plan.roots[run.root].delta += delta
    plan.effects += run.effects
    return PAGES_OK


cdef bint _fits(plan_t *plan, const run_t *run, const node_t *leaf,
                uint32_t page_size) noexcept nogil:
    # Whether a fragment is the cheaper way, and the page stays one.
    cdef const entry_t *entry = page_entry(plan.change.pages, run.pid)
    cdef uint64_t size = edits_grown(leaf, plan.edits + run.first, run.end - run.first)
    cdef uint64_t bytes
    if size > page_size:
        return False
    bytes = edits_bytes(plan.edits + run.first, run.end - run.first)
    # what follows the base must be read with it: not much more than the page itself
    return bytes == 0 or (bytes <= (size if size > 512 else 512) and entry.link_bytes + bytes <= (
        2 * (entry.first.bytes if entry.first.bytes > 512 else 512)))


cdef int _grow_run(plan_t *plan, const run_t *run, const node_t *leaf, bint is_root, bint appended,
                   uint32_t page_size, bint locked) noexcept nogil:
    cdef const edit_t *edits = plan.edits + run.first
    if is_root:
        return root_grow(&plan.change, run.pid, leaf, edits, run.end - run.first, page_size,
                         appended, locked)
    return page_grow(&plan.change, run.pid, leaf, edits, run.end - run.first, page_size, appended,
                     locked, &plan.roots[run.root].sprouts)


cdef int _leaf(pages_t *pages, run_t *run, node_t **leaf) noexcept nogil:
    cdef int result = PAGES_OK
    leaf[0] = <node_t *>page_node(pages, run.pid, True)
    if leaf[0] == NULL:
        result = page_get(pages, run.pid, NULL, False, <char **>leaf, NULL)
    if result != PAGES_OK:
        return TREE_BROKEN if result == PAGES_ABSENT else result
    if leaf[0].kind != PAGE_LEAF:
        return TREE_BROKEN
    run.stamp = page_entry(pages, run.pid).stamp
    return PAGES_OK


cdef int _deal(TreePages trees, plan_t *plan, run_t *run) noexcept nogil:
    # Prepare what becomes of the leaf. The lock is given back meanwhile if there is much to do.
    cdef node_t *leaf = NULL
    cdef bint is_root = run.pid == plan.roots[run.root].pid, appended = False, fits
    cdef int result = _leaf(&trees.pages, run, &leaf)
    if result != PAGES_OK:
        plan.missing = run.pid
        return result
    if plan.whole or run.end - run.first <= STEP_EDITS:
        result = _look(plan, run, leaf, True, &appended)
        if result != PAGES_OK:
            return result
        fits = _fits(plan, run, leaf, trees.page_size)
        if fits:
            result = edits_link(&plan.change, run.pid, plan.edits + run.first,
                                run.end - run.first)
        if result == PAGES_OK and not (fits and run.effects):
            result = change_hold(&plan.change, run.pid)
        if result != PAGES_OK or fits:
            return result
        return _grow_run(plan, run, leaf, is_root, appended, trees.page_size, True)
    result = change_hold(&plan.change, run.pid)
    leaf = node_copy(leaf)
    if result == PAGES_OK and leaf == NULL:
        result = -ENOMEM
    if result != PAGES_OK:
        node_free(leaf)
        return result
    pages_unlock(&trees.pages)
    result = _look(plan, run, leaf, False, &appended)
    if result == PAGES_OK:
        result = _grow_run(plan, run, leaf, is_root, appended, trees.page_size, False)
    node_free(leaf)
    pages_lock(&trees.pages)
    # what was wrong with a copy that others have changed the original of is wrong no more
    if result != PAGES_OK and page_entry(&trees.pages, run.pid).stamp != run.stamp:
        return PLAN_STALE
    return result


cdef int _bound(TreePages trees, const plan_t *plan) noexcept nogil:
    # Whether the trees are there, or not yet.
    cdef const root_edits_t *root
    cdef uint32_t number
    for number in range(plan.root_count):
        root = &plan.roots[number]
        if root.name != NULL:
            if pages_root_find(&trees.pages, root.name, root.name_size) >= 0:
                return PLAN_STALE
        elif trees.generation(root.root).bound != root.bound:
            return PLAN_DROPPED
    return PAGES_OK


cdef int _make_tree(TreePages trees, plan_t *plan, root_edits_t *root) noexcept nogil:
    # All pages of a tree that is new; nobody else knows them.
    cdef uint64_t at
    cdef node_t *empty = node_new(PAGE_LEAF, 0, 0)
    cdef int result = change_allocate(&plan.change, &root.pid) if empty != NULL else -ENOMEM
    if result != PAGES_OK:
        node_free(empty)
        return result
    for at in range(root.first, root.end):
        plan.edits[at].before, plan.edits[at].effect = 0, plan.edits[at].payload != NULL
        root.delta += plan.edits[at].effect
    plan.effects += root.delta
    plan.trees_made += 1
    if not plan.whole:
        pages_unlock(&trees.pages)
    result = root_grow(&plan.change, root.pid, empty, plan.edits + root.first,
                       root.end - root.first, trees.page_size, False, plan.whole != 0)
    node_free(empty)
    if not plan.whole:
        pages_lock(&trees.pages)
    return result


cdef uint32_t _unused(const pages_t *pages, uint32_t least) noexcept nogil:
    # An id of a root that is none, not below `least`.
    while least < pages.root_count and pages.roots[least].used:
        least += 1
    return least


cdef void _fetch(pages_t *pages, const plan_t *plan, const run_t *run,
                 const node_t *leaf) noexcept nogil:
    # What dealing with it reads, from wherever in memory it is.
    cdef const char *entry = <const char *>page_entry(pages, run.pid)
    cdef uint64_t at
    prefetch(entry)
    prefetch(entry + 64)
    node_fetch(leaf)
    for at in range(run.first, min(run.end, run.first + VALUES_AHEAD)):
        prefetch(plan.edits[at].payload)
        prefetch(plan.edits[at].payload + 64)


cdef int _gather(TreePages trees, plan_t *plan, uint64_t first, uint32_t number,
                 uint32_t *count) noexcept nogil:
    # The next runs, of one tree, behind those that were dealt with: for one hold of the lock. So a
    # leaf that is dealt with without it is the last: others may cut those behind it meanwhile.
    cdef const root_edits_t *root = &plan.roots[number]
    cdef uint64_t begun = first
    cdef char fence[KEY_SIZE_MAX]
    cdef path_t path
    cdef run_t *run
    cdef int result
    count[0] = 0
    while first < root.end and count[0] < RUNS_AHEAD:
        result = path_near(&trees.pages, root.pid, plan.edits[first].key,
                           plan.edits[first].key_size, &path)
        if result != PAGES_OK:
            plan.missing = path.missing
            return PAGES_OK if count[0] else result
        run = &plan.runs[plan.run_count + count[0]]
        run.pid, run.first, run.root = path_pid(&path), first, number
        run.end = _run_end(plan, first, root.end, &path, fence)
        _fetch(&trees.pages, plan, run, path_leaf(&path))
        count[0] += 1
        first = run.end
        if first - begun >= STEP_EDITS:
            break
    return PAGES_OK


cdef int _advance(TreePages trees, plan_t *plan) noexcept nogil:
    # Deal with the edits behind those of the last run, or with some of them.
    cdef uint64_t begun = plan.runs[plan.run_count - 1].end if plan.run_count else 0
    cdef uint64_t first = begun
    cdef uint32_t number = 0, ahead, count = 0
    cdef root_edits_t *root
    cdef run_t *run
    cdef int result
    for number in range(plan.root_count):
        root = &plan.roots[number]
        if root.name != NULL and root.pid == 0:
            result = _make_tree(trees, plan, root)
            return PAGES_MORE if result == PAGES_OK else result
    number = 0
    while first < plan.count:
        if first - begun >= STEP_EDITS and not plan.whole:
            return PAGES_MORE
        while plan.roots[number].end <= first:
            number += 1
        root = &plan.roots[number]
        if root.name != NULL:
            run = &plan.runs[plan.run_count]
            run.pid, run.root, run.deleted = 0, number, 0
            run.first, run.end = first, root.end
            plan.run_count += 1
            first = run.end     # done
            continue
        result = _gather(trees, plan, first, number, &count)
        for ahead in range(count):
            if result == PAGES_OK:
                result = _deal(trees, plan, &plan.runs[plan.run_count])
                plan.run_count += result == PAGES_OK
        if result != PAGES_OK:
            return result
        first = plan.runs[plan.run_count - 1].end
    plan.leaf_items = plan.change.count
    return PAGES_OK


# The commit -------------------------------------------------------------------------------------

cdef int _room(TreePages trees, plan_t *plan, uint64_t bytes, uint32_t records) noexcept nogil:
    # OK or WAIT. Other writers may take the room again and again, and what is larger than all
    # buffers never finds it: then the log's own waiting helps. Nobody has the GIL here.
    cdef int result
    plan.bytes, plan.records = bytes, records
    result = pages_ready(&trees.pages, bytes, records)
    if result == PAGES_LARGE or (result == PAGES_WAIT and plan.waited):
        result = PAGES_OK
    plan.waited = result == PAGES_WAIT
    return result


cdef int _append(TreePages trees, plan_t *plan) noexcept nogil:
    # Some of what will be committed, long before.
    cdef uint64_t bytes = trees.pages.stream.buffer_bytes // 2
    cdef int result
    if plan.whole or not plan.large or plan.change.appended == plan.leaf_items:
        return PAGES_OK
    result = _room(trees, plan, bytes, <uint32_t>(bytes // 1024))
    if result == PAGES_OK:
        result = change_append(&plan.change, bytes)
    if result == PAGES_OK:
        result = PAGES_MORE     # the commit is a step of its own
    return result


cdef int _still(TreePages trees, plan_t *plan) noexcept nogil:
    # Whether leaves are what they were when the lock was given back.
    cdef uint64_t number
    cdef entry_t *entry
    for number in range(plan.run_count):
        if plan.runs[number].pid == 0:
            continue            # of a tree that is new
        entry = page_entry(&trees.pages, plan.runs[number].pid)
        if entry == NULL or entry.stamp != plan.runs[number].stamp:
            return PLAN_STALE
    return PAGES_OK


cdef int _commit(TreePages trees, Reads reads, plan_t *plan) noexcept nogil:
    cdef uint64_t bytes = 0
    cdef uint32_t records = 0, number, unused = 0
    cdef root_edits_t *root
    cdef int result = _still(trees, plan)
    if result == PAGES_OK and reads is not None:
        result = reads.unchanged(&plan.missing)
    if result == PAGES_OK and plan.effects == 0 and plan.trees_made == 0:
        plan.end = trees.pages.commit_end       # what it has seen
        return result
    if result != PAGES_OK:
        return result
    change_cut(&plan.change, plan.leaf_items)       # the pages above of an earlier try
    plan.change.note_count = 0
    change_needs(&plan.change, &bytes, &records)
    for number in range(plan.root_count):
        root = &plan.roots[number]
        bytes += root.sprouts.key_bytes + 64 * root.sprouts.count
        if root.sprouts.count:
            bytes += 2 * trees.page_size
    result = _room(trees, plan, bytes, records)
    for number in range(plan.root_count):
        root = &plan.roots[number]
        if result == PAGES_OK and root.name != NULL:
            root.root = _unused(&trees.pages, unused)
            unused = root.root + 1
            result = change_root(&plan.change, root.root, root.name, root.name_size, root.pid)
        elif result == PAGES_OK:
            result = parents_grow(&plan.change, root.pid, &root.sprouts, trees.page_size,
                                  &plan.missing)
        if result == PAGES_OK and root.delta:
            result = change_count(&plan.change, root.root, root.delta)
    if result != PAGES_OK:
        return result
    result = change_commit(&plan.change)
    if result == PAGES_MISS:
        result = PLAN_STALE
    if result == PAGES_OK:
        plan.end = trees.pages.commit_end
    return result


cdef int plan_step(TreePages trees, Reads reads, plan_t *plan) noexcept nogil:
    cdef int result
    pages_lock(&trees.pages)
    result = _bound(trees, plan)
    if result == PAGES_OK:
        result = _advance(trees, plan)
    if result == PAGES_OK:
        result = _bound(trees, plan)        # the lock may have been given back meanwhile
    if result == PAGES_OK:
        result = _append(trees, plan)
    if result == PAGES_OK:
        result = _commit(trees, reads, plan)
    pages_unlock(&trees.pages)
    return result


# Pages that are missing ------------------------------------------------------------------------

cdef uint32_t _ahead(TreePages trees, const plan_t *plan, uint64_t *pids,
                     uint32_t room) noexcept nogil:
    # Leaves that the edits behind the last run want and that are not in memory. Pages above them
    # are read one by one: of those, and of a few leaves, the cache is sure to keep enough.
    cdef path_t path
    cdef char fence[KEY_SIZE_MAX]
    cdef uint64_t at = plan.runs[plan.run_count - 1].end if plan.run_count else 0
    cdef uint64_t last = at + STEP_EDITS
    cdef uint32_t count = 0, number = 0
    cdef const root_edits_t *root
    while at < plan.count and at < last and count < room:
        while plan.roots[number].end <= at:
            number += 1
        root = &plan.roots[number]
        if root.name != NULL:
            at = root.end
            continue
        if path_near(&trees.pages, root.pid, plan.edits[at].key, plan.edits[at].key_size,
                     &path) != PAGES_OK:
            break
        if path_leaf(&path) == NULL:
            pids[count] = path_pid(&path)
            count += 1
        at = _run_end(plan, at, root.end, &path, fence)
    return count


cdef void plan_load(TreePages trees, const plan_t *plan) noexcept nogil:
    cdef uint64_t pids[RECENT_MAX]
    cdef uint32_t count
    pages_lock(&trees.pages)
    count = _ahead(trees, plan, pids, trees.pages.pages_min // AHEAD_SHARE)
    pages_unlock(&trees.pages)
    if count > 1:
        pages_load_many(&trees.pages, pids, count, NULL)


# Afterwards -------------------------------------------------------------------------------------

cdef void plan_tidy(TreePages trees, const plan_t *plan) noexcept nogil:
    cdef path_t path
    cdef uint64_t number
    cdef const edit_t *edit
    cdef const root_edits_t *root
    cdef bint again
    cdef int result
    for number in range(plan.run_count):
        edit, root = &plan.edits[plan.runs[number].first], &plan.roots[plan.runs[number].root]
        again = plan.runs[number].deleted != 0
        while again:
            pages_lock(&trees.pages)
            result = PAGES_OK
            if trees.generation(root.root).bound == root.bound and path_find(
                    &trees.pages, root.pid, SEEK_AT, edit.key, edit.key_size, NULL, False,
                    &path) == PAGES_OK:
                result = leaf_settle(&trees.pages, &path, trees.page_size, False, True)
            pages_unlock(&trees.pages)
            # with room the next try succeeds; without, the leaf waits for its next change
            again = result == PAGES_WAIT and pages_wait_ready(
                &trees.pages, 4 * trees.page_size, 8) == PAGES_OK


cdef void plan_free(plan_t *plan) noexcept nogil:
    cdef uint32_t number
    for number in range(plan.root_count):
        sprouts_free(&plan.roots[number].sprouts)
    free(plan.edits)
    free(plan.runs)
    free(plan.roots)
    memset(plan, 0, sizeof(plan_t))
