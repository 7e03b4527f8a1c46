"""Worker threads: a bounded pool, and the lists through which finished jobs come back.

Owns: every thread that runs without the GIL. Promises: a job that was accepted is run, also when
the pool closes; who waits for it is woken. Called from any thread.

One queue serves all workers of a pool: who is idle takes the oldest job, which is what dealing to
the shortest queue aims at, without a job ever waiting behind a slow one while a thread is idle.
"""
import contextlib
import os
import threading

from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport EAGAIN, ESHUTDOWN, errno
from libc.stdint cimport uint64_t
from libc.string cimport memset

from siltstone.errors import Closed
from siltstone.log.atomics cimport add64, load32, load64_relaxed, store32
from siltstone.log.forked import every_child_renews
from siltstone.log.latency cimport latency_add, latency_dict, now_ns
from siltstone.log.pthread cimport (pthread_cond_broadcast, pthread_cond_destroy, pthread_cond_init,
                                    pthread_cond_signal, pthread_cond_wait, pthread_mutex_destroy,
                                    pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock)

cdef extern from *:
    """
    #include <errno.h>
    #include <poll.h>
    #include <stdint.h>
    #include <sys/eventfd.h>
    #include <unistd.h>

    static int silt_eventfd(void) { return eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC); }
    static void silt_eventfd_set(int fd) {
        uint64_t one = 1;
        ssize_t put;
        do put = write(fd, &one, 8); while (put < 0 && errno == EINTR);
    }
    static void silt_eventfd_clear(int fd) {
        uint64_t count;
        ssize_t got;
        do got = read(fd, &count, 8); while (got < 0 && errno == EINTR);
    }
    static int silt_poll(int fd, int timeout_ms) {
        struct pollfd one = {fd, POLLIN, 0};
        return poll(&one, 1, timeout_ms);
    }
    """
    int c_eventfd "silt_eventfd"() noexcept nogil
    void c_eventfd_set "silt_eventfd_set"(int) noexcept nogil
    void c_eventfd_clear "silt_eventfd_clear"(int) noexcept nogil
    int c_poll "silt_poll"(int, int) noexcept nogil
    int c_close "close"(int) noexcept nogil


# Finished jobs -----------------------------------------------------------------------------------


cdef void completions_push(completions_t *completions, job_t *job) noexcept nogil:
    cdef bint first
    job.next = NULL
    pthread_mutex_lock(&completions.lock)
    first = completions.head == NULL
    if first:
        completions.head = job
    else:
        completions.tail.next = job
    completions.tail = job
    completions.count += 1
    # Inside the lock, so that close() cannot take the descriptor away in between.
    if first and completions.fd >= 0:
        c_eventfd_set(completions.fd)
    pthread_mutex_unlock(&completions.lock)


cdef job_t *completions_take(completions_t *completions) noexcept nogil:
    cdef job_t *jobs
    # Cleared before the list is taken: what is pushed in between is taken too, or sets it again.
    if completions.fd >= 0:
        c_eventfd_clear(completions.fd)
    pthread_mutex_lock(&completions.lock)
    jobs = completions.head
    completions.head = NULL
    completions.tail = NULL
    pthread_mutex_unlock(&completions.lock)
    return jobs


cdef class Completions:
    """Finished jobs on their way back to one event loop; `fileno()` is readable when some wait."""

    def __cinit__(self):
        memset(&self.list, 0, sizeof(completions_t))
        pthread_mutex_init(&self.list.lock, NULL)
        self.list.fd = c_eventfd()
        if self.list.fd < 0:
            raise OSError(errno, "no eventfd could be had")
        every_child_renews.add(self)

    def __dealloc__(self):
        if self.list.fd >= 0:
            c_close(self.list.fd)
        pthread_mutex_destroy(&self.list.lock)

    def fileno(self):
        return self.list.fd

    def wait(self, int timeout_ms=-1):
        """Whether something is there, after at most `timeout_ms` (-1: no limit)."""
        cdef int ready
        with nogil:
            ready = c_poll(self.list.fd, timeout_ms)
        return ready > 0

    def close(self):
        """No more wake-ups; jobs that finish later are still listed."""
        pthread_mutex_lock(&self.list.lock)
        cdef int fd = self.list.fd
        self.list.fd = -1
        pthread_mutex_unlock(&self.list.lock)
        if fd >= 0:
            c_close(fd)

    def _after_fork(self):
        """The child has its own list: what is under way belongs to the parent."""
        pthread_mutex_init(&self.list.lock, NULL)
        self.list.head = self.list.tail = NULL
        if self.list.fd >= 0:
            c_close(self.list.fd)
            self.list.fd = c_eventfd()


# The pool ----------------------------------------------------------------------------------------


cdef inline void job_run(pool_t *pool, job_t *job) noexcept nogil:
    # Read before `run`: with no completions list the job may be gone afterwards.
    cdef completions_t *completions = job.completions
    cdef uint64_t started_ns = now_ns()
    latency_add(&pool.waiting, job.submitted_ns)
    job.run(job)
    latency_add(&pool.running, started_ns)
    if completions != NULL:
        completions_push(completions, job)


