"""What a client can make a session hold: lines, values, output, and all sessions together."""

from __future__ import annotations

import pytest
from backend import FlashBackend, MemoryBackend, make_session

from siltstone.config import KIB, MIB
from siltstone.serve.control import Control
from siltstone.serve.memcache import Session
from siltstone.serve.settings import Settings


def drained(session: Session, reply: bytes, limit: int) -> bytes:
    """All output, as a client that reads gets it; no piece may be much above `limit`."""
    while session.paused:
        piece = session.resume()
        assert len(piece) <= limit
        reply += piece
    return reply


def test_ten_megabytes_of_requests_at_once() -> None:
    session = make_session(output_size_max=64 * KIB)
    count = 10 * MIB // len(b"get a\r\n")
    assert session.feed(b"set a 0 0 1\r\nx\r\n") == b"STORED\r\n"
    reply = session.feed(b"get a\r\n" * count)
    assert len(reply) <= 64 * KIB + 1000
    assert session.buffered <= 11 * MIB
    total = len(reply)
    while session.paused:
        piece = session.resume()
        assert len(piece) <= 64 * KIB + 1000
        total += len(piece)
    assert total == count * len(b"VALUE a 0 1\r\nx\r\nEND\r\n")
    assert session.buffered < 128 * KIB


def test_output_stops_between_two_keys() -> None:
    session = make_session(output_size_max=4 * KIB)
    session.feed(b"set a 0 0 1000\r\n" + b"x" * 1000 + b"\r\n")
    reply = session.feed(b"get" + b" a" * 100 + b"\r\nversion\r\n")
    assert 4 * KIB <= len(reply) <= 6 * KIB
    assert session.paused
    assert session.feed(b"mn\r\n") == b""  # kept
    one = b"VALUE a 0 1000\r\n" + b"x" * 1000 + b"\r\n"
    assert drained(session, reply, 6 * KIB) == one * 100 + b"END\r\nVERSION 1.6.18\r\nMN\r\n"


def test_a_long_key_behind_much_output_is_seen_first() -> None:
    session = make_session(output_size_max=4 * KIB)
    session.feed(b"set a 0 0 1000\r\n" + b"x" * 1000 + b"\r\n")
    line = b"get" + b" a" * 100 + b" " + b"k" * 251 + b"\r\n"
    assert session.feed(line + b"mn\r\n") == b"CLIENT_ERROR bad command line format\r\nMN\r\n"


def test_touching_gets_stop_between_two_keys_too() -> None:
    session = make_session(output_size_max=4 * KIB)
    session.feed(b"set a 0 0 1000\r\n" + b"x" * 1000 + b"\r\n")
    reply = drained(session, session.feed(b"gat 0" + b" a" * 50 + b"\r\nmn\r\n"), 6 * KIB)
    assert reply == (b"VALUE a 0 1000\r\n" + b"x" * 1000 + b"\r\n") * 50 + b"END\r\nMN\r\n"


