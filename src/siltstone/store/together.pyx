"""Parts of a piece of work, done by the caller and by worker threads that have nothing to do.

The caller takes part after part as the workers do, and waits at the end for those that are at work,
not for those that have not come: a part may itself be done together, by workers that are all busy
with such work, and nobody waits for a thread that waits.
"""
from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free

from siltstone.log.pthread cimport (pthread_cond_destroy, pthread_cond_init, pthread_cond_signal,
                                    pthread_cond_t, pthread_cond_wait, pthread_mutex_destroy,
                                    pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t,
                                    pthread_mutex_unlock)
from siltstone.log.workers cimport job_t, pool_submit, pool_t

cdef enum:
    HELPERS_MAX = 15

cdef struct crew_t:             # freed by the last that knows it
    pthread_mutex_t lock
    pthread_cond_t done
    void (*run)(void *, uint32_t) noexcept nogil
    void *context
    uint32_t count
    uint32_t next               # part that nobody has taken
    uint32_t helpers            # at work
    uint32_t known              # by so many: the caller, and jobs that have not ended
    job_t jobs[HELPERS_MAX]


cdef void leave(crew_t *crew) noexcept nogil:
    """The lock is held, and given back."""
    cdef bint last
    crew.known -= 1
    last = crew.known == 0
    pthread_mutex_unlock(&crew.lock)
    if last:
        pthread_cond_destroy(&crew.done)
        pthread_mutex_destroy(&crew.lock)
        free(crew)


cdef void take_part(crew_t *crew) noexcept nogil:
    """The lock is held, but while a part is done."""
    cdef uint32_t number
    while crew.next < crew.count:
        number = crew.next
        crew.next += 1
        pthread_mutex_unlock(&crew.lock)
        crew.run(crew.context, number)
        pthread_mutex_lock(&crew.lock)


cdef void help_job(job_t *job) noexcept nogil:
    cdef crew_t *crew = <crew_t *>job.owner
    pthread_mutex_lock(&crew.lock)
    crew.helpers += 1
    take_part(crew)
    crew.helpers -= 1
    if crew.helpers == 0:
        pthread_cond_signal(&crew.done)
    leave(crew)


cdef void do_together(pool_t *pool, void (*run)(void *, uint32_t) noexcept nogil, void *context,
                      uint32_t count) noexcept nogil:
    cdef crew_t *crew = NULL
    cdef uint32_t number, helpers = 0
    if pool != NULL and count > 1:
        helpers = min(min(pool.threads_wanted, count - 1), <uint32_t>HELPERS_MAX)
    if helpers:
        crew = <crew_t *>calloc(1, sizeof(crew_t))
    if crew == NULL:
        for number in range(count):
            run(context, number)
        return
    pthread_mutex_init(&crew.lock, NULL)
    pthread_cond_init(&crew.done, NULL)
    crew.run, crew.context, crew.count = run, context, count
    crew.known = 1 + helpers
    for number in range(helpers):
        crew.jobs[number].run = help_job
        crew.jobs[number].owner = crew
        if pool_submit(pool, &crew.jobs[number]) != 0:
            pthread_mutex_lock(&crew.lock)
            crew.known -= 1
            pthread_mutex_unlock(&crew.lock)
    pthread_mutex_lock(&crew.lock)
    take_part(crew)
    while crew.helpers:
        pthread_cond_wait(&crew.done, &crew.lock)
    leave(crew)
