"""Sessions whose items are on flash: replies in order, reads in flight together, nothing lost."""

from __future__ import annotations

import errno
import threading

import pytest
from backend import FlashBackend, make_session
from conformance.script import Case, all_cases
from hypothesis import given
from hypothesis import strategies as st

from siltstone.log.workers import Completions, WorkerPool
from siltstone.serve.memcache import Session, completed


def filled(count: int = 20, value: bytes = b"value") -> tuple[FlashBackend, Session]:
    """k0, k1 ... on flash, client flags their number."""
    backend = FlashBackend()
    session = make_session(backend)
    for number in range(count):
        line = b"set k%d %d 0 %d\r\n" % (number, number, len(value))
        assert session.feed(line + value + b"\r\n") == b"STORED\r\n"
    backend.to_flash()
    return backend, session


def value(number: int, data: bytes = b"value") -> bytes:
    return b"VALUE k%d %d %d\r\n%b\r\n" % (number, number, len(data), data)


def finish(session: Session, reply: bytes = b"") -> bytes:
    """Do the parked reads here, until there are none."""
    while session.pending or session.paused:
        assert session.submit(None, None)
        reply += session.resume()
    return reply


def test_a_read_is_parked_and_answered() -> None:
    _, session = filled()
    assert session.feed(b"get k3\r\n") == b""
    assert session.pending == 1
    assert session.resume() == b""  # not yet
    assert finish(session) == value(3) + b"END\r\n"
    assert session.pending == 0


def test_replies_before_it_are_not_held_back_and_those_behind_keep_their_order() -> None:
    _, session = filled()
    assert session.feed(b"version\r\nget k1\r\nmn\r\nget k2 none k3\r\nmn\r\n") == (
        b"VERSION 1.6.18\r\n"
    )
    assert session.pending == 3
    assert finish(session) == (value(1) + b"END\r\nMN\r\n" + value(2) + value(3) + b"END\r\nMN\r\n")


def test_all_reads_of_a_batch_are_in_flight_at_once() -> None:
    backend, session = filled()
    backend.device.gate.clear()
    completions = Completions()
    with WorkerPool(8) as pool:
        session.feed(b"get k1 k2 k3\r\nget k4\r\nmg k5 v\r\nget k6 k7\r\n")
        assert session.pending == 7
        assert session.submit(pool, completions)
        for _ in range(1000):
            if backend.device.waiting == 7:
                break
            threading.Event().wait(0.005)
        assert backend.device.waiting == 7
        assert session.feed(b"version\r\n") == b""  # kept for later
        assert completed(completions) == []
        backend.device.gate.set()
        ready: list[Session] = []
        while not ready:
            completions.wait(5000)
            ready = completed(completions)
    assert ready == [session]
    assert session.resume() == (
        value(1) + value(2) + value(3) + b"END\r\n" + value(4) + b"END\r\n"
        b"VA 5\r\nvalue\r\n" + value(6) + value(7) + b"END\r\nVERSION 1.6.18\r\n"
    )
    completions.close()


def test_a_change_waits_for_reads_of_its_key_only() -> None:
    _, session = filled()
    session.feed(b"get k1\r\nset k2 2 0 3\r\nnew\r\nset k1 1 0 3\r\nnew\r\nget k1 k2\r\n")
    assert session.pending == 1
    assert finish(session) == (
        value(1) + b"END\r\nSTORED\r\nSTORED\r\n" + value(1, b"new") + value(2, b"new") + b"END\r\n"
    )


def test_every_change_works_on_flash() -> None:
    backend, session = filled(20, b"10")
    commands = {
        b"incr k0 5\r\n": b"15\r\n",
        b"decr k1 1\r\n": b"9\r\n",
        b"append k2 0 0 1\r\n!\r\n": b"STORED\r\n",
        b"prepend k3 0 0 1\r\n!\r\n": b"STORED\r\n",
        b"add k4 0 0 1\r\n!\r\n": b"NOT_STORED\r\n",
        b"replace k5 5 0 1\r\n!\r\n": b"STORED\r\n",
        b"cas k6 6 0 1 999999\r\n!\r\n": b"EXISTS\r\n",
        b"touch k7 100\r\n": b"TOUCHED\r\n",
        b"gat 100 k8 k9\r\n": value(8, b"10") + value(9, b"10") + b"END\r\n",
        b"delete k10\r\n": b"DELETED\r\n",
        b"mg k11 T30 t v\r\n": b"VA 2 t30\r\n10\r\n",
        b"ms k12 1 MA\r\n!\r\n": b"HD\r\n",
        b"ma k13 v\r\n": b"VA 2\r\n11\r\n",
        b"md k14 I\r\n": b"HD\r\n",
        b"mg k14 v\r\n": b"VA 2 X W\r\n10\r\n",
        b"md k15 q\r\n": b"",
    }
    for command, reply in commands.items():
        backend.to_flash()
        assert finish(session, session.feed(command)) == reply, command
    backend.to_flash()
    reply = finish(session, session.feed(b"get k0 k1 k2 k3 k4 k5 k6 k10 k12 k13 k15\r\n"))
    wanted = {0: b"15", 1: b"9 ", 2: b"10!", 3: b"!10", 4: b"10", 5: b"!", 6: b"10", 12: b"10!",
              13: b"11"}  # fmt: skip
    assert reply == b"".join(value(k, v) for k, v in wanted.items()) + b"END\r\n"


