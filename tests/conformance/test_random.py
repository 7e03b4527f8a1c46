"""Random conversations: the session and memcached 1.6.18 must say the same, byte for byte.

What the two are known to say differently (the scripts' `differs` cases) is not asked here. Times
stand still for both: none is short enough to pass while a conversation lasts.
"""

from __future__ import annotations

import base64
import re
from pathlib import Path

from backend import MemoryBackend, make_session
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.test_scripts import ask, peer

__all__ = ["peer"]

BACKEND = MemoryBackend()
# every store takes the next number, and each server has its own
CAS = re.compile(rb"(?<=[ ]c)\d+(?=[ \r])|(?<=^VALUE )(\S+ \d+ \d+) \d+(?=\r)", re.MULTILINE)
TICKS = re.compile(rb"(?<= [tl])(\d+)(?=[ \r])")

KEYS = st.sampled_from(["a", "b", "pre:c", "x" * 250])
VALUES = st.sampled_from(
    [b"", b"1", b"99", b"18446744073709551615", b"abc", b"007", b"\0\xff" * 30]
)
TTLS = st.sampled_from(["0", "0", "-1", "1000", "2592000", "1900000000"])
NUMBERS = st.one_of(
    st.integers(0, 200).map(str),
    st.sampled_from(["18446744073709551615", "18446744073709551616", "x", "-1", "1x", "1.5"]),
)
OPAQUES = st.sampled_from(["O1", "Oabc", "O" + "x" * 31])


@st.composite
def classic(draw: st.DrawFn) -> bytes:
    name = draw(st.sampled_from(["get", "gets", "gat", "gats", "incr", "decr", "delete", "touch"]))
    keys = " ".join(draw(st.lists(KEYS, min_size=1, max_size=4)))
    first = keys.split(" ")[0]
    line = {
        "get": keys, "gets": keys, "gat": f"{draw(TTLS)} {keys}", "gats": f"{draw(TTLS)} {keys}",
        "incr": f"{first} {draw(NUMBERS)}", "decr": f"{first} {draw(NUMBERS)}",
        "delete": first + draw(st.sampled_from(["", " 0", " noreply", " 1"])),
        "touch": f"{first} {draw(TTLS)}",
    }[name]  # fmt: skip
    return f"{name} {line}\r\n".encode()


@st.composite
def store(draw: st.DrawFn) -> bytes:
    name = draw(st.sampled_from(["set", "set", "add", "replace", "append", "prepend", "cas"]))
    value = draw(VALUES)
    line = f"{name} {draw(KEYS)} {draw(st.integers(0, 2**32 - 1))} {draw(TTLS)} {len(value)}"
    line += " 1" if name == "cas" else ""
    return line.encode() + draw(st.sampled_from([b"", b" noreply"])) + b"\r\n" + value + b"\r\n"


def meta_flags(draw: st.DrawFn, letters: str, tokens: dict[str, st.SearchStrategy[str]]) -> str:
    chosen = draw(st.lists(st.sampled_from(letters), unique=True, max_size=6))
    return "".join(f" {letter}{draw(tokens[letter]) if letter in tokens else ''}"
                   for letter in chosen)  # fmt: skip


@st.composite
def meta(draw: st.DrawFn) -> bytes:
    name = draw(st.sampled_from(["mg", "ms", "ms", "md", "ma", "mn"]))
    key = draw(KEYS)
    binary = len(key) < 100 and draw(st.booleans())  # 250 bytes are too many in base64
    wire = base64.b64encode(key.encode()).decode() if binary else key
    opaque, tokens = draw(st.sampled_from(["", " O7", " Oabc"])), {"T": TTLS}
    if name == "mn":
        return b"mn\r\n"
    if name == "ms":
        tokens |= {
            "F": st.integers(0, 99).map(str),
            "M": st.sampled_from("SEAPR"),
            "C": st.just("1"),
        }
        value = draw(VALUES)
        flags = meta_flags(draw, "kqcTFMCI", tokens)
        head = f"ms {wire} {len(value)}{' b' if binary else ''}{flags}{opaque}\r\n"
        return head.encode() + value + b"\r\n"
    if name == "ma":
        tokens |= {
            "D": st.integers(0, 99).map(str),
            "M": st.sampled_from("ID+-"),
            "C": st.just("1"),
        }
        flags = meta_flags(draw, "kqvcTDM", tokens)
    elif name == "md":
        flags = meta_flags(draw, "kqTCI", tokens | {"C": st.just("1")})
    else:
        # memcached's mg gives the key back as the item was stored
        letters = "qvsfcthluR" if binary else "kqvsfcthluR"
        flags = meta_flags(draw, letters, tokens | {"R": st.sampled_from(["30", "2000"])})
    return f"{name} {wire}{' b' if binary else ''}{flags}{opaque}\r\n".encode()


def plain(reply: bytes) -> bytes:
    """Without what each server counts for itself, and with seconds that may have just passed."""
    reply = CAS.sub(lambda match: (match[1] or b"") + b" CAS" if match[1] else b"CAS", reply)
    return TICKS.sub(lambda match: b"%d" % (int(match[1]) // 10), reply)


@settings(max_examples=150)
@given(st.lists(st.one_of(classic(), store(), store(), meta(), meta()), min_size=1, max_size=12))
def test_both_say_the_same(peer: Path, conversation: list[bytes]) -> None:
    data = b"".join(conversation)
    ask(peer, b"flush_all\r\n")
    BACKEND.flush_at(1)
    theirs = plain(ask(peer, data))
    assert plain(make_session(BACKEND).feed(data)) == theirs, data


def test_the_comparison_sees_a_wrong_reply() -> None:
    assert plain(b"VALUE a 0 1 77\r\nx\r\n") == plain(b"VALUE a 0 1 9\r\nx\r\n")
    assert plain(b"HD c5 t100\r\n") == plain(b"HD c6 t101\r\n")
    for one, other in (
        (b"HD c5 s1\r\n", b"HD c5 s2\r\n"),
        (b"VALUE a 0 1\r\n", b"VALUE a 1 1\r\n"),
    ):
        assert plain(one) != plain(other)