cdef void pool_work(pool_t *pool) noexcept nogil:
    """A worker's whole life: until the pool closes and its queue is empty."""
    cdef job_t *job
    pthread_mutex_lock(&pool.lock)
    while True:
        while pool.head == NULL and not pool.closing:
            pool.threads_idle += 1
            pthread_cond_wait(&pool.work, &pool.lock)
            pool.threads_idle -= 1
        job = pool.head
        if job == NULL:
            break
        pool.head = job.next
        if pool.head == NULL:
            pool.tail = NULL
        pool.queued -= 1
        pthread_mutex_unlock(&pool.lock)
        job_run(pool, job)
        pthread_mutex_lock(&pool.lock)
    pthread_mutex_unlock(&pool.lock)


cdef void pool_start(pool_t *pool) noexcept with gil:
    (<WorkerPool>pool.owner)._start()


cdef int pool_submit(pool_t *pool, job_t *job) noexcept nogil:
    cdef int result = 0
    job.next = NULL
    job.submitted_ns = now_ns()
    if pool.closing:
        return -ESHUTDOWN
    add64(&pool.jobs, 1)
    if pool.threads_wanted == 0:
        job_run(pool, job)
        return 0
    if not load32(&pool.started):
        pool_start(pool)
    pthread_mutex_lock(&pool.lock)
    if pool.closing:
        result = -ESHUTDOWN
    elif pool.queued >= pool.queued_max:
        result = -EAGAIN
        pool.refused += 1
    else:
        if pool.head == NULL:
            pool.head = job
        else:
            pool.tail.next = job
        pool.tail = job
        pool.queued += 1
        if pool.threads_idle:
            pthread_cond_signal(&pool.work)
    pthread_mutex_unlock(&pool.lock)
    return result


cdef class PythonJob:
    """A Python call as a job: for the control plane and tests, not for the data plane."""
    cdef job_t job
    cdef object function


cdef void python_job_run(job_t *job) noexcept with gil:
    cdef PythonJob self = <PythonJob>job.owner
    try:
        self.function()
    except BaseException as error:
        threading.excepthook(threading.ExceptHookArgs(
            (type(error), error, error.__traceback__, threading.current_thread())))
    Py_DECREF(self)


cdef class WorkerPool:
    """A bounded number of threads that run jobs without the GIL.

    Threads start at first use, in a forked child again at its first use (jobs that the parent had
    under way stay the parent's). close() lets the queue run dry and joins.

    `patient`: a job that comes waits for the processor until who has it is through with its turn,
    instead of putting it aside: it may hold a lock that others wait for.
    """

    def __cinit__(self, int threads=4, *, int queued_max=4096, str name="siltstone-worker",
                  bint patient=False):
        if threads < 0 or queued_max < 1:
            raise ValueError("a pool has 0 or more threads and room for 1 or more jobs")
        memset(&self.pool, 0, sizeof(pool_t))
        pthread_mutex_init(&self.pool.lock, NULL)
        pthread_cond_init(&self.pool.work, NULL)
        self.pool.threads_wanted = threads
        self.pool.queued_max = queued_max
        self.pool.owner = <void *>self
        self.name, self.patient = name, patient
        self._threads = []
        self._start_lock = threading.Lock()
        every_child_renews.add(self)

    def __dealloc__(self):
        # Threads hold a reference, so none is alive here.
        pthread_cond_destroy(&self.pool.work)
        pthread_mutex_destroy(&self.pool.lock)

    def _start(self):
        with self._start_lock:
            if self.pool.started or self.pool.closing:
                return
            for number in range(self.pool.threads_wanted):
                thread = threading.Thread(target=self._work, name=f"{self.name}-{number}",
                                          daemon=True)
                thread.start()
                self._threads.append(thread)
            store32(&self.pool.started, 1)

    def _work(self):
        if self.patient:
            with contextlib.suppress(OSError):      # where that is forbidden: as ever
                os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        with nogil:
            pool_work(&self.pool)

    def submit(self, function):
        """Run `function()` on a worker. BlockingIOError when the queue is full."""
        cdef PythonJob work = PythonJob()
        cdef int result
        work.function = function
        work.job.run = python_job_run
        work.job.owner = <void *>work
        Py_INCREF(work)
        with nogil:
            result = pool_submit(&self.pool, &work.job)
        if result != 0:
            Py_DECREF(work)
            if result == -ESHUTDOWN:
                raise Closed(f"{self.name}: the pool is closed")
            raise BlockingIOError(EAGAIN, f"{self.name}: {self.pool.queued_max} jobs wait already")

    def close(self):
        """Refuse new jobs, finish those that were accepted, end the threads. Idempotent."""
        with nogil:
            pthread_mutex_lock(&self.pool.lock)
            self.pool.closing = 1
            pthread_cond_broadcast(&self.pool.work)
            pthread_mutex_unlock(&self.pool.lock)
        with self._start_lock:
            threads, self._threads = self._threads, []
        for thread in threads:
            thread.join()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _after_fork(self):
        """The threads are the parent's; so are its queued jobs. Locks may be held by nobody."""
        pthread_mutex_init(&self.pool.lock, NULL)
        pthread_cond_init(&self.pool.work, NULL)
        self.pool.head = self.pool.tail = NULL
        self.pool.queued = self.pool.threads_idle = self.pool.started = 0
        self._threads = []
        self._start_lock = threading.Lock()

    @property
    def threads(self):
        return self.pool.threads_wanted

    def stats(self):
        return {
            "threads": self.pool.threads_wanted,
            "queued": self.pool.queued,
            "jobs": load64_relaxed(&self.pool.jobs),
            "refused": load64_relaxed(&self.pool.refused),
            "waiting_latency": latency_dict(&self.pool.waiting),
            "running_latency": latency_dict(&self.pool.running),
        }
