"""The binary protocol: random conversations with the session and with memcached 1.6.18 itself."""

from __future__ import annotations

from pathlib import Path

from backend import MemoryBackend, make_session
from binaryrig import (
    ADD,
    ADDQ,
    APPEND,
    APPENDQ,
    DECR,
    DECRQ,
    DELETE,
    DELETEQ,
    FLUSH,
    FLUSHQ,
    GAT,
    GATK,
    GATKQ,
    GATQ,
    GET,
    GETK,
    GETKQ,
    GETQ,
    INCR,
    INCRQ,
    NOOP,
    PREPEND,
    PREPENDQ,
    QUIT,
    QUITQ,
    REPLACE,
    REPLACEQ,
    SET,
    SETQ,
    STAT,
    TOUCH,
    VERSION,
    count,
    packet,
    replies,
    store,
    touch,
)  # fmt: skip
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.test_scripts import ask, peer

__all__ = ["peer"]

BACKEND = MemoryBackend()

KEYS = st.sampled_from([b"a", b"b", b"pre:c", b"\0 \r\n\xff", b"x" * 250])
VALUES = st.sampled_from([b"", b"1", b"99", b"18446744073709551615", b"abc", b"007", b"\0\xff" * 9])
# numbers of one server mean nothing to the other: 0, or one that neither has given
CAS = st.sampled_from([0, 0, 0, 1 << 60])
EXPIRIES = st.sampled_from([0, 0, 1000, 2592000, 2592001, 1900000000, 0xFFFFFFFF])
COUNTS = st.sampled_from([0, 1, 5, 99, 2**63, 2**64 - 1])

STORES = st.sampled_from([SET, SET, ADD, REPLACE, SETQ, ADDQ, REPLACEQ])
JOINS = st.sampled_from([APPEND, PREPEND, APPENDQ, PREPENDQ])
READS = st.sampled_from([GET, GETK, GETQ, GETKQ, DELETE, DELETEQ])
TOUCHES = st.sampled_from([TOUCH, GAT, GATK, GATQ, GATKQ])
FLAGS = st.integers(0, 2**32 - 1)

sound = st.one_of(
    st.builds(lambda op, key, value, flags, expiry, cas: store(
        op, key, value, flags=flags, expiry=expiry, cas=cas),
        STORES, KEYS, VALUES, FLAGS, EXPIRIES, CAS),
    st.builds(lambda op, key, value, cas: packet(op, key, value, cas=cas),
              JOINS, KEYS, VALUES, CAS),
    st.builds(lambda op, key, cas, opaque: packet(op, key, cas=cas, opaque=opaque),
              READS, KEYS, CAS, st.binary(min_size=4, max_size=4)),
    st.builds(count, st.sampled_from([INCR, DECR, INCRQ, DECRQ]), KEYS, COUNTS, COUNTS, EXPIRIES,
              CAS),
    st.builds(touch, TOUCHES, KEYS, EXPIRIES),
    # no flush in the future: it takes the place of the one before, and what that one forgot and
    # nobody has touched since is there again
    st.sampled_from([packet(NOOP), packet(VERSION), packet(FLUSH), packet(FLUSHQ),
                     packet(STAT, b"reset"), packet(STAT, b"bogus"), packet(0x55)]),
)  # fmt: skip

# Both answer and close, so each ends a conversation. An unknown opcode with a body is not asked:
# memcached goes on in the middle of it.
last = st.one_of(
    st.sampled_from([packet(QUIT), packet(QUITQ), packet(GET, b"kkkk", body_size=2)]),
    st.builds(lambda op, key, value, extras: packet(op, key, value, extras=extras),
              st.sampled_from([*range(9), *range(10, 13), *range(14, 26), 28, 29, 30, 35, 36]),
              st.sampled_from([b"", b"k", b"k" * 250, b"k" * 251]), st.sampled_from([b"", b"v"]),
              st.sampled_from([b"", bytes(4), bytes(8), bytes(20), bytes(5)])),
)  # fmt: skip


def plain(data: bytes) -> list[tuple[object, ...]]:
    """Without the numbers that each server gives out."""
    return [(*reply[:6], reply.cas != 0) for reply in replies(data)]


@settings(max_examples=300)
@given(st.lists(sound, min_size=1, max_size=12), last)
def test_both_say_the_same(peer: Path, conversation: list[bytes], end: bytes) -> None:
    data = b"".join([*conversation, end, packet(NOOP)])
    ask(peer, b"flush_all\r\n")
    BACKEND.flush_at(1)
    theirs = plain(ask(peer, data))
    # statistics are each server's own
    if end[1] == STAT:
        theirs = theirs[: len(conversation)]
    ours = plain(make_session(BACKEND).feed(data))
    assert ours[: len(theirs)] == theirs, data
    assert len(ours) == len(theirs) or end[1] == STAT
