"""What a forked child makes anew: locks that may be held by nobody there, threads it has not got.

Owns the list of such objects (weakly). Called by the interpreter in the child, on the thread that
forked, before any code of the user's.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Renewed(Protocol):
    def _after_fork(self) -> None: ...


every_child_renews: weakref.WeakSet[Renewed] = weakref.WeakSet()


def _renew_in_child() -> None:
    for what in list(every_child_renews):
        what._after_fork()


os.register_at_fork(after_in_child=_renew_in_child)
