"""The binary protocol: what each command answers, in pieces, on flash, and what makes no sense."""

from __future__ import annotations

import struct

import pytest
from backend import FlashBackend, MemoryBackend, make_session
from binaryrig import (
    ADD,
    APPEND,
    APPENDQ,
    DECR,
    DELETE,
    DELETEQ,
    EXISTS,
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
    NOT_FOUND,
    PREPEND,
    QUIT,
    QUITQ,
    REPLACE,
    SET,
    SETQ,
    STAT,
    TOUCH,
    VERBOSITY,
    VERSION,
    Reply,
    count,
    packet,
    replies,
    store,
    touch,
)  # fmt: skip

from siltstone.config import MIB
from siltstone.serve.memcache import Session

OPAQUE = b"\x01\x02\xfe\xff"


def ask(session: Session, *packets: bytes) -> list[Reply]:
    return replies(session.feed(b"".join(packets)))


def only(session: Session, request: bytes) -> Reply:
    (reply,) = ask(session, request)
    assert reply.opaque == OPAQUE
    assert reply.opcode == request[1]
    return reply


def finish(session: Session, reply: bytes) -> list[Reply]:
    while session.pending or session.paused:
        assert session.submit(None, None)
        reply += session.resume()
    return replies(reply)


def test_what_is_stored_is_found_with_its_flags_and_number() -> None:
    session = make_session()
    stored = only(session, store(SET, b"k", b"value", flags=5))
    assert (stored.status, stored.value) == (0, b"")
    assert stored.cas
    for opcode, key in ((GET, b""), (GETK, b"k"), (GETQ, b""), (GETKQ, b"k")):
        found = only(session, packet(opcode, b"k"))
        assert found[1:5] == (0, b"\0\0\0\5", key, b"value")
        assert found.cas == stored.cas


def test_a_miss() -> None:
    session = make_session()
    assert only(session, packet(GET, b"k"))[1:5] == (1, b"", b"", NOT_FOUND)
    assert only(session, packet(GETK, b"k"))[1:5] == (1, b"", b"k", b"")
    assert only(session, touch(GAT, b"k", 9))[1:5] == (1, b"", b"", NOT_FOUND)
    assert only(session, touch(GATK, b"k", 9))[1:5] == (1, b"", b"k", b"")
    quiet = [packet(GETQ, b"k"), packet(GETKQ, b"k"), touch(GATQ, b"k", 9), touch(GATKQ, b"k", 9)]
    assert [reply.opcode for reply in ask(session, *quiet, packet(NOOP))] == [NOOP]


@pytest.mark.parametrize(
    ("request_packet", "status", "text"),
    [
        (store(ADD, b"there", b"x"), 2, EXISTS),
        (store(ADD, b"none", b"x", cas=5), 1, NOT_FOUND),
        (store(REPLACE, b"none", b"x"), 1, NOT_FOUND),
        (store(SET, b"none", b"x", cas=5), 1, NOT_FOUND),
        (store(SET, b"there", b"x", cas=1 << 60), 2, EXISTS),
        (store(REPLACE, b"there", b"x", cas=1 << 60), 2, EXISTS),
        (packet(APPEND, b"none", b"x"), 5, b"Not stored."),
        (packet(PREPEND, b"there", b"x", cas=1 << 60), 2, EXISTS),
        (packet(DELETE, b"none"), 1, NOT_FOUND),
        (packet(DELETE, b"there", cas=1 << 60), 2, EXISTS),
        (packet(DELETEQ, b"none"), 1, NOT_FOUND),
        (count(INCR, b"none", 1, expiry=0xFFFFFFFF), 1, NOT_FOUND),
        (count(INCR, b"there", 1), 6, b"Non-numeric server-side value for incr or decr"),
        (count(INCR, b"number", 1, cas=1 << 60), 2, EXISTS),
        (touch(TOUCH, b"none", 9), 1, NOT_FOUND),
        (store(SET, b"there", b"x" * 2 * MIB), 3, b"Too large."),
        (store(ADD, b"none", b"x" * 2 * MIB), 3, b"Too large."),
        (packet(VERBOSITY, extras=bytes(4)), 0x81, b"Unknown command"),
        (packet(0x55, b"key", b"value", extras=b"abcd"), 0x81, b"Unknown command"),
    ],
)
def test_what_is_refused_says_why_and_changes_nothing(
    request_packet: bytes, status: int, text: bytes
) -> None:
    session = make_session()
    ask(session, store(SET, b"there", b"value"), store(SET, b"number", b"10"))
    refused, *after = ask(session, request_packet, packet(NOOP))
    assert (refused.status, refused.value, refused.opaque) == (status, text, OPAQUE)
    assert [reply.opcode for reply in after] == [NOOP]
    there = only(session, packet(GET, b"there"))
    if status == 3 and request_packet[1] == SET:
        assert there.status == 1  # as memcached: a value that cannot be kept replaces what was
    else:
        assert there.value == b"value"
    assert only(session, packet(GET, b"none")).status == 1
    assert only(session, packet(GET, b"number")).value == b"10"


