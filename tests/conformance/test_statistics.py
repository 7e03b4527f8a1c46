"""What a command adds to the statistics: the session and memcached 1.6.18 count the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from backend import MemoryBackend, make_session

from conformance.test_scripts import ask, peer

__all__ = ["peer"]

NAMES = (
    "cmd_get cmd_set cmd_touch get_hits get_misses delete_hits delete_misses incr_hits incr_misses "
    "decr_hits decr_misses cas_hits cas_misses cas_badval touch_hits touch_misses total_items"
).split()
BEFORE = b"flush_all\r\nset n 0 0 1\r\n5\r\nset t 0 0 1\r\nx\r\n"
COMMANDS = [
    b"get n\r\n", b"get none\r\n", b"get n none t\r\n", b"gets n\r\n", b"gat 100 n\r\n",
    b"gat 100 none\r\n", b"gats 100 n none\r\n", b"touch n 100\r\n", b"touch none 100\r\n",
    b"incr n 3\r\n", b"incr n 9999\r\n", b"incr none 1\r\n", b"decr n 1\r\n", b"decr none 1\r\n",
    b"incr t 1\r\n", b"delete n\r\n", b"delete none\r\n", b"set s 0 0 1\r\nx\r\n",
    b"add n 0 0 1\r\nx\r\n", b"add new 0 0 1\r\nx\r\n", b"replace none 0 0 1\r\nx\r\n",
    b"append t 0 0 1\r\ny\r\n", b"prepend none 0 0 1\r\ny\r\n", b"cas n 0 0 1 999999\r\n1\r\n",
    b"cas none 0 0 1 1\r\n1\r\n", b"mg n v\r\n", b"mg none v\r\n", b"mg n t T100\r\n",
    b"ms m 2\r\nab\r\n", b"md n\r\n", b"md none\r\n", b"ma n\r\n", b"ma none\r\n", b"mn\r\n",
    b"flush_all\r\n", b"bogus\r\n",
]  # fmt: skip


def added(say: Callable[[bytes], bytes], command: bytes) -> dict[str, int]:
    say(BEFORE)
    before = counted(say)
    say(command)
    after = counted(say)
    return {name: after[name] - before[name] for name in NAMES if after[name] != before[name]}


def counted(say: Callable[[bytes], bytes]) -> dict[str, int]:
    rows = [line.split() for line in say(b"stats\r\n").decode().splitlines()]
    found = {row[1]: row[2] for row in rows if len(row) == 3}
    return {name: int(found[name]) for name in NAMES}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.decode().split("\r")[0])
def test_commands_count_as_in_memcached(command: bytes, peer: Path) -> None:
    backend = MemoryBackend()
    ours = added(lambda data: make_session(backend).feed(data), command)
    assert ours == added(lambda data: ask(peer, data), command)