@pytest.mark.parametrize("size", [1, 7, 100, 5000])
def test_a_line_without_end_is_closed(size: int) -> None:
    session = make_session()
    for _ in range(1, 20_000 // size + 2):
        assert session.feed(b"x" * size) == b""
        assert session.buffered <= 16 * KIB + size
        if session.closing:
            break
    assert session.closing
    assert session.feed(b"version\r\n") == b""


@pytest.mark.parametrize("start", [b"get ", b"gets ", b"gat 0 ", b"   get "])
def test_a_get_may_be_long_but_not_endless(start: bytes) -> None:
    session = make_session(line_size_max=100 * KIB)
    assert session.feed(start + b"a " * 20_000) == b""
    assert session.feed(b"\r\n") == b"END\r\n"
    session.feed(start)
    for _ in range(100):
        session.feed(b"a " * 1000)
        assert session.buffered <= 300 * KIB
    assert session.closing


def test_a_long_line_of_another_command_is_closed_even_with_its_end() -> None:
    for line in (b"x" * 2049, b"set " + b"k" * 3000 + b" 0 0 1", b"mg a " + b"k" * 3000):
        session = make_session()
        assert session.feed(line + b"\r\n") == b""
        assert session.closing


def test_a_value_is_gathered_in_one_buffer_of_its_size() -> None:
    session = make_session()
    session.feed(b"set a 0 0 1000000\r\n")
    piece = b"x" * 10_000
    for _ in range(100):
        session.feed(piece)
        assert session.buffered <= 1_000_000 + 100 + 64 * KIB
    assert session.feed(b"\r\n") == b"STORED\r\n"
    assert session.buffered <= 64 * KIB


def test_what_is_too_large_is_not_gathered() -> None:
    session = make_session()
    reply = session.feed(b"set a 0 0 500000000\r\n")
    assert reply == b"SERVER_ERROR object too large for cache\r\n"
    piece = b"x" * 1_000_000
    for _ in range(500):
        assert session.feed(piece) == b""
        assert session.buffered <= 64 * KIB
    assert session.feed(b"\r\nversion\r\n") == b"VERSION 1.6.18\r\n"


def test_all_sessions_together_hold_a_limit() -> None:
    backend, settings = MemoryBackend(), Settings(buffered_max=3 * MIB)
    control = Control(backend, settings)
    sessions = [Session(backend.engine, control, settings) for _ in range(6)]
    replies = [session.feed(b"set a 0 0 1000000\r\n" + b"x" * 1000) for session in sessions]
    assert replies.count(b"") in (2, 3)
    refused = replies.index(b"SERVER_ERROR out of memory storing object\r\n")
    assert control.shared.buffered <= 4 * MIB
    # the stream stays in step, and others are served
    assert sessions[refused].feed(b"x" * 999_000 + b"\r\nmn\r\n") == b"MN\r\n"
    held = replies.index(b"")
    assert sessions[held].feed(b"x" * 999_000 + b"\r\n") == b"STORED\r\n"
    del sessions[:]
    assert control.shared.buffered == 0


def test_a_refused_value_removes_the_former_one() -> None:
    session = make_session(buffered_max=64 * KIB)
    session.feed(b"set a 0 0 1\r\nx\r\n")
    assert session.feed(b"set a 0 0 1000000\r\n") == (
        b"SERVER_ERROR out of memory storing object\r\n"
    )
    assert session.feed(b"x" * 1_000_000 + b"\r\nget a\r\n") == b"END\r\n"


def test_buffers_are_let_go() -> None:
    backend, settings = MemoryBackend(), Settings()
    control = Control(backend, settings)
    session = Session(backend.engine, control, settings)
    session.feed(b"set a 0 0 1000000\r\n" + b"x" * 1_000_000 + b"\r\n")
    for _ in range(3):
        session.feed(b"get a a a\r\n")
        while session.paused:
            session.resume()
    assert control.shared.buffered == session.buffered <= 64 * KIB


def test_idle_sessions_hold_no_record() -> None:
    backend = FlashBackend(16 * MIB)
    session = make_session(backend)
    session.feed(b"set a 0 0 1000000\r\n" + b"x" * 1_000_000 + b"\r\n")
    backend.to_flash()
    assert session.feed(b"get a\r\n") == b""
    session.submit(None, None)
    assert len(session.resume()) > 1_000_000
    assert session.buffered <= 64 * KIB


def test_counts_of_bytes() -> None:
    backend, settings = MemoryBackend(), Settings()
    control = Control(backend, settings)
    session = Session(backend.engine, control, settings)
    session.feed(b"versi")
    session.feed(b"on\r\n")
    assert control.shared.bytes_read == len(b"version\r\n")
    assert control.shared.bytes_written == len(b"VERSION 1.6.18\r\n")


def test_any_bytes_like_object_may_be_fed() -> None:
    session = make_session()
    assert session.feed(bytearray(b"version\r\n")) == b"VERSION 1.6.18\r\n"
    assert session.feed(memoryview(b"xxversion\r\n")[2:]) == b"VERSION 1.6.18\r\n"


def test_a_win_asked_for_however_long_before_the_end() -> None:
    for seconds in (b"1000", b"9223372036854775807"):
        session = make_session()
        assert session.feed(b"set a 0 100 1\r\nx\r\n") == b"STORED\r\n"
        assert session.feed(b"mg a R" + seconds + b"\r\n") == b"HD W\r\n"
    assert session.feed(b"set b 0 100 1\r\nx\r\nmg b R-5\r\n") == b"STORED\r\nHD\r\n"
