"""Turns of the GIL for background work. See turns.pyx."""

cdef void turn_ask() noexcept nogil     # at the end of a block without the GIL
cdef void turn_taken() noexcept         # behind that block
cdef bint turn_wanted() noexcept nogil
# By a thread that is busy in Python: whoever asked goes first.
cdef void turn_give() noexcept