def test_changes_with_the_right_number() -> None:
    session = make_session()
    cas = only(session, store(SET, b"k", b"b")).cas
    for change, value in (
        (packet(APPEND, b"k", b"c", cas=1), b"bc"),
        (packet(PREPEND, b"k", b"a", cas=1), b"abc"),
        (store(REPLACE, b"k", b"7", cas=1), b"7"),
        (count(INCR, b"k", 5, cas=1), b"12"),
        (count(DECR, b"k", 20, cas=1), b"0 "),
        (store(ADD, b"k", b"added", cas=1), b"added"),
    ):
        done = only(session, change[:16] + struct.pack(">Q", cas) + change[24:])
        assert done.status == 0
        assert done.cas != cas
        cas = done.cas
        assert only(session, packet(GET, b"k"))[4:] == (value, OPAQUE, cas)
    assert only(session, packet(DELETE, b"k", cas=cas))[1:] == (0, b"", b"", b"", OPAQUE, 0)


def test_numbers_are_made_where_an_expiry_allows_it() -> None:
    session = make_session()
    assert only(session, count(INCR, b"n", 1, 10)).value == struct.pack(">Q", 10)
    assert only(session, count(INCR, b"n", 3, 10)).value == struct.pack(">Q", 13)
    assert only(session, packet(GET, b"n")).value == b"13"
    assert ask(session, count(INCRQ, b"n", 1)) == []
    assert only(session, packet(GET, b"n")).value == b"14"
    huge = str((1 << 64) - 1).encode()
    ask(session, store(SET, b"n", huge))
    assert only(session, count(INCR, b"n", 2)).value == struct.pack(">Q", 1)
    only(session, count(INCR, b"gone", 1, 7, expiry=1_000_000_000))
    assert only(session, packet(GET, b"gone")).status == 1  # made in the past


def test_quiet_changes_say_nothing() -> None:
    session = make_session()
    quiet = [store(SETQ, b"k", b"v"), packet(APPENDQ, b"k", b"w"), packet(DELETEQ, b"k")]
    assert ask(session, *quiet) == []
    assert only(session, packet(GET, b"k")).status == 1


def test_touching() -> None:
    backend = MemoryBackend()
    session, text = make_session(backend), make_session(backend)
    ask(session, store(SET, b"k", b"v", flags=7))
    assert only(session, touch(TOUCH, b"k", 100))[1:5] == (0, b"\0\0\0\7", b"", b"")
    for opcode, key in ((GAT, b""), (GATK, b"k"), (GATQ, b""), (GATKQ, b"k")):
        assert only(session, touch(opcode, b"k", 100))[1:5] == (0, b"\0\0\0\7", key, b"v")
    assert text.feed(b"mg k t\r\n") == b"HD t100\r\n"
    assert only(session, touch(GAT, b"k", 1_000_000_000)).value == b"v"
    assert only(session, packet(GET, b"k")).status == 1


@pytest.mark.parametrize(
    "bad",
    [
        packet(GET),
        packet(GET, b"k", extras=bytes(4)),
        packet(GET, b"k", b"value"),
        packet(GET, b"k" * 251),
        packet(SET, b"k", b"v"),
        packet(SET, b"k", b"v", extras=bytes(4)),
        store(SET, b"", b"v"),
        store(SET, b"k" * 251, b"v"),
        packet(DELETE, b"k", extras=bytes(4)),
        packet(INCR, b"k"),
        packet(TOUCH, b"k"),
        packet(APPEND, b"k", b"v", extras=bytes(8)),
        packet(NOOP, b"k"),
        packet(VERSION, b"", b"v"),
        packet(FLUSH, extras=bytes(2)),
        packet(STAT, extras=bytes(4)),
        packet(STAT, b"k" * 251),
    ],
)
def test_a_packet_of_a_wrong_form_ends_the_connection(bad: bytes) -> None:
    session = make_session()
    before, refused = ask(session, packet(NOOP), bad, packet(NOOP))
    assert before.opcode == NOOP
    assert (refused.opcode, refused.status, refused.value) == (bad[1], 4, b"Invalid arguments")
    assert session.closing


