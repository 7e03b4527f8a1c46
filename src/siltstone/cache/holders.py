"""Who holds a lease or a lock: a token names the process, so that what the dead held is freed.

A token is ASCII, `slot.started.thread.serial`: the process's place in the cache's arena and when it
took it, so that a later process in the same place is another one.
"""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from siltstone.cache.cache import Cache

TOKEN_CHARS_MAX: Final = 100  # four numbers of 64 bits
_serial: Final = itertools.count()


def process_token(cache: Cache) -> str:
    """The part that stands for this process: `slot.started`."""
    arena = cache.engine.arena
    return f"{arena.slot}.{arena.process(arena.slot)[1]}"


def thread_token(cache: Cache) -> str:
    """This thread of this process."""
    return f"{process_token(cache)}.{threading.get_ident()}"


def new_token(cache: Cache) -> str:
    """Of this thread, and given out once."""
    return f"{thread_token(cache)}.{next(_serial)}"


def is_alive(cache: Cache, token: str) -> bool:
    """Whether the process of a token still has this cache open."""
    slot, _, rest = token.partition(".")
    started = rest.partition(".")[0]
    if not slot.isdecimal() or not started.isdecimal() or len(token) > TOKEN_CHARS_MAX:
        return False
    return cache._attachment.member_alive(int(slot), int(started))
