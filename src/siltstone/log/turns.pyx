"""Turns of the GIL for background work.

A thread that is busy in Python gives the GIL up when it was asked for 5 ms, and what it does then
with a store may be waiting for a background thread, whose own Python takes microseconds. So that
thread says that it wants the GIL, and who changes a store looks: it lets go, and sleeps until the
other one has it. Letting go alone is not enough: it would be taken again before a sleeper is awake.
"""
from libc.stdint cimport uint32_t
from posix.unistd cimport usleep

from siltstone.log.atomics cimport add32, load32_relaxed
from siltstone.log.pthread cimport pthread_atfork

cdef enum:
    NAP_US = 1                  # takes about 60, whatever is asked for
    NAPS_MAX = 4

cdef uint32_t wanted = 0        # by so many threads


cdef void _begin() noexcept nogil:
    """In a forked child, which has none of its parent's threads: nobody would ever take a turn."""
    global wanted
    wanted = 0


pthread_atfork(NULL, NULL, _begin)


def asked(int step=0):
    """How many threads want the GIL, after so many more of them: for tests."""
    if step:
        add32(&wanted, <uint32_t>step)
    return load32_relaxed(&wanted)


cdef void turn_ask() noexcept nogil:
    add32(&wanted, 1)


cdef void turn_taken() noexcept:
    add32(&wanted, <uint32_t>-1)


cdef bint turn_wanted() noexcept nogil:
    return load32_relaxed(&wanted) != 0


cdef void turn_give() noexcept:
    cdef int nap
    with nogil:
        for nap in range(NAPS_MAX):
            usleep(NAP_US)
            if not turn_wanted():
                break