def test_packets_that_cannot_be_read() -> None:
    short = make_session()
    (refused,) = ask(short, packet(GET, b"kkkk", body_size=2))
    assert refused.status == 0x81
    assert short.closing
    magic = make_session()
    assert ask(magic, packet(NOOP), packet(NOOP, magic=0x81)) == ask(make_session(), packet(NOOP))
    assert magic.closing


def test_a_huge_body_is_refused_before_it_is_sent() -> None:
    session = make_session()
    ask(session, store(SET, b"k", b"v"))
    head = packet(SET, b"k", extras=bytes(8), body_size=0xFFFFFFFF)
    assert only(session, head).status == 3
    assert session.feed(b"x" * MIB) == b""
    assert session.buffered < MIB
    assert only(make_session(), packet(GET, b"k" * 251, body_size=0xFFFFFFFF)).status == 4


def test_no_memory_for_a_value() -> None:
    session = make_session(buffered_max=MIB // 16)
    ask(session, store(SET, b"k", b"v"))
    request = store(SET, b"k", b"x" * 1_000_000)
    refused = only(session, request[:1000])
    assert (refused.status, refused.value) == (0x82, b"Out of memory")
    (after,) = ask(session, request[1000:], packet(GET, b"k"))
    assert after.status == 1


def test_quit() -> None:
    for request, answered in ((packet(QUIT), 1), (packet(QUITQ), 0)):
        session = make_session()
        assert len(ask(session, request, packet(NOOP))) == answered
        assert session.closing


def test_a_connection_keeps_the_protocol_that_it_began_with() -> None:
    text = make_session()
    assert text.feed(b"mn\r\n" + packet(VERSION) + b"\r\n") == b"MN\r\nERROR\r\n"
    binary = make_session()
    assert ask(binary, packet(NOOP), b"version\r\n" + bytes(40)) == ask(
        make_session(), packet(NOOP)
    )
    assert binary.closing
    assert make_session(protocol="ascii").feed(packet(VERSION) + b"\r\n") == b"ERROR\r\n"
    closed = make_session(protocol="binary")
    assert closed.feed(b"version\r\n" + bytes(20)) == b""
    assert closed.closing


def test_statistics_come_one_a_packet() -> None:
    session = make_session()
    *rows, last = ask(session, packet(STAT))
    assert {row.key for row in rows} >= {b"pid", b"cmd_get", b"curr_items"}
    assert all(row.value for row in rows)
    assert last[1:5] == (0, b"", b"", b"")
    settings = {row.key: row.value for row in ask(session, packet(STAT, b"settings"))}
    assert settings[b"binding_protocol"] == b"auto-negotiate"
    for words in (b"reset", b"detail on", b"items"):
        assert only(session, packet(STAT, words))[1:5] == (0, b"", b"", b"")
    ask(session, packet(GET, b"pre:k"))
    dump, last = ask(session, packet(STAT, b"detail dump"))
    assert dump.key == b"detailed"
    assert last.key == b""
    assert dump.value == b"PREFIX pre get 1 hit 0 set 0 del 0\r\nEND\r\n"
    for words in (b"bogus", b"detail", b"cachedump 1 10"):
        assert only(session, packet(STAT, words))[1:5] == (1, b"", b"", NOT_FOUND)


def test_flushing() -> None:
    for request, answered in ((packet(FLUSH), 1), (packet(FLUSHQ), 0)):
        session = make_session()
        ask(session, store(SET, b"k", b"v"))
        later = struct.pack(">I", 1000)
        assert only(session, packet(FLUSH, extras=later)).status == 0
        assert only(session, packet(GET, b"k")).status == 0
        assert len(ask(session, request)) == answered
        assert only(session, packet(GET, b"k")).status == 1
    refused = only(make_session(allow_flush=False), packet(FLUSH))
    assert (refused.status, refused.value) == (0x20, b"Auth failure.")


def test_a_failing_command_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = MemoryBackend()
    session = make_session(backend)
    monkeypatch.setattr(backend, "stats", lambda: 1 / 0)
    assert only(session, packet(STAT)).status == 0x84
    assert only(session, packet(NOOP)).status == 0


def test_every_split_says_the_same() -> None:
    conversation = b"".join(
        (
            store(SET, b"k", b"some value", flags=9),
            packet(GETK, b"k"),
            count(INCR, b"n", 1, 5),
            packet(STAT, b"reset"),
            packet(0x77, b"key", b"value"),
            packet(GETQ, b"none"),
            touch(GAT, b"k", 5),
            packet(VERSION),
        )
    )

    def forgetful(data: bytes) -> list[tuple[object, ...]]:
        return [reply[:6] for reply in replies(data)]

    whole = forgetful(make_session().feed(conversation))
    assert len(whole) == 7
    for size in (1, 2, 7, 23, 24, 25):
        session = make_session()
        pieces = range(0, len(conversation), size)
        said = b"".join(session.feed(conversation[at : at + size]) for at in pieces)
        assert forgetful(said) == whole


# On flash -------------------------------------------------------------------------------------


def filled(items: int = 10, value: bytes = b"10") -> tuple[FlashBackend, Session]:
    backend = FlashBackend()
    session = make_session(backend)
    for number in range(items):
        assert only(session, store(SET, b"k%d" % number, value, flags=number)).status == 0
    backend.to_flash()
    return backend, session


def test_gets_are_read_together_and_answered_in_order() -> None:
    _, session = filled()
    asked = [packet(GETKQ, b"k%d" % n) for n in range(5)] + [packet(GETKQ, b"none"), packet(NOOP)]
    reply = session.feed(b"".join(asked))
    assert session.pending == 5
    found = finish(session, reply)
    assert [(f.opcode, f.extras, f.key, f.value) for f in found] == [
        *((GETKQ, struct.pack(">I", n), b"k%d" % n, b"10") for n in range(5)),
        (NOOP, b"", b"", b""),
    ]
    assert all(f.opaque == OPAQUE for f in found)


def test_many_gets_go_in_turns() -> None:
    _, session = filled(200)
    reply = session.feed(b"".join(packet(GETK, b"k%d" % number) for number in range(200)))
    assert 0 < session.pending <= 64
    assert [found.key for found in finish(session, reply)] == [b"k%d" % n for n in range(200)]


def test_every_change_works_on_flash() -> None:
    backend, session = filled()
    for request, wanted in (
        (count(INCR, b"k0", 5), struct.pack(">Q", 15)),
        (packet(APPEND, b"k1", b"!"), b""),
        (packet(PREPEND, b"k1", b"!"), b""),
        (store(REPLACE, b"k2", b"new"), b""),
        (touch(TOUCH, b"k3", 100), b""),
        (touch(GAT, b"k3", 100), b"10"),
        (packet(DELETE, b"k4"), b""),
    ):
        backend.to_flash()
        (done,) = finish(session, session.feed(request))
        assert (done.status, done.value) == (0, wanted), request
    backend.to_flash()
    asked = b"".join(packet(GETKQ, b"k%d" % number) for number in range(5))
    found = {reply.key: reply.value for reply in finish(session, session.feed(asked))}
    assert found == {b"k0": b"15", b"k1": b"!10!", b"k2": b"new", b"k3": b"10"}


def test_what_ends_a_connection_comes_after_reads() -> None:
    for last, status in (
        (packet(QUIT), 0),
        (packet(NOOP, b"k"), 4),
        (packet(GET, b"kk", body_size=1), 0x81),
    ):
        _, session = filled()
        found = finish(session, session.feed(packet(GET, b"k1") + last))
        assert [reply.status for reply in found] == [0, status]
        assert found[0].value == b"10"
        assert session.closing


def test_statistics_come_after_reads() -> None:
    _, session = filled()
    found = finish(session, session.feed(packet(GET, b"k1") + packet(STAT, b"reset")))
    assert [reply.opcode for reply in found] == [GET, STAT]


def test_a_record_that_cannot_be_read_is_a_miss() -> None:
    backend, session = filled()
    backend.device.error = 5
    (missed,) = finish(session, session.feed(packet(GETK, b"k1")))
    assert (missed.status, missed.key) == (1, b"k1")
