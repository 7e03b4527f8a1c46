"""Token soups: a session never raises, never grows, and answers the same however it is fed."""

from __future__ import annotations

import re

import soup
from backend import FlashBackend, MemoryBackend, make_session
from binaryrig import STAT, packet, replies, store
from hypothesis import given
from hypothesis import strategies as st

from siltstone.config import KIB
from siltstone.serve.memcache import Session

MEMORY = MemoryBackend()
FLASH = FlashBackend()
LATER = re.compile(rb" t\d+| c\d+|exp=\d+|cas=\d+|(VALUE [^\r]+ \d+ \d+) \d+\r|STAT [^\r]*\r\n")


def play(session: Session, pieces: list[bytes]) -> bytes:
    reply = b""
    for piece in pieces:
        reply += session.feed(piece)
        while session.pending or session.paused:
            session.submit(None, None)
            reply += session.resume()
        assert session.buffered <= 2048 * KIB
        if session.closing:
            break
    return reply


def plain(reply: bytes) -> bytes:
    """Without what depends on the clock or on how much happened before."""
    return LATER.sub(lambda match: match[1] or b"", reply)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces = []
    number = 0
    while data:
        size = sizes[number % len(sizes)]
        pieces.append(data[:size])
        data = data[size:]
        number += 1
    return pieces


@given(soup.soup, st.lists(st.integers(1, 50), min_size=1, max_size=10))
def test_pieces_do_not_matter(parts: list[bytes], sizes: list[int]) -> None:
    data = b"".join(parts)
    MEMORY.flush_at(1)
    whole = make_session(MEMORY, output_size_max=4 * KIB)
    first = play(whole, [data])
    MEMORY.flush_at(1)
    pieced = make_session(MEMORY)
    second = play(pieced, cut(data, sizes))
    # a dump refuses to follow what is still unsent: that does depend on the pieces
    if b"pipeline" not in first:
        assert plain(second) == plain(first)
        assert pieced.closing == whole.closing


@given(soup.soup, st.integers(0, 1 << 25))
def test_flash_does_not_matter(parts: list[bytes], moments: int) -> None:
    MEMORY.flush_at(1)
    memory = play(make_session(MEMORY), [b"".join(parts)])
    FLASH.flush_at(1)
    session = make_session(FLASH)
    reply = b""
    pending = b""
    for number, part in enumerate(parts):
        pending += part
        if moments >> number & 1:
            reply += play(session, [pending])
            pending = b""
            FLASH.to_flash()
    reply += play(session, [pending])
    if b"pipeline" not in memory:
        assert plain(reply) == plain(memory)


@given(st.lists(st.one_of(soup.line, soup.store, soup.sound), max_size=25))
def test_the_stream_stays_in_step(parts: list[bytes]) -> None:
    """After lines that end, a value that may be owed is paid, and mn is answered last."""
    session = make_session(MEMORY)
    play(session, [b"".join(parts)])
    if session.closing:
        return
    for _ in range(3):
        if session.feed(b"\r\nmn\r\n").endswith(b"MN\r\n") or session.closing:
            return
        # it is inside a value: at most one of item_size_max is gathered or swallowed
        play(session, [b"x" * 2_000_000])
    numbers = [int(n) for n in re.findall(rb"\d{7,}", b"".join(parts))]
    assert any(n > 2_000_000 for n in numbers), "out of step"


@given(st.binary(max_size=3000), st.lists(st.integers(1, 400), min_size=1, max_size=5))
def test_any_bytes(data: bytes, sizes: list[int]) -> None:
    MEMORY.flush_at(1)
    first = play(make_session(MEMORY), [data])
    MEMORY.flush_at(1)
    assert play(make_session(MEMORY), cut(data, sizes)) == first


@given(
    st.lists(
        st.builds(
            lambda head, rest: b"\x80" + head + rest,
            st.binary(min_size=23, max_size=23),
            st.binary(max_size=60),
        )
        | st.builds(
            lambda opcode, key, rest: packet(opcode, key, rest),
            st.integers(0, 40),
            st.sampled_from([b"", b"a", b"b"]),
            st.binary(max_size=40),
        )
        | st.builds(
            lambda opcode, value: store(opcode, b"a", value),
            st.integers(0, 40),
            st.binary(max_size=40),
        ),
        max_size=10,
    ),
    st.lists(st.integers(1, 400), min_size=1, max_size=5),
)
def test_any_packets(packets: list[bytes], sizes: list[int]) -> None:
    """Never a crash, and the same in pieces; CAS numbers and statistics are not compared."""
    data = b"".join(packets)
    MEMORY.flush_at(1)
    whole = make_session(MEMORY)
    first = play(whole, [data])
    MEMORY.flush_at(1)
    pieced = make_session(MEMORY)
    second = play(pieced, cut(data, sizes))
    assert pieced.closing == whole.closing
    if STAT not in {part[1] for part in packets if part}:
        assert [reply[:6] for reply in replies(second)] == [reply[:6] for reply in replies(first)]