def test_the_cas_number_is_the_same_before_and_after_flash() -> None:
    backend = FlashBackend()
    session = make_session(backend)
    before = session.feed(b"set a 7 0 1\r\nx\r\ngets a\r\n").removeprefix(b"STORED\r\n")
    backend.to_flash()
    assert finish(session, session.feed(b"gets a\r\n")) == before


def test_many_keys_go_in_turns() -> None:
    _, session = filled(300)
    keys = b" ".join(b"k%d" % number for number in range(300))
    session.feed(b"get " + keys + b"\r\nversion\r\n")
    assert 0 < session.pending <= 64
    expected = b"".join(value(number) for number in range(300)) + b"END\r\nVERSION 1.6.18\r\n"
    assert finish(session) == expected


def test_a_long_key_far_behind_is_seen_before_anything_is_sent() -> None:
    _, session = filled(300)
    keys = b" ".join(b"k%d" % number for number in range(300))
    reply = session.feed(b"version\r\nget " + keys + b" " + b"x" * 251 + b"\r\nmn\r\n")
    assert finish(session, reply) == (
        b"VERSION 1.6.18\r\nCLIENT_ERROR bad command line format\r\nMN\r\n"
    )


def test_a_failed_read_is_a_miss_and_stays_one() -> None:
    backend, session = filled()
    backend.device.error = errno.EIO
    assert finish(session, session.feed(b"get k1 k2\r\nmg k3 v k O9\r\n")) == (
        b"END\r\nEN kk3 O9\r\n"
    )
    backend.device.error = 0
    assert finish(session, session.feed(b"get k1 k2 k3 k4\r\n")) == value(4) + b"END\r\n"


def test_a_failed_read_for_a_change() -> None:
    backend, session = filled()
    backend.device.error = errno.EIO
    assert finish(
        session, session.feed(b"incr k1 1\r\ntouch k2 5\r\nappend k3 0 0 1\r\nx\r\n")
    ) == (b"NOT_FOUND\r\nNOT_FOUND\r\nNOT_STORED\r\n")


def test_quit_is_answered_after_what_is_parked() -> None:
    _, session = filled()
    session.feed(b"get k1\r\nquit\r\n")
    assert not session.closing
    assert finish(session) == value(1) + b"END\r\n"
    assert session.closing


def test_a_line_without_end_closes_after_what_is_parked() -> None:
    _, session = filled()
    session.feed(b"get k1\r\n" + b"x" * 5000)
    assert finish(session) == value(1) + b"END\r\n"
    assert session.closing


def test_flush_all_waits_for_parked_reads() -> None:
    _, session = filled()
    session.feed(b"get k1\r\nflush_all\r\nget k1\r\n")
    assert finish(session) == value(1) + b"END\r\nOK\r\nEND\r\n"


def test_large_values_come_back_whole() -> None:
    data = bytes(range(256)) * 2000
    _, session = filled(3, data)
    expected = value(0, data) + value(1, data) + b"END\r\n"
    assert finish(session, session.feed(b"get k0 k1\r\n")) == expected
    assert session.buffered <= 1 << 20


def test_a_session_may_go_while_its_reads_are_out() -> None:
    backend, session = filled()
    backend.device.gate.clear()
    completions = Completions()
    with WorkerPool(2) as pool:
        session.feed(b"get k1 k2\r\n")
        session.submit(pool, completions)
        session.close()
        del session
        backend.device.gate.set()
        gone: list[Session] = []
        while not gone:
            completions.wait(5000)
            gone = completed(completions)
    assert gone[0].resume() == b""
    completions.close()


def test_a_full_queue_says_so_and_loses_nothing() -> None:
    backend, session = filled()
    backend.device.gate.clear()
    completions = Completions()
    with WorkerPool(1, queued_max=2) as pool:
        session.feed(b"get k1 k2 k3 k4 k5 k6\r\n")
        assert not session.submit(pool, completions)
        backend.device.gate.set()
        ready: list[Session] = []
        while not ready:
            session.submit(pool, completions)
            completions.wait(10)
            ready = completed(completions)
        assert ready == [session]
    expected = b"".join(value(number) for number in range(1, 7)) + b"END\r\n"
    assert session.resume() == expected
    completions.close()


# The scripts again, with everything on flash before each command -----------------------------


CASES = [case for case in all_cases() if len(case.request) < 20_000 and case.file != "admin"]
BACKEND = FlashBackend()


def lines_of(request: bytes) -> list[bytes]:
    return [line + b"\n" for line in request.split(b"\n")[:-1]]


@pytest.mark.parametrize("case", CASES, ids=[case.title for case in CASES])
def test_scripts_on_flash(case: Case) -> None:
    BACKEND.flush_at(1)
    session = make_session(BACKEND)
    reply = b""
    for line in lines_of(bytes(case.request)):
        BACKEND.to_flash()
        reply += finish(session, session.feed(line))
    case.check(reply, "on flash", rounded=True)
    assert session.closing == case.closed


@given(st.sampled_from(CASES), st.integers(0, 1 << 30))
def test_scripts_with_flash_at_any_moment(case: Case, moments: int) -> None:
    BACKEND.flush_at(1)
    session = make_session(BACKEND)
    reply = b""
    pending = b""
    for number, line in enumerate(lines_of(bytes(case.request))):
        pending += line
        if moments >> number & 1:
            reply += finish(session, session.feed(pending))
            pending = b""
            BACKEND.to_flash()
    reply += finish(session, session.feed(pending))
    case.check(reply, "with flash at any moment", rounded=True)
