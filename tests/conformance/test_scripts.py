"""The protocol, line by line: every script against the session, and against memcached itself."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from backend import MemoryBackend, make_session
from hypothesis import given
from hypothesis import strategies as st

from conformance.script import Case, all_cases, expand, request_line

CASES = all_cases()
BACKEND = MemoryBackend()


def each(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=[case.title for case in cases])


def converse(pieces: Iterator[bytes] | list[bytes]) -> tuple[bytes, bool]:
    BACKEND.flush_at(1)
    session = make_session(BACKEND)
    reply = b"".join(session.feed(piece) for piece in pieces)
    return reply, session.closing


@each(CASES)
def test_in_one_piece(case: Case) -> None:
    reply, closed = converse([bytes(case.request)])
    case.check(reply, "in one piece")
    assert closed == case.closed


# values of a megabyte are sent by the byte only at their ends
def trickled(data: bytes) -> Iterator[bytes]:
    if len(data) > 20_000:
        middle = len(data) - 2_000
        yield from (data[i : i + 1] for i in range(1_000))
        yield data[1_000:middle]
        data = data[middle:]
    yield from (data[i : i + 1] for i in range(len(data)))


@each([case for case in CASES if not case.whole])
def test_a_byte_at_a_time(case: Case) -> None:
    reply, closed = converse(trickled(bytes(case.request)))
    case.check(reply, "a byte at a time")
    assert closed == case.closed


SPLITTABLE = [case for case in CASES if not case.whole and len(case.request) < 20_000]


@given(st.sampled_from(SPLITTABLE), st.lists(st.integers(1, 40), min_size=1, max_size=20))
def test_in_any_pieces(case: Case, sizes: list[int]) -> None:
    data = bytes(case.request)
    pieces = []
    for number in range(len(data)):
        size = sizes[number % len(sizes)]
        pieces.append(data[:size])
        data = data[size:]
        if not data:
            break
    reply, closed = converse(pieces)
    case.check(reply, f"in pieces of {sizes}")
    assert closed == case.closed


@given(st.lists(st.sampled_from([c for c in SPLITTABLE if not c.closed]), min_size=2, max_size=6))
def test_one_after_another(cases: list[Case]) -> None:
    """A case leaves the stream in step, whatever it did."""
    session = make_session(BACKEND)
    for case in cases:
        BACKEND.flush_at(1)
        data = bytes(case.request)
        if data.endswith(b"\n") and not case.whole:
            case.check(session.feed(data), "after others")
            assert session.feed(b"mn\r\n") == b"MN\r\n", case.title


# memcached itself -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    program = shutil.which("memcached")
    if program is None:
        pytest.skip("memcached is not installed")
    version = subprocess.run([program, "-V"], capture_output=True, text=True, check=True).stdout
    if "1.6.18" not in version:
        pytest.skip(f"the scripts say what memcached 1.6.18 answers, this is {version.strip()}")
    path = tmp_path_factory.mktemp("peer") / "socket"
    command = [program, "-s", str(path), "-m", "64", "-t", "1", "-u", "root"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            try:
                ask(path, b"version\r\n")
                break
            except OSError:
                continue
        yield path
    finally:
        process.terminate()
        process.wait()


def ask(path: Path, data: bytes) -> bytes:
    """Everything that is answered; the end of our side makes the server close its own."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(path))
        try:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has closed already: what it said is still to be read
        reply = b""
        while piece := sock.recv(65536):
            reply += piece
        return reply


@each([case for case in CASES if not case.differs])
def test_memcached_agrees(case: Case, peer: Path) -> None:
    ask(peer, b"flush_all\r\n")
    case.check(ask(peer, bytes(case.request)), "memcached 1.6.18")


@each([case for case in CASES if case.differs])
def test_where_memcached_differs_it_still_does(case: Case, peer: Path) -> None:
    """So that a note about a difference does not outlive it."""
    ask(peer, b"flush_all\r\n")
    reply = ask(peer, bytes(case.request))
    assert not case.pattern().fullmatch(reply), f"{case.title}: no difference any more"


# the runner -----------------------------------------------------------------------------------


def test_the_runner_sees_a_wrong_reply() -> None:
    case = Case("file", "name", request=bytearray(b"version\r\n"), replies=["VERSION 1.6.18"])
    case.check(b"VERSION 1.6.18\r\n", "")
    for wrong in (b"", b"VERSION 1.6.18", b"VERSION 1.6.19\r\n", b"VERSION 1.6.18\r\nX\r\n"):
        with pytest.raises(AssertionError, match="file: name"):
            case.check(wrong, "")


def test_the_runner_expands() -> None:
    assert request_line("set a 0 0 1") == b"set a 0 0 1\r\n"
    assert request_line("x\\$") == b"x"
    assert expand("a{bc*3}\\x00\\xff") == b"abcbcbc\x00\xff"
    assert len(CASES) > 250
