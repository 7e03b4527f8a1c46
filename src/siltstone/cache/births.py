"""Children of a fork that have not yet become members of the caches they were born with.

Locks are not inherited: for an instant a child uses a shared arena and is no member. Should its
parent close meanwhile as the last one, it would take the arena away. So every such child holds
the writing end of a pipe until it has joined (or given up, died, or become another program), and
who closes waits for that. Called by the attachment's fork hooks, one fork at a time.
"""

from __future__ import annotations

import contextlib
import os
import select
from typing import Final

_waiting: Final[list[int]] = []  # reading ends: one a child that had not joined when last seen
_newest: Final[list[int]] = []  # both ends, while a fork is under way


def expect() -> None:
    """Before a fork. Without a descriptor to spare, nobody waits for the child."""
    wait(0)
    with contextlib.suppress(OSError):
        _newest.extend(os.pipe())


def in_parent() -> None:
    """After the fork."""
    if _newest:
        reading, writing = _newest
        _newest.clear()
        os.close(writing)
        _waiting.append(reading)


def joined() -> None:
    """In the child, when it is a member, or knows that it will be none."""
    for descriptor in (*_waiting, *_newest):
        os.close(descriptor)
    _waiting.clear()
    _newest.clear()


def wait(limit_ms: int) -> bool:
    """Until every child has joined; False when one has not within `limit_ms` (it is stopped)."""
    while _waiting:
        poll = select.poll()
        poll.register(_waiting[-1], select.POLLIN)
        if not poll.poll(limit_ms):
            return False
        os.close(_waiting.pop())
    return True
